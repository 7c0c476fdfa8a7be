package flow

import (
	"fmt"
	"net/url"

	"k8s.io/apimachinery/pkg/util/validation"
)

// Conditions are the conditions of a Filter, as a user writes them. An empty field sets no condition.
type Conditions struct {
	Verdict    string // allowed or denied
	Namespaces []string
	// From and To are names that ParseName reads. If there is exactly one namespace, names without a
	// namespace are looked for in it.
	From, To []string
	Ports    []string // ports that ParsePort reads
	Policies []string
}

// Filter parses the conditions. If one of them is wrong, the error names its field.
func (c Conditions) Filter() (f Filter, err error) {
	switch c.Verdict {
	case "", Opened.String(), Denied.String():
	default:
		return f, fmt.Errorf("verdict: %q is not allowed or denied", c.Verdict)
	}
	f = Filter{Event: c.Verdict, Namespaces: c.Namespaces, Policies: c.Policies}
	for _, n := range c.Namespaces {
		if len(validation.IsDNS1123Label(n)) > 0 {
			return f, fmt.Errorf("namespace: %q is not the name of a namespace: write it as in shop", n)
		}
	}
	namespace := ""
	if len(c.Namespaces) == 1 {
		namespace = c.Namespaces[0]
	}
	for _, ends := range []struct {
		field string
		texts []string
		names *[]Name
	}{{"from", c.From, &f.From}, {"to", c.To, &f.To}} {
		for _, text := range ends.texts {
			n, err := ParseName(text, namespace)
			if err != nil {
				return f, fmt.Errorf("%s: %w", ends.field, err)
			}
			*ends.names = append(*ends.names, n)
		}
	}
	for _, text := range c.Ports {
		p, err := ParsePort(text)
		if err != nil {
			return f, fmt.Errorf("port: %w", err)
		}
		f.Ports = append(f.Ports, p)
	}
	return f, nil
}

// Values returns the conditions as parameters of a request. ReadConditions reads them.
func (c Conditions) Values() url.Values {
	v := make(url.Values)
	for name, field := range c.fields() {
		if len(*field) > 0 {
			v[name] = *field
		}
	}
	if c.Verdict != "" {
		v.Set("verdict", c.Verdict)
	}
	return v
}

// ReadConditions returns the conditions among the parameters of a request.
func ReadConditions(v url.Values) Conditions {
	c := Conditions{Verdict: v.Get("verdict")}
	for name, field := range c.fields() {
		*field = v[name]
	}
	return c
}

// fields returns pointers to the fields that have several values. The keys of the map are the names of
// their parameters in a request.
func (c *Conditions) fields() map[string]*[]string {
	return map[string]*[]string{"namespace": &c.Namespaces, "from": &c.From, "to": &c.To, "port": &c.Ports, "policy": &c.Policies}
}
