package manifests

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sluice/filter"
	"sluice/filter/policy"
)

var update = flag.Bool("update", false, "write the golden files")

// apiModule returns the directory of the module sigs.k8s.io/network-policy-api.
func apiModule(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/network-policy-api").Output()
	if err != nil {
		t.Fatalf("find the module of the API: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// messages returns the texts of all problems: those of the files, and those that reading the
// policies found.
func messages(objects Objects, problems []Problem) []string {
	var all []string
	for _, p := range problems {
		all = append(all, p.Error())
	}
	for _, o := range objects.Policies {
		for _, p := range o.Problems {
			if !CausedBy(p, problems) {
				all = append(all, p.Error())
			}
		}
	}
	return all
}

// The API's own test objects: those that its CustomResourceDefinition accepts are read
// without a problem, and the others have one.
func TestUpstreamObjects(t *testing.T) {
	dir := filepath.Join(apiModule(t), "pkg", "crdtest", "testdata")
	for _, kind := range []string{"valid", "invalid"} {
		files, err := filepath.Glob(filepath.Join(dir, kind, "*.yaml"))
		if err != nil || len(files) < 5 {
			t.Fatalf("%d %s objects, %v", len(files), kind, err)
		}
		for _, file := range files {
			objects, problems, err := Read(file)
			if err != nil {
				t.Fatal(err)
			}
			all := messages(objects, problems)
			if len(objects.Policies) != 1 || (len(all) == 0) != (kind == "valid") {
				t.Errorf("%s: %d policies, problems %v", filepath.Base(file), len(objects.Policies), all)
			}
			if kind == "invalid" && len(objects.Policies) == 1 {
				checkClosed(t, objects.Policies[0])
			}
		}
	}
}

// The golden file has the messages that users read about ClusterNetworkPolicies that the API
// server would refuse.
func TestClusterPolicyMessages(t *testing.T) {
	var b strings.Builder
	files, err := filepath.Glob(filepath.Join(apiModule(t), "pkg", "crdtest", "testdata", "invalid", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	own, err := filepath.Glob(filepath.Join("testdata", "clusterpolicy", "*.yaml"))
	if err != nil || len(own) == 0 {
		t.Fatalf("%d files, %v", len(own), err)
	}
	for _, file := range append(files, own...) {
		objects, problems, err := Read(file)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s\n", filepath.Base(file))
		lines := messages(objects, problems)
		for _, n := range slices.Concat(objects.Notes, objects.Holes) {
			lines = append(lines, "note: "+n.Error())
		}
		for _, line := range lines {
			fmt.Fprintf(&b, "  %s\n", strings.ReplaceAll(line, file+", ", ""))
		}
		if text := TextOf(objects.NotRead); text != "" {
			fmt.Fprintf(&b, "  not read: %s\n", text)
		}
	}
	golden(t, filepath.Join("testdata", "clusterpolicy.golden"), b.String())
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; got\n%s", path, got)
	}
}

// checkClosed checks that a policy accepts nothing and passes nothing.
func checkClosed(t *testing.T, p *policy.Policy) {
	t.Helper()
	for d := range p.Rules {
		for i, r := range p.Rules[d] {
			matches := len(r.Peers) == 0 || slices.ContainsFunc(r.Peers, func(p policy.Peer) bool { return p.Malformed == "" && p.Names == nil })
			matches = matches && (len(r.Ports) == 0 || slices.ContainsFunc(r.Ports, func(p policy.PortRange) bool { return !p.Malformed }))
			if r.Action != policy.Deny && matches || r.Action == policy.Pass {
				t.Errorf("%s rule %d may open: %+v", filter.Direction(d), i, r)
			}
		}
	}
}

// clusterPolicy returns a ClusterNetworkPolicy with these rules.
func clusterPolicy(rules string) string {
	return "apiVersion: policy.networking.k8s.io/v1beta1\nkind: ClusterNetworkPolicy\nmetadata: {name: p}\n" +
		"spec:\n  tier: Admin\n  priority: 7\n  subject: {namespaces: {}}\n" + rules
}

// The package reads both versions of the API, single objects and lists, and the fields that
// kubectl adds.
func TestClusterPolicyIsRead(t *testing.T) {
	const spec = "{tier: Baseline, priority: 0, subject: {pods: {podSelector: {}}}, egress: [{name: x, action: Pass, to: [{networks: [10.0.0.0/8]}]}]}"
	tests := map[string]struct{ text, want string }{
		"v1beta1":       {"apiVersion: policy.networking.k8s.io/v1beta1\nkind: ClusterNetworkPolicy\nmetadata: {name: p}\nspec: " + spec, "ClusterNetworkPolicy p"},
		"v1alpha2":      {"apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: p.q}\nspec: " + spec, "ClusterNetworkPolicy p.q"},
		"a list":        {"apiVersion: v1\nkind: List\nitems: [{apiVersion: policy.networking.k8s.io/v1beta1, kind: ClusterNetworkPolicy, metadata: {name: p}, spec: " + spec + "}]", "ClusterNetworkPolicy p"},
		"its list":      {"apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicyList\nmetadata: {resourceVersion: ''}\nitems: [{metadata: {name: p}, spec: " + spec + "}]", "ClusterNetworkPolicy p"},
		"an empty list": {"apiVersion: policy.networking.k8s.io/v1beta1\nkind: ClusterNetworkPolicyList\n", ""},
		"from kubectl": {`apiVersion: policy.networking.k8s.io/v1beta1
kind: ClusterNetworkPolicy
metadata:
  annotations: {kubectl.kubernetes.io/last-applied-configuration: "{}\n"}
  creationTimestamp: "2026-11-04T10:00:00Z"
  generation: 1
  managedFields: [{manager: kubectl, operation: Apply, apiVersion: policy.networking.k8s.io/v1beta1, time: "2026-11-04T10:00:00Z", fieldsType: FieldsV1, fieldsV1: {"f:spec": {}}}]
  name: p
  resourceVersion: "7"
  uid: 00000000-0000-0000-0000-000000000000
spec: ` + spec + `
status: {conditions: [{type: Accepted, status: "True", reason: Accepted, message: m, lastTransitionTime: "2026-11-04T10:00:00Z", future: 1}]}
`, "ClusterNetworkPolicy p"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			objects, problems := read(t, map[string]string{"a.yaml": tt.text})
			if all := messages(objects, problems); len(all)+len(objects.Notes)+len(objects.Outdated)+len(objects.NotRead) > 0 || names(objects) != tt.want {
				t.Errorf("read %q, problems %v, notes %v", names(objects), all, objects.Notes)
			}
			if tt.want == "" {
				return
			}
			if p := objects.Policies[0]; p.Tier != policy.Baseline || p.Ref.Namespace != "" || len(p.Rules[filter.Egress]) != 1 || p.Rules[filter.Egress][0].Name != "x" {
				t.Errorf("the policy is %+v", p)
			}
		})
	}
}

// ClusterNetworkPolicies are in no namespace: the name alone identifies them.
func TestClusterPoliciesInNamespaces(t *testing.T) {
	in := func(ns string) string {
		return strings.Replace(clusterPolicy(""), "name: p", "name: p, namespace: "+ns, 1)
	}
	objects, problems := read(t, map[string]string{"a.yaml": in("shop"), "b.yaml": in("bank"), "c.yaml": strings.Replace(clusterPolicy(""), "v1beta1", "v1alpha2", 1)})
	if names(objects) != "ClusterNetworkPolicy p" || objects.Policies[0].Ref.Namespace != "" || len(objects.Notes) != 2 {
		t.Errorf("read %q, notes %v", names(objects), objects.Notes)
	}
	if len(problems) != 2 || !strings.Contains(problems[0].Detail, "the same object is in") || !strings.Contains(problems[1].Detail, "a.yaml, document 1, which takes precedence") {
		t.Errorf("problems %v, want two of duplicates", problems)
	}
}

// A policy that cannot be read, or whose kind or version is not known, denies everything to the
// pods that it may be meant for.
func TestUnreadableClusterPolicies(t *testing.T) {
	const accept = "  ingress: [{action: Accept, from: [{namespaces: {}}]}]\n  egress: [{action: Pass, to: [{namespaces: {}}]}]\n"
	right := strings.Replace(clusterPolicy(accept), "namespaces: {}}\n", "namespaces: {matchLabels: {a: b}}}\n", 1)
	withoutSpec, _, _ := strings.Cut(right, "spec:")
	tests := map[string]struct {
		text, field, subject string
	}{
		"a future version":      {strings.Replace(right, "/v1beta1", "/v1", 1), "apiVersion", "a=b"},
		"a misspelled group":    {strings.Replace(right, "policy.networking.k8s.io", "policy.networking.k8s", 1), "apiVersion", "a=b"},
		"another group":         {strings.Replace(right, "policy.networking.k8s.io/v1beta1", "networking.k8s.io/v1", 1), "apiVersion", "a=b"},
		"the kind in capitals":  {strings.Replace(right, "kind: ClusterNetworkPolicy", "kind: clusternetworkpolicy", 1), "kind", "a=b"},
		"a misspelled list":     {strings.Replace(right, "ingress:", "ingres:", 1), "spec.ingres", "a=b"},
		"an unknown subject":    {strings.Replace(right, "subject: {namespaces: {matchLabels: {a: b}}}", "subject: {nodes: {}}", 1), "spec.subject.nodes", ""},
		"no list":               {strings.Replace(right, "ingress: [{action: Accept, from: [{namespaces: {}}]}]", "ingress: {action: Accept}", 1), "spec.ingress", "a=b"},
		"a quoted priority":     {strings.Replace(right, "priority: 7", "priority: '7'", 1), "spec.priority", "a=b"},
		"a spec that is a list": {withoutSpec + "spec: [1]\n", "spec", ""},
		"no spec":               {withoutSpec, "spec", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			objects, problems := read(t, map[string]string{"a.yaml": tt.text})
			if all := messages(objects, problems); len(all) != 1 || problems[0].Field != tt.field || problems[0].Hint == "" {
				t.Fatalf("problems %v, want one at %s", all, tt.field)
			}
			p := objects.Policies[0]
			if name != "no list" { // with "no list", the egress rule can be read and stays in force
				checkClosed(t, p)
			}
			first := p.Priority < 0 || name == "no list"
			if p.Subject.Namespaces.String() != tt.subject || p.Tier != policy.Admin || !first {
				t.Errorf("tier %v, priority %d, subject %+v", p.Tier, p.Priority, p.Subject)
			}
			if rules := p.Rules[filter.Ingress]; len(rules) != 1 || rules[0].Action != policy.Deny {
				t.Errorf("the ingress rules are %+v", rules)
			}
		})
	}
}

// A rule that breaks only a limit of the API accepts nothing or denies what it matches. A rule
// with a part whose meaning is not certain accepts nothing or denies everything.
func TestClosedClusterRules(t *testing.T) {
	long := strings.Repeat("x", 101)
	tests := map[string]struct {
		rule   string
		field  string
		action policy.Action
		peers  int  // number of peers that are not malformed
		all    bool // the rule denies everything
	}{
		"a long name, accepted":     {"{name: " + long + ", action: Accept, to: [{namespaces: {}}]}", ".name", policy.Accept, 0, false},
		"a long name, denied":       {"{name: " + long + ", action: Deny, to: [{namespaces: {}}]}", ".name", policy.Deny, 1, false},
		"a long name, passed":       {"{name: " + long + ", action: Pass, to: [{namespaces: {}}]}", ".name", policy.Deny, 1, false},
		"a network twice":           {"{action: Deny, to: [{networks: [10.0.0.0/8, 10.0.0.0/8]}]}", ".to[0].networks[1]", policy.Deny, 1, false},
		"no networks":               {"{action: Deny, to: [{networks: [], namespaces: {}}]}", ".to[0].networks", policy.Deny, 0, true},
		"no protocols":              {"{action: Accept, to: [{namespaces: {}}], protocols: []}", ".protocols", policy.Accept, 0, false},
		"no protocols, passed":      {"{action: Pass, to: [{namespaces: {}}], protocols: []}", ".protocols", policy.Deny, 0, true},
		"a port without name":       {"{action: Accept, to: [{namespaces: {}}], protocols: [{destinationNamedPort: '', tcp: {destinationPort: {number: 1}}}]}", ".protocols[0].destinationNamedPort", policy.Accept, 0, false},
		"port 0":                    {"{action: Deny, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 0, range: {start: 1, end: 2}}}}]}", ".protocols[0].tcp.destinationPort.number", policy.Deny, 0, true},
		"no pod selector":           {"{action: Accept, to: [{pods: {namespaceSelector: {matchLabels: {a: b}}}}]}", ".to[0].pods.podSelector", policy.Accept, 0, false},
		"a label without value":     {"{action: Accept, to: [{namespaces: {matchLabels: {a: }}}]}", ".to[0].namespaces.matchLabels.a", policy.Accept, 0, false},
		"a named port outside":      {"{action: Accept, to: [{nodes: {}}], protocols: [{destinationNamedPort: web}]}", ".protocols", policy.Accept, 0, false},
		"an unknown field":          {"{name: x, action: Pass, to: [{namespaces: {}}], ports: []}", ".ports", policy.Deny, 0, true},
		"an unknown peer":           {"{name: x, action: Accept, to: [{namespaces: {}}, {services: {}}]}", ".to[1].services", policy.Accept, 0, false},
		"another rule is not a map": {"{action: Deny, to: [{namespaces: {}}], protocols: []}, 7", ".protocols", policy.Deny, 0, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			objects, problems := read(t, map[string]string{"a.yaml": clusterPolicy("  egress: [{action: Accept, to: [{namespaces: {}}]}, " + tt.rule + "]\n")})
			all := messages(objects, problems)
			found := slices.ContainsFunc(problems, func(p Problem) bool { return p.Field == "spec.egress[1]"+tt.field && p.Hint != "" })
			if !found || len(all) != 1 && name != "another rule is not a map" {
				t.Errorf("problems %v, want one at %s", all, tt.field)
			}
			rules := objects.Policies[0].Rules[filter.Egress]
			if first := rules[0]; first.Action != policy.Accept || first.Peers[0].Malformed != "" {
				t.Errorf("the first rule is %+v", first)
			}
			peers := 0
			for _, p := range rules[1].Peers {
				if p.Malformed == "" {
					peers++
				}
			}
			closed := rules[1].Action == policy.Deny && peers == 0
			if rules[1].Action != tt.action || peers != tt.peers || closed != tt.all {
				t.Errorf("the rule is %+v", rules[1])
			}
		})
	}
}

// The API server drops some fields that are present but empty. Such fields are legal. One of them
// is reported, in Objects.Holes, only if it makes a rule that accepts match everything.
func TestClusterPolicyHoles(t *testing.T) {
	for rule, want := range map[string][]string{
		"{action: Accept, from: [{namespaces: {}}], protocols: }":                                                          {".protocols"},
		"{action: Deny, from: [{namespaces: {}}], protocols: }":                                                            nil,
		"{action: Accept, from: [{namespaces: {matchLabels: }}]}":                                                          {".from[0].namespaces.matchLabels"},
		"{action: Accept, from: [{pods: {namespaceSelector: , podSelector: {}}}]}":                                         {".from[0].pods.namespaceSelector"},
		"{action: Accept, from: [{pods: {podSelector: {matchLabels: }}}]}":                                                 {".from[0].pods.podSelector.matchLabels"},
		"{action: Accept, from: [{pods: {podSelector: {matchLabels: , matchExpressions: [{key: a, operator: Exists}]}}}]}": nil,
	} {
		objects, problems := read(t, map[string]string{"a.yaml": clusterPolicy("  ingress: [" + rule + "]\n")})
		var got []string
		for _, h := range objects.Holes {
			got = append(got, strings.TrimPrefix(h.Field, "spec.ingress[0]"))
		}
		if all := messages(objects, problems); !slices.Equal(got, want) || len(all) != 0 {
			t.Errorf("%s: holes %q, want %q; problems %v", rule, got, want, all)
		}
	}
}

// The former kinds of the API's group, such as AdminNetworkPolicy, are not read. Their objects
// are counted, with a hint.
func TestRetiredKinds(t *testing.T) {
	objects, problems := read(t, map[string]string{"a.yaml": "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: a}\n---\n" +
		"apiVersion: policy.networking.k8s.io/v1alpha1\nkind: BaselineAdminNetworkPolicyList\nitems: [{metadata: {name: default}}]\n"})
	if len(problems) != 0 || len(objects.Policies) != 0 || TextOf(objects.NotRead) != "1 AdminNetworkPolicy of policy.networking.k8s.io, 1 BaselineAdminNetworkPolicy of policy.networking.k8s.io" {
		t.Errorf("not read: %s; problems %v", TextOf(objects.NotRead), problems)
	}
	if len(objects.Notes) != 2 || objects.Notes[0].Object != "AdminNetworkPolicy a" || objects.Notes[1].Hint != "write a ClusterNetworkPolicy of tier Baseline" {
		t.Errorf("notes %v", objects.Notes)
	}
	_, problems = read(t, map[string]string{"a.yaml": "apiVersion: policy.networking.k8s.io/v1beta1\nkind: ClusterNetworkPolcy\nmetadata: {name: a}\n"})
	if len(problems) != 1 || !strings.Contains(problems[0].Hint, "write ClusterNetworkPolicy") {
		t.Errorf("problems %v", problems)
	}
	if Restricting(Kind{"policy.networking.k8s.io", "ClusterNetworkPolicy"}) || !Restricting(Kind{"crd.antrea.io", "ClusterNetworkPolicy"}) || !Restricting(Kind{"policy.networking.k8s.io", "AdminNetworkPolicy"}) {
		t.Error("the kinds that are read, and those that are not, are mixed up")
	}
}

// A policy without a priority comes before all others. Its rules accept nothing or deny
// everything.
func TestClusterPolicyWithoutPriority(t *testing.T) {
	objects, problems := read(t, map[string]string{"a.yaml": strings.Replace(
		clusterPolicy("  ingress: [{action: Accept, from: [{namespaces: {}}]}, {action: Pass, from: [{namespaces: {}}]}]\n"), "  priority: 7\n", "", 1)})
	if all := messages(objects, problems); len(all) != 1 || problems[0].Field != "spec.priority" {
		t.Fatalf("problems %v", all)
	}
	p := objects.Policies[0]
	checkClosed(t, p)
	if rules := p.Rules[filter.Ingress]; p.Priority >= 0 || len(rules) != 2 || rules[0].Action != policy.Accept || rules[1].Action != policy.Deny {
		t.Errorf("priority %d, rules %+v", p.Priority, p.Rules)
	}
}
