package expect

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter/policy/inventory"
)

// End is one end of the flows of a test: a name; pods, by namespace and labels; or everything except
// other ends.
type End struct {
	// Name is a name in the form of [inventory.Question]. If it is set, the other fields are empty.
	Name string
	// Namespace and Labels select pods; the Namespace "*" selects all namespaces. Without Labels, they
	// select all pods of the Namespace. If only Labels are set, the namespace is Cluster.Namespace.
	Namespace string
	Labels    labels.Set
	// Not lists ends to leave out. Names in it without a namespace are in Namespace. If no other field
	// is set, the ends are left out of everything: all pods, all nodes, and all addresses outside the
	// cluster.
	Not []End
}

// endText is the YAML form of an End that is a map.
type endText struct {
	Namespace string            `json:"namespace"`
	Labels    map[string]string `json:"labels"`
	Not       json.RawMessage   `json:"not"`
}

var endFields = []string{"namespace", "labels", "not"}

// String returns the end as it appears in the name of a test.
func (e End) String() string {
	text := e.Name
	switch {
	case text != "":
		return text
	case len(e.Labels) > 0 && e.Namespace != "":
		text = e.Namespace + "/" + e.Labels.String()
	case len(e.Labels) > 0:
		text = e.Labels.String()
	case e.Namespace == "*":
		text = "all pods"
	case e.Namespace != "":
		text = "ns/" + e.Namespace
	}
	if len(e.Not) == 0 {
		return text
	}
	return cmp.Or(text, "all") + " but " + joined(e.Not)
}

func joined(ends []End) string {
	texts := make([]string, len(ends))
	for i, e := range ends {
		texts[i] = e.String()
	}
	return strings.Join(texts, ", ")
}

// find returns the target of the end; to reports whether it is the destination.
func (e End) find(c *Cluster, to bool) (inventory.Target, error) {
	if e.Name != "" {
		return c.Inventory.Find(e.Name, c.Namespace, to)
	}
	base, err := e.base(c, to)
	if err != nil || len(e.Not) == 0 {
		return base, err
	}
	inside := *c
	if e.Namespace != "" && e.Namespace != "*" {
		inside.Namespace = e.Namespace
	}
	var not []inventory.Target
	for _, n := range e.Not {
		t, err := n.find(&inside, to)
		if err != nil {
			return inventory.Target{}, fmt.Errorf("not: %w", err)
		}
		not = append(not, t)
	}
	return c.Inventory.Without(base, not, to)
}

// base returns the target of the end, including what Not leaves out.
func (e End) base(c *Cluster, to bool) (inventory.Target, error) {
	if e.Namespace == "" && len(e.Labels) == 0 {
		return c.Inventory.All(to)
	}
	selector := "*"
	if len(e.Labels) > 0 {
		selector = e.Labels.String()
	}
	return c.Inventory.Find(cmp.Or(e.Namespace, c.Namespace)+"/"+selector, c.Namespace, to)
}

// Namespaces returns the namespaces in the names of the end.
func (e End) Namespaces() (names []string) {
	if namespace := cmp.Or(e.Namespace, inventory.NamespaceIn(e.Name)); namespace != "" && namespace != "*" {
		names = append(names, namespace)
	}
	for _, n := range e.Not {
		names = append(names, n.Namespaces()...)
	}
	return names
}

// parseEnds parses an end or a list of ends.
func parseEnds(field string, text json.RawMessage) (ends []End, errs []error) {
	items := []json.RawMessage{text}
	switch {
	case len(text) == 0:
		items = nil
	case bytes.HasPrefix(text, []byte("[")):
		if err := json.Unmarshal(text, &items); err != nil {
			return nil, []error{fmt.Errorf("%s: %w", field, err)}
		}
	}
	if len(items) == 0 {
		return nil, []error{fmt.Errorf("%s: it is missing: write namespace/name of a pod or a workload, labels as in app=web, world, or an IP address", field)}
	}
	for _, item := range items {
		end, wrong := parseEnd(field, item)
		ends, errs = append(ends, end), append(errs, wrong...)
	}
	return ends, errs
}

func parseEnd(field string, text json.RawMessage) (End, []error) {
	if !bytes.HasPrefix(text, []byte("{")) {
		var l list
		_ = l.UnmarshalJSON(slices.Concat([]byte("["), text, []byte("]"))) // check reports a value of a wrong type
		if err := l.check(field, "write a name"); err != nil {
			return End{}, []error{err}
		}
		return End{Name: l.texts[0]}, nil
	}
	var raw endText
	if errs := decode(text, &raw, endFields); len(errs) > 0 {
		for i, err := range errs {
			errs[i] = fmt.Errorf("%s.%w", field, err)
		}
		return End{}, errs
	}
	end := End{Namespace: raw.Namespace, Labels: raw.Labels}
	if _, err := labels.ValidatedSelectorFromSet(end.Labels); err != nil {
		return End{}, []error{fmt.Errorf("%s.labels: %w: correct the labels", field, err)}
	}
	var errs []error
	if len(raw.Not) > 0 {
		end.Not, errs = parseEnds(field+".not", raw.Not)
	}
	for _, n := range end.Not {
		if len(n.Not) > 0 {
			errs = append(errs, fmt.Errorf("%s.not.not: it is inside of another not: write what is meant without it", field))
		}
	}
	if end.Namespace == "" && len(end.Labels) == 0 && len(raw.Not) == 0 {
		errs = append(errs, errors.New(field+": it is an empty object: write namespace, labels or not"))
	}
	return end, errs
}
