package expect

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"sluice/filter"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/near"
)

// fileText is the form of a File in YAML.
type fileText struct {
	Manifests list              `json:"manifests"`
	NodeIPs   list              `json:"nodeIPs"`
	PodCIDRs  list              `json:"podCIDRs"`
	Tests     []json.RawMessage `json:"tests"`
}

// testText is the form of a Test in YAML.
type testText struct {
	Name     string          `json:"name"`
	From     json.RawMessage `json:"from"`
	To       json.RawMessage `json:"to"`
	Port     list            `json:"port"`
	Protocol string          `json:"protocol"`
	Expect   string          `json:"expect"`
	Policy   string          `json:"policy"`
}

var (
	fileFields = []string{"manifests", "nodeIPs", "podCIDRs", "tests"}
	testFields = []string{"name", "from", "to", "port", "protocol", "expect", "policy"}
)

// list is a string, a number, or a list of strings and numbers. It keeps any other value, so
// that check can return an error that names the field.
type list struct {
	texts []string
	wrong string
}

// UnmarshalJSON reads a single value as a list with one item.
func (l *list) UnmarshalJSON(data []byte) error {
	var items []json.RawMessage
	switch {
	case bytes.Equal(data, []byte("null")):
		return nil
	case !bytes.HasPrefix(data, []byte("[")):
		items = append(items, data)
	default:
		if err := json.Unmarshal(data, &items); err != nil {
			return err
		}
	}
	for _, item := range items {
		text, number := "", json.Number("")
		switch {
		case bytes.HasPrefix(item, []byte(`"`)) && json.Unmarshal(item, &text) == nil:
			l.texts = append(l.texts, text)
		case !bytes.Equal(item, []byte("null")) && json.Unmarshal(item, &number) == nil:
			l.texts = append(l.texts, number.String())
		default:
			l.wrong = string(item)
		}
	}
	return nil
}

// check returns an error if the list has an invalid value, or if a required list is empty.
// The parameter "missing" is the hint for an empty list; if it is "", the list is optional.
func (l *list) check(field, missing string) error {
	switch {
	case l.wrong != "":
		return fmt.Errorf("%s: %s is neither a string nor a number: write one of the two, or a list of them", field, l.wrong)
	case len(l.texts) == 0 && missing != "":
		return fmt.Errorf("%s: it is missing: %s", field, missing)
	}
	return nil
}

// Parse parses a file of expectations. Its error lists all mistakes outside of the tests, each with the
// field and a hint. A mistake in a test concerns only this test: see [Test.Wrong].
func Parse(data []byte) (*File, error) {
	if several(data) {
		return nil, errors.New("there are several YAML documents: write a file for each")
	}
	text, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return nil, fmt.Errorf("%s: correct the YAML", strings.TrimPrefix(err.Error(), "error converting YAML to JSON: "))
	}
	var raw fileText
	if errs := decode(text, &raw, fileFields); len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	f := &File{Manifests: raw.Manifests.texts}
	errs := []error{
		raw.Manifests.check("manifests", ""), raw.NodeIPs.check("nodeIPs", ""), raw.PodCIDRs.check("podCIDRs", ""),
	}
	for _, text := range raw.NodeIPs.texts {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("nodeIPs: %q is not an IP address: write one, such as 192.0.2.1", text))
		}
		f.NodeIPs = append(f.NodeIPs, addr)
	}
	for _, text := range raw.PodCIDRs.texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("podCIDRs: %q is not a CIDR: write one, such as 10.244.0.0/16", text))
		}
		f.PodRanges = append(f.PodRanges, p.Masked())
	}
	if len(raw.Tests) == 0 {
		errs = append(errs, errors.New("tests: there are none: write at least one, with from, to, port and expect"))
	}
	for i, one := range raw.Tests {
		t, wrong := parseTest(one)
		if t.Wrong = errors.Join(wrong...); t.Wrong != nil && t.Name == "" {
			t.Name = fmt.Sprintf("test %d", i+1)
		}
		f.Tests = append(f.Tests, t)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return f, nil
}

// several reports whether data has several YAML documents. The YAML package would read only
// the first one.
func several(data []byte) bool {
	begun := false
	for line := range bytes.Lines(data) {
		line = bytes.TrimRight(line, " \t\r\n")
		switch {
		case bytes.Equal(line, []byte("---")) || bytes.HasPrefix(line, []byte("--- ")):
			if begun {
				return true
			}
			begun = len(line) > len("---")
		case len(line) > 0 && !bytes.HasPrefix(bytes.TrimLeft(line, " "), []byte("#")):
			begun = true
		}
	}
	return false
}

