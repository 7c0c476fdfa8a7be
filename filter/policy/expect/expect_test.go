package expect_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/expect"
	"sluice/filter/policy/explain"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

const pods = `
- {metadata: {namespace: default, name: db, labels: {role: db}}, spec: {containers: [{ports: [{name: redis, containerPort: 6379}]}]}, status: {podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]}}
- {metadata: {namespace: default, name: web, labels: {role: frontend}}, status: {podIPs: [{ip: 10.0.0.2}, {ip: "fd00::2"}]}}
- {metadata: {namespace: default, name: job}, status: {podIPs: [{ip: 10.0.0.3}, {ip: "fd00::3"}]}}
`

const policies = `
- metadata: {namespace: default, name: access-demo1}
  spec: {podSelector: {matchLabels: {role: db}}, ingress: [{from: [{podSelector: {matchLabels: {role: frontend}}}], ports: [{port: 6379}]}]}
- metadata: {namespace: default, name: same}
  spec: {podSelector: {matchLabels: {role: db}}, ingress: [{from: [{podSelector: {matchLabels: {role: frontend}}}], ports: [{port: 6379}]}]}
- metadata: {namespace: default, name: four}
  spec: {podSelector: {matchLabels: {role: db}}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.3/32}}]}]}
- metadata: {namespace: default, name: out}
  spec: {podSelector: {matchLabels: {role: db}}, policyTypes: [Egress], egress: [{ports: [{port: 443}]}]}
`

func cluster(t *testing.T) *expect.Cluster {
	t.Helper()
	var p []*corev1.Pod
	var n []*networkingv1.NetworkPolicy
	for text, into := range map[string]any{pods: &p, policies: &n} {
		if err := yaml.UnmarshalStrict([]byte(text), into); err != nil {
			t.Fatal(err)
		}
	}
	v := inventory.New(inventory.Objects{Pods: kubepod.ReadAll(p), Policies: netpol.ReadAll(n)})
	return clusterOf(v)
}

func clusterOf(v *inventory.Inventory) *expect.Cluster {
	return &expect.Cluster{Inventory: v, Explain: explain.New(v, v.Problems)}
}

// A test passes, fails or cannot run.
func TestRun(t *testing.T) {
	tests := []struct {
		name, test string
		flows      int
		failures   []string // the details, in order
		err        string
	}{
		{"allowed", `{from: web, to: db, port: 6379, expect: allow}`, 2, nil, ""},
		{"denied", `{from: job, to: db, port: 6379, expect: deny, policy: access-demo1}`, 2, []string{"expected deny, got allow"}, ""},
		{"only one family", `{from: job, to: db, port: 6379, expect: allow}`, 2, []string{"expected allow, got deny"}, ""},
		{"by address", `{from: 10.0.0.3, to: db, port: 6379, expect: allow, policy: default/four}`, 1, nil, ""},
		{"every combination", `{from: [web, "fd00::3"], to: [db, job], port: [6379, 80], expect: deny}`, 12, []string{
			"expected deny, got allow", "expected deny, got allow", "expected deny, got allow", "expected deny, got allow", "expected deny, got allow"}, ""},
		{"named port", `{from: web, to: db, port: redis, expect: Allow}`, 2, nil, ""},
		{"ICMP", `{from: web, to: db, protocol: icmp, expect: deny}`, 2, nil, ""},
		{"any policy that allows", `{from: web, to: db, port: 6379, expect: allow, policy: same}`, 2, nil, ""},
		{"another policy", `{from: web, to: db, port: 6379, expect: allow, policy: four}`, 2, []string{"expected to be allowed by default/four, but no rule of it allows this flow"}, ""},
		{"isolates the end that denies", `{from: web, to: db, port: 80, expect: deny, policy: four}`, 2, nil, ""},
		{"isolates the other end", `{from: web, to: db, port: 80, expect: deny, policy: out}`, 2, []string{"expected to be denied by default/out, but no rule of default/access-demo1, default/four, default/same allows it"}, ""},
		{"allowed with no policy", `{from: web, to: job, port: 80, expect: allow, policy: out}`, 2, []string{"expected to be allowed by default/out, but no rule of it allows this flow"}, ""},
		{"itself", `{from: db, to: db, port: 80, expect: allow}`, 2, nil, ""},
		{"no such policy", `{from: web, to: db, port: 80, expect: deny, policy: access-demo}`, 0, nil, "there is no policy default/access-demo in the manifests: did you mean default/access-demo1?"},
		{"no such pod", `{from: [web, wbe], to: db, port: 6379, expect: allow}`, 2, nil, "did you mean default/web"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := expect.Parse([]byte("manifests: x\ntests:\n- " + tt.test))
			if err != nil {
				t.Fatal(err)
			}
			r := f.Tests[0].Run(cluster(t))
			var details []string
			for i, failure := range r.Failures {
				details = append(details, failure.Detail)
				if i < 3 && len(failure.Explanations) == 0 {
					t.Error("a failure is not explained")
				}
			}
			if strings.Join(details, "\n") != strings.Join(tt.failures, "\n") {
				t.Errorf("failures %q, want %q", details, tt.failures)
			}
			if (r.Err != nil) != (tt.err != "") || r.Err != nil && !strings.Contains(r.Err.Error(), tt.err) {
				t.Errorf("error %v, want %q", r.Err, tt.err)
			}
			if r.Flows != tt.flows || r.Passed() != (tt.failures == nil && tt.err == "") {
				t.Errorf("%d flows, want %d; passed %t", r.Flows, tt.flows, r.Passed())
			}
		})
	}
}

