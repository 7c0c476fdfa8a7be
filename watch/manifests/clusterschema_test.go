package manifests

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"sluice/filter"
)

// crdSchema is a part of the schema of the CustomResourceDefinition.
type crdSchema struct {
	Type                 string
	Properties           map[string]*crdSchema
	AdditionalProperties *crdSchema
	Items                *crdSchema
	Required, Enum       []string
	MaxItems, MinItems   *int
	MaxLength            *int
	Maximum, Minimum     *int
	MaxProperties        *int
	MinProperties        *int
	Pattern              string
	ListType             string           `json:"x-kubernetes-list-type"`
	Validations          []map[string]any `json:"x-kubernetes-validations"`
}

func specSchema(t *testing.T) *crdSchema {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(apiModule(t), "config", "crd", "experimental", "policy.networking.k8s.io_clusternetworkpolicies.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var crd struct {
		Spec struct {
			Versions []struct {
				Schema struct {
					OpenAPIV3Schema *crdSchema
				}
			}
		}
	}
	if err := yaml.Unmarshal(text, &crd); err != nil {
		t.Fatal(err)
	}
	return crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"]
}

// schemaCases are valid specs that together have every field of the schema. The tests replace
// ACTION with an action.
var schemaCases = []string{
	`{tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {a: b}, matchExpressions: [{key: c, operator: In, values: [d]}]}},
	  ingress: [{name: x, action: ACTION, from: [{namespaces: {matchLabels: {a: b}, matchExpressions: [{key: c, operator: In, values: [d]}]}}], protocols: [{destinationNamedPort: web}]}],
	  egress: [{name: x, action: ACTION, to: [{namespaces: {matchLabels: {a: b}, matchExpressions: [{key: c, operator: In, values: [d]}]}}], protocols: [{destinationNamedPort: web}]}]}`,
	`{tier: Baseline, priority: 1000, subject: {pods: {namespaceSelector: {matchLabels: {a: b}, matchExpressions: [{key: c, operator: In, values: [d]}]}, podSelector: {matchLabels: {a: b}, matchExpressions: [{key: c, operator: In, values: [d]}]}}},
	  ingress: [{action: ACTION, from: [{pods: {namespaceSelector: {matchLabels: {a: b}, matchExpressions: [{key: c, operator: In, values: [d]}]}, podSelector: {matchLabels: {a: b}, matchExpressions: [{key: c, operator: In, values: [d]}]}}}], protocols: [{tcp: {destinationPort: {number: 80}}}]}],
	  egress: [{action: ACTION, to: [{pods: {namespaceSelector: {matchLabels: {a: b}, matchExpressions: [{key: c, operator: In, values: [d]}]}, podSelector: {matchLabels: {a: b}, matchExpressions: [{key: c, operator: In, values: [d]}]}}}], protocols: [{tcp: {destinationPort: {number: 80}}}]}]}`,
	`{tier: Admin, priority: 0, subject: {namespaces: {}}, ingress: [{action: ACTION, from: [{namespaces: {}}], protocols: [{udp: {destinationPort: {number: 80}}}]}],
	  egress: [{action: ACTION, to: [{networks: [10.0.0.0/8]}], protocols: [{udp: {destinationPort: {number: 80}}}]}]}`,
	`{tier: Admin, priority: 0, subject: {namespaces: {}}, ingress: [{action: ACTION, from: [{namespaces: {}}], protocols: [{sctp: {destinationPort: {number: 80}}}]}],
	  egress: [{action: ACTION, to: [{nodes: {matchLabels: {a: b}, matchExpressions: [{key: c, operator: In, values: [d]}]}}], protocols: [{sctp: {destinationPort: {number: 80}}}]}]}`,
	`{tier: Admin, priority: 0, subject: {namespaces: {}}, ingress: [{action: ACTION, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 1, end: 2}}}}]}],
	  egress: [{action: ACTION, to: [{networks: [10.0.0.0/8]}], protocols: [{tcp: {destinationPort: {range: {start: 1, end: 2}}}}]}]}`,
	`{tier: Admin, priority: 0, subject: {namespaces: {}}, ingress: [{action: ACTION, from: [{namespaces: {}}], protocols: [{udp: {destinationPort: {range: {start: 1, end: 2}}}}]}],
	  egress: [{action: ACTION, to: [{networks: [10.0.0.0/8]}], protocols: [{udp: {destinationPort: {range: {start: 1, end: 2}}}}]}]}`,
	`{tier: Admin, priority: 0, subject: {namespaces: {}}, ingress: [{action: ACTION, from: [{namespaces: {}}], protocols: [{sctp: {destinationPort: {range: {start: 1, end: 2}}}}]}],
	  egress: [{action: ACTION, to: [{networks: [10.0.0.0/8]}], protocols: [{sctp: {destinationPort: {range: {start: 1, end: 2}}}}]}]}`,
}

// mutant is a change that makes a valid object invalid.
type mutant struct {
	what  string
	value any
}

// mutants returns changes of v, each of which breaks one constraint of its schema.
func (s *crdSchema) mutants(at string, v any) (all []mutant) {
	add := func(what string, value any) { all = append(all, mutant{at + ": " + what, value}) }
	if s.Type == "string" {
		add("a number", 7)
	} else {
		add("a string", "seven")
	}
	for _, e := range s.Enum {
		add("enum in lower case", strings.ToLower(e))
	}
	if s.MaxLength != nil {
		add("too long", strings.Repeat("x", *s.MaxLength+1))
	}
	if s.Pattern != "" {
		add("another pattern", "-x-")
	}
	if s.Maximum != nil {
		add("above the maximum", *s.Maximum+1)
	}
	if s.Minimum != nil {
		add("below the minimum", *s.Minimum-1)
	}
	switch v := v.(type) {
	case map[string]any:
		all = append(all, s.mutantsOfObject(at, v)...)
	case []any:
		all = append(all, s.mutantsOfList(at, v)...)
	}
	return all
}