// decode decodes text strictly. Its errors about unknown fields list the valid fields.
func decode(text []byte, into any, fields []string) []error {
	strict, err := kjson.UnmarshalStrict(text, into)
	if err != nil {
		var wrong *json.UnmarshalTypeError
		switch {
		case !errors.As(err, &wrong):
			return []error{fmt.Errorf("a field cannot be read: %w", err)}
		case wrong.Field == "":
			return []error{fmt.Errorf("it is %s: write an object with %s", near.Kind(wrong.Value), strings.Join(fields, ", "))}
		case wrong.Field == "tests":
			return []error{fmt.Errorf("tests: it is %s: write a list (lines that begin with \"- \")", near.Kind(wrong.Value))}
		}
		return []error{fmt.Errorf("%s: it is %s: %s", wrong.Field, near.Kind(wrong.Value), near.WriteString(wrong.Value))}
	}
	var errs []error
	for _, err := range strict {
		var at kjson.FieldError
		if !errors.As(err, &at) {
			errs = append(errs, err)
			continue
		}
		hint := "the fields here are " + strings.Join(fields, ", ")
		if best, ok := near.Name(at.FieldPath(), fields); ok {
			hint = "write " + best
		}
		errs = append(errs, fmt.Errorf("%s: there is no such field: %s", at.FieldPath(), hint))
	}
	return errs
}

// parseTest parses one test. It does not check whether pods and ports exist.
func parseTest(text []byte) (Test, []error) {
	var raw testText
	if errs := decode(text, &raw, testFields); len(errs) > 0 {
		return Test{Name: raw.Name}, errs // do not report a field as missing if it is only misspelt
	}
	t := Test{Name: raw.Name, Ports: raw.Port.texts, Protocol: raw.Protocol, Policy: raw.Policy}
	var errs, wrong []error
	t.From, errs = parseEnds("from", raw.From)
	t.To, wrong = parseEnds("to", raw.To)
	errs = append(append(errs, wrong...), raw.Port.check("port", ""))
	proto, err := t.protocol()
	errs = append(errs, err)
	switch strings.ToLower(raw.Expect) {
	case "allow":
		t.Expect = filter.Allow
	case "deny":
		t.Expect = filter.Deny
	case "":
		errs = append(errs, errors.New("expect: it is missing: write allow or deny"))
	default:
		errs = append(errs, fmt.Errorf("expect: %q is neither: write allow or deny", raw.Expect))
	}
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if t.Name == "" && len(errs) == 0 {
		t.Name = t.describe(proto)
	}
	return t, errs
}

// protocol parses the protocol of the test, and checks that the test has ports if and only if
// the protocol has ports.
func (t *Test) protocol() (filter.Protocol, error) {
	proto, ok := filter.TCP, true
	if t.Protocol != "" {
		proto, ok = filter.ParseProtocol(t.Protocol)
	}
	switch {
	case !ok || proto == filter.ICMPv6:
		return 0, fmt.Errorf("protocol: %q is not supported: write TCP, UDP, SCTP or ICMP", t.Protocol)
	case proto.HasPorts() && len(t.Ports) == 0 && t.toHasPort():
		t.Ports = []string{""} // To implies the port
	case proto.HasPorts() && len(t.Ports) == 0:
		return 0, errors.New("port: it is missing: write a number, the name of a port of the destination, or a list of them")
	case !proto.HasPorts() && len(t.Ports) > 0:
		return 0, fmt.Errorf("port: %s has no ports: leave it out", proto)
	case !proto.HasPorts():
		t.Ports = []string{""}
	}
	return proto, nil
}

// toHasPort reports whether each destination implies its port: a name with a port, as in
// "db.shop.svc:5432", or a route, as in "ingress/web", which leads to the ports of its backends.
func (t *Test) toHasPort() bool {
	return len(t.To) > 0 && !slices.ContainsFunc(t.To, func(e End) bool {
		if inventory.NamesRoute(e.Name) {
			return false
		}
		_, err := netip.ParseAddr(e.Name)
		return err == nil || !strings.Contains(e.Name, ":") || strings.Contains(e.Name, "::/")
	})
}

// describe returns a name for a test without one.
func (t *Test) describe(proto filter.Protocol) string {
	name := fmt.Sprintf("%s to %s, %s", joined(t.From), joined(t.To), proto)
	if proto.HasPorts() && t.Ports[0] != "" {
		name += " " + strings.Join(t.Ports, ", ")
	}
	return name + ": " + t.Expect.String()
}