// The text "admin/x" names two policies: the ClusterNetworkPolicy x of the tier Admin, and the
// NetworkPolicy x of the namespace admin. A denial by either of them is the expected one.
func TestTextOfTwoPolicies(t *testing.T) {
	var o inventory.Objects
	for name, addr := range map[string]string{"a": "10.0.0.1", "b": "10.0.0.2"} {
		p := &policy.Pod{Namespace: "admin", Name: name, Addrs: []netip.Addr{netip.MustParseAddr(addr)}}
		o.Pods = append(o.Pods, p)
	}
	everyPod := policy.Peer{Namespaces: labels.Everything(), Pods: labels.Everything()}
	o.Policies = []*policy.Policy{{
		Ref: policy.Ref{Kind: "ClusterNetworkPolicy", Name: "x"}, Tier: policy.Admin, Subject: policy.Subject{Namespaces: labels.Everything(), Pods: labels.Everything()},
		Rules: [2][]policy.Rule{filter.Ingress: {{Action: policy.Deny, Peers: []policy.Peer{everyPod}, Ports: []policy.PortRange{{Protocol: filter.TCP, Low: 80, High: 80}}}}},
	}, {
		Ref: policy.Ref{Kind: "NetworkPolicy", Namespace: "admin", Name: "x"}, Tier: policy.NetworkPolicy, Subject: policy.Subject{Namespace: "admin", Pods: labels.Everything()},
		Isolates: [2]bool{filter.Ingress: true},
	}}
	v := inventory.New(o)
	f, err := expect.Parse([]byte("manifests: x\ntests:\n- {from: admin/a, to: admin/b, port: [80, 81], expect: deny, policy: admin/x}"))
	if err != nil {
		t.Fatal(err)
	}
	if r := f.Tests[0].Run(clusterOf(v)); !r.Passed() || r.Flows != 2 {
		t.Errorf("%d flows, %v, failures %+v", r.Flows, r.Err, r.Failures)
	}
}

func TestParse(t *testing.T) {
	f, err := expect.Parse([]byte(`# comment
---
manifests: [./a, b.yaml]
nodeIPs: 192.0.2.1
tests:
- {name: one, from: web, to: [a/b, "10.0.0.1"], port: [80, http], protocol: udp, expect: deny, policy: p}
- {from: web, to: db, protocol: ICMP, expect: allow}
`))
	if err != nil {
		t.Fatal(err)
	}
	one, two := f.Tests[0], f.Tests[1]
	if strings.Join(f.Manifests, " ") != "./a b.yaml" || f.NodeIPs[0].String() != "192.0.2.1" || one.Name != "one" ||
		one.To[0].Name+" "+one.To[1].Name != "a/b 10.0.0.1" || strings.Join(one.Ports, " ") != "80 http" || one.Policy != "p" {
		t.Errorf("%+v", f)
	}
	if two.Name != "web to db, ICMP: allow" || len(two.Ports) != 1 || two.Ports[0] != "" {
		t.Errorf("%+v", two)
	}
}