func (s *crdSchema) mutantsOfObject(at string, v map[string]any) (all []mutant) {
	with := func(name string, value any) map[string]any {
		out := maps.Clone(v)
		if out[name] = value; value == nil {
			delete(out, name)
		}
		return out
	}
	if s.Properties != nil {
		all = append(all, mutant{at + ": an unknown field", with("unheardOf", map[string]any{})})
	}
	for _, name := range s.Required {
		all = append(all, mutant{at + ": without " + name, with(name, nil)})
	}
	if s.MinProperties != nil {
		all = append(all, mutant{at + ": empty", map[string]any{}})
	}
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		if value, is := v[name]; is {
			for _, m := range s.Properties[name].mutants(at+"."+name, value) {
				all = append(all, mutant{m.what, with(name, m.value)})
			}
		} else if s.MaxProperties != nil {
			all = append(all, mutant{at + ": also " + name, with(name, s.Properties[name].sample())}, mutant{at + ": also a zero " + name, with(name, s.Properties[name].zero())})
		}
	}
	if s.AdditionalProperties != nil {
		for name, value := range v {
			for _, m := range s.AdditionalProperties.mutants(at+"."+name, value) {
				all = append(all, mutant{m.what, with(name, m.value)})
			}
		}
	}
	return all
}

func (s *crdSchema) mutantsOfList(at string, v []any) (all []mutant) {
	if s.MinItems != nil {
		all = append(all, mutant{at + ": empty", []any{}})
	}
	if s.MaxItems != nil {
		more := slices.Clone(v)
		for i := range *s.MaxItems {
			switch item := v[0].(type) {
			case string:
				more = append(more, strings.Replace(item, "10.0", fmt.Sprintf("10.%d", i+1), 1))
			default:
				more = append(more, item)
			}
		}
		all = append(all, mutant{at + ": too many", more})
	}
	if s.ListType == "set" {
		all = append(all, mutant{at + ": twice", append(slices.Clone(v), v[0])})
	}
	all = append(all, mutant{at + ": null", append(slices.Clone(v), nil)})
	for _, m := range s.Items.mutants(at+"[0]", v[0]) {
		all = append(all, mutant{m.what, append([]any{m.value}, v[1:]...)})
	}
	return all
}

// sample returns a value of the schema.
func (s *crdSchema) sample() any {
	switch s.Type {
	case "object":
		out := make(map[string]any)
		for _, name := range s.Required {
			out[name] = s.Properties[name].sample()
		}
		if s.MinProperties != nil {
			name := slices.Sorted(maps.Keys(s.Properties))[0]
			out[name] = s.Properties[name].sample()
		}
		return out
	case "array":
		return []any{s.Items.sample()}
	case "integer":
		return 9
	}
	return "web"
}

// zero returns the value that a Go field of this type has if the field is absent.
func (s *crdSchema) zero() any {
	switch s.Type {
	case "object":
		return map[string]any{}
	case "array":
		return []any{}
	case "integer":
		return 0
	}
	return ""
}

// Everything that the schema of the CustomResourceDefinition refuses is reported as a problem
// with a field and a hint. If it is in a rule, the policy accepts and passes nothing in the
// direction of the rule; otherwise, it accepts and passes nothing at all.
func TestSchemaIsChecked(t *testing.T) {
	spec := specSchema(t)
	mutants := 0
	for _, action := range []string{"Accept", "Deny", "Pass"} {
		for i, text := range schemaCases {
			var v any
			if err := yaml.Unmarshal([]byte(strings.ReplaceAll(text, "ACTION", action)), &v); err != nil {
				t.Fatal(err)
			}
			if objects, problems := readSpec(t, v); len(messages(objects, problems)) > 0 {
				t.Fatalf("case %d is not valid: %v", i, messages(objects, problems))
			}
			for _, m := range spec.mutants("spec", v) {
				mutants++
				checkMutant(t, fmt.Sprintf("case %d, %s, %s", i, action, m.what), m)
			}
		}
	}
	if mutants < 1000 {
		t.Errorf("only %d mutants", mutants)
	}
}

func checkMutant(t *testing.T, name string, m mutant) {
	t.Helper()
	objects, problems := readSpec(t, m.value)
	all := messages(objects, problems)
	if len(all) == 0 || len(objects.Policies) != 1 {
		t.Errorf("%s: %d policies, problems %v", name, len(objects.Policies), all)
		return
	}
	for _, p := range problems {
		if p.Field == "" || p.Hint == "" {
			t.Errorf("%s: incomplete: %v", name, p)
		}
	}
	p := *objects.Policies[0]
	for d, other := range []string{filter.Egress: "spec.ingress", filter.Ingress: "spec.egress"} {
		if strings.HasPrefix(m.what, other) {
			p.Rules[d] = nil // not checked: the mutant changes only the other direction
		}
	}
	if !strings.HasSuffix(m.what, "gress: null") { // the other rules stay in force
		checkClosed(t, &p)
	}
	if t.Failed() {
		t.Fatalf("%s: problems %v", name, all)
	}
}

func readSpec(t *testing.T, spec any) (Objects, []Problem) {
	t.Helper()
	text, err := json.Marshal(map[string]any{
		"apiVersion": "policy.networking.k8s.io/v1beta1", "kind": "ClusterNetworkPolicy",
		"metadata": map[string]any{"name": "p"}, "spec": spec,
	})
	if err != nil {
		t.Fatal(err)
	}
	return read(t, map[string]string{"a.json": string(text)})
}