// Each error names the test and the field, and has a hint.
func TestParseSaysWhatIsWrong(t *testing.T) {
	const good = "{name: good, from: web, to: db, port: 80, expect: deny}"
	tests := map[string]struct{ text, says string }{
		"not YAML":         {"tests: [", "correct the YAML"},
		"a list":           {"- a", "it is a list: write an object with manifests, nodeIPs, podCIDRs, tests"},
		"empty":            {"", "tests: there are none"},
		"no tests":         {"manifests: x", "tests: there are none"},
		"tests no list":    {"manifests: x\ntests: " + good, "tests: it is an object: write a list"},
		"two documents":    {"manifests: x\ntests: [" + good + "]\n---\nmanifests: x\n", "several YAML documents"},
		"pod range":        {"podCIDRs: [10.0.0.0]\ntests: [" + good + "]", `podCIDRs: "10.0.0.0" is not a CIDR: write one`},
		"field":            {"manifest: x\ntests: [" + good + "]", "manifest: there is no such field: write manifests"},
		"doubled":          {"manifests: x\nmanifests: y\ntests: [" + good + "]", "already set"},
		"node":             {"manifests: x\nnodeIPs: [here]\ntests: [" + good + "]", `nodeIPs: "here" is not an IP address`},
		"field of a test":  {"manifests: x\ntests: [" + good + ", {name: two, form: web}]", "two, form: there is no such field: write from"},
		"odd field":        {"manifests: x\ntests: [{reason: web}]", "test 1, reason: there is no such field: the fields here are name, from"},
		"no from":          {"manifests: x\ntests: [{name: some, to: db, port: 80, expect: deny}]", "some, from: it is missing: write namespace/name"},
		"null":             {"manifests: x\ntests: [{from: [web, null], to: db, port: 80, expect: deny}]", "from: null is neither a string nor a number"},
		"an object":        {"manifests: x\ntests: [{from: {a: b}, to: db, port: 80, expect: deny}]", "from.a: there is no such field: the fields here are namespace, labels, not"},
		"field of an end":  {"manifests: x\ntests: [{from: {namspace: b}, to: db, port: 80, expect: deny}]", "from.namspace: there is no such field: write namespace"},
		"empty end":        {"manifests: x\ntests: [{from: {}, to: db, port: 80, expect: deny}]", "from: it is an empty object: write namespace, labels or not"},
		"empty not":        {"manifests: x\ntests: [{from: {not: []}, to: db, port: 80, expect: deny}]", "from.not: it is missing"},
		"not in not":       {"manifests: x\ntests: [{from: {not: {not: a}}, to: db, port: 80, expect: deny}]", "from.not.not: it is inside of another not"},
		"bad label":        {"manifests: x\ntests: [{from: {labels: {app: a b}}, to: db, port: 80, expect: deny}]", "from.labels: "},
		"number as label":  {"manifests: x\ntests: [{from: {labels: {tier: 1}}, to: db, port: 80, expect: deny}]", "from.labels: it is a number: write a string, in quotes"},
		"no port":          {"manifests: x\ntests: [{from: web, to: db, expect: deny}]", "port: it is missing: write a number"},
		"port of ICMP":     {"manifests: x\ntests: [{from: web, to: db, protocol: icmp, port: 8, expect: deny}]", "port: ICMP has no ports"},
		"protocol":         {"manifests: x\ntests: [{from: web, to: db, protocol: http, port: 8, expect: deny}]", `protocol: "http" is not supported: write TCP`},
		"protocol's type":  {"manifests: x\ntests: [{from: web, to: db, protocol: 6, port: 8, expect: deny}]", "protocol: it is a number: write a string, in quotes"},
		"no expectation":   {"manifests: x\ntests: [{from: web, to: db, port: 8}]", "expect: it is missing: write allow or deny"},
		"odd expectation":  {"manifests: x\ntests: [{from: web, to: db, port: 8, expect: allowed}]", `expect: "allowed" is neither: write allow or deny`},
		"several mistakes": {"manifests: x\ntests: [{to: db, port: 8, expect: maybe}, {from: web}]", "test 2, to: it is missing"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f, err := expect.Parse([]byte(tt.text))
			if err == nil {
				for i := range f.Tests {
					if wrong := f.Tests[i].Wrong; wrong != nil {
						err = errors.Join(err, fmt.Errorf("%s, %w", f.Tests[i].Name, wrong))
					}
				}
			}
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v\nwant %q", err, tt.says)
			}
		})
	}
}
