package explain_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"sluice/filter/policy"
	"sluice/filter/policy/explain"
)

const manifests = `
{kind: Namespace, metadata: {name: default}}
---
{kind: Namespace, metadata: {name: shop, labels: {project: myproject}}}
---
{kind: Pod, metadata: {namespace: default, name: db, labels: {role: db}},
  spec: {containers: [{name: c, ports: [{name: redis, containerPort: 6379}, {name: dns, containerPort: 53, protocol: UDP}]}]},
  status: {podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}], hostIP: 192.0.2.1}}
---
{kind: Pod, metadata: {namespace: default, name: web, labels: {role: backend, pod-template-hash: x1}}, status: {podIPs: [{ip: 10.0.0.2}, {ip: "fd00::2"}]}}
---
{kind: Pod, metadata: {namespace: shop, name: cart, labels: {role: frontend}}, status: {podIPs: [{ip: 10.0.0.3}]}}
---
{kind: Pod, metadata: {namespace: shop, name: old}, status: {podIPs: [{ip: "fd00::4"}]}}
---
{kind: Pod, metadata: {namespace: shop, name: agent}, spec: {hostNetwork: true}, status: {podIP: 192.0.2.2}}
---
{kind: Pod, metadata: {namespace: shop, name: done}, status: {podIP: 10.0.0.5, phase: Succeeded}}
---
{kind: Pod, metadata: {namespace: shop, name: new}, status: {phase: Pending}}
---
{kind: Pod, metadata: {namespace: shop, name: late, creationTimestamp: "2026-01-02T00:00:00Z"}, status: {podIP: 10.0.0.6}}
---
{kind: Pod, metadata: {namespace: shop, name: early, creationTimestamp: "2026-01-01T00:00:00Z"}, status: {podIP: 10.0.0.6}}
`

// read returns a cluster with the namespaces and pods in the constant manifests. policies has
// the specs of NetworkPolicies in the namespace default, by name. ordered are further policies.
func read(t *testing.T, policies map[string]string, ordered ...*policy.Policy) *explain.Cluster {
	t.Helper()
	o := objects{Ordered: ordered}
	for _, text := range strings.Split(manifests, "---\n") {
		var kind metav1.TypeMeta
		decode(t, text, &kind)
		if kind.Kind == "Namespace" {
			o.Namespaces = append(o.Namespaces, decode(t, text, &corev1.Namespace{}))
		} else {
			o.Pods = append(o.Pods, decode(t, text, &corev1.Pod{}))
		}
	}
	for name, spec := range policies {
		p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
		decode(t, spec, &p.Spec)
		o.Policies = append(o.Policies, p)
	}
	c, _ := clusterOf(o)
	return c
}

func decode[T any](t *testing.T, text string, into T) T {
	t.Helper()
	if err := yaml.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return into
}

func ask(t *testing.T, c *explain.Cluster, q explain.Question) []explain.Explanation {
	t.Helper()
	flows, err := c.Flows(q)
	if err != nil {
		t.Fatal(err)
	}
	var all []explain.Explanation
	for _, f := range flows {
		all = append(all, c.Explain(f))
	}
	return all
}

// question parses a question such as "default/web default/db tcp 80".
func question(text string) explain.Question {
	parts := append(strings.Fields(text), "")
	return explain.Question{From: parts[0], To: parts[1], Protocol: parts[2], Port: parts[3]}
}

// The explanation of the flow contains all texts of want. The policy x has the given spec,
// and selects db if the spec has no podSelector.
func TestWords(t *testing.T) {
	tests := []struct {
		name, spec, flow string
		want             []string
	}{
		{"another label", `ingress: [{from: [{podSelector: {matchLabels: {role: frontend}}}], ports: [{port: 6379}]}]`, "web db tcp 6379", []string{
			"deny (ingress-denied): default/web (10.0.0.2, fd00::2) to default/db (10.0.0.1, fd00::1), TCP 6379",
			"egress: default/web is not isolated",
			"ingress: default/db is isolated by default/x; no rule allows it",
			"default/x rule 1 allows pods with role=frontend in namespace default; default/web has role=backend",
			"to allow the ingress: add to spec.ingress[0].from of NetworkPolicy default/x\n    - podSelector:\n        matchLabels:\n          role: backend\n",
		}},
		{"another port", `ingress: [{}, {from: [{podSelector: {}}], ports: [{port: 6379}]}]`, "cart.shop db tcp 80", []string{
			"default/x rule 1 allows it: every peer, every port",
		}},
		{"only the port", `ingress: [{from: [{podSelector: {}}], ports: [{port: 6379}, {port: 8000, endPort: 8100}, {protocol: UDP}]}]`, "web db tcp 80", []string{
			"default/x rule 1 allows TCP 6379, TCP 8000-8100, every UDP port; the flow is to TCP 80",
			"add to spec.ingress[0].ports of NetworkPolicy default/x\n    - port: 80\n      protocol: TCP\n",
		}},
		{"peer and port", `ingress: [{from: [{podSelector: {matchLabels: {role: frontend}}}], ports: [{port: 6379}]}]`, "web db tcp 80", []string{
			"default/x rule 1 allows pods with role=frontend in namespace default; default/web has role=backend; and it allows TCP 6379; the flow is to TCP 80",
			"add to spec.ingress of NetworkPolicy default/x\n    - from:\n      - podSelector:\n          matchLabels:\n            role: backend\n      ports:\n      - port: 80\n        protocol: TCP\n",
		}},
		{"the nearer rule", `ingress: [{from: [{podSelector: {matchLabels: {a: b}}}], ports: [{port: 1}]}, {ports: [{port: 2}]}]`, "web db tcp 80", []string{
			"no rule allows it\n    default/x rule 2 allows TCP 2; the flow is to TCP 80\n",
		}},
		{"namespace without label", `ingress: [{from: [{namespaceSelector: {matchLabels: {project: myproject}}}]}]`, "web db tcp 6379", []string{
			"default/x rule 1 allows every pod in namespaces with project=myproject; namespace default has no label project",
		}},
		{"other namespace", `ingress: [{from: [{podSelector: {matchLabels: {role: frontend}}}]}]`, "cart.shop db tcp 6379", []string{
			"allows pods with role=frontend in namespace default; shop/cart is in namespace shop\n",
			"    - from:\n      - namespaceSelector:\n          matchLabels:\n            kubernetes.io/metadata.name: shop\n        podSelector:\n          matchLabels:\n            role: frontend\n      ports:\n      - port: 6379\n",
		}},
		{"both selectors", `ingress: [{from: [{podSelector: {matchLabels: {tier: x}}, namespaceSelector: {matchLabels: {project: other}}}]}]`, "cart.shop db tcp 6379", []string{
			"allows pods with tier=x in namespaces with project=other; namespace shop has project=myproject, and shop/cart has no label tier",
		}},
		{"expressions", `ingress: [{from: [{podSelector: {matchExpressions: [{key: role, operator: NotIn, values: [backend, db]}, {key: a, operator: Exists}, {key: role, operator: DoesNotExist}, {key: tier, operator: In, values: [x, w]}]}}]}]`, "web db tcp 6379", []string{
			"allows pods with a label a and role not backend or db and no label role and tier=w or x in namespace default; default/web has no label a and role=backend and no label tier",
		}},
		{"exception", `ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]}]`, "10.1.2.3 db tcp 6379", []string{
			"10.1.2.3 (no pod) to default/db (10.0.0.1)",
			"egress: 10.1.2.3 is not a pod, so no policy isolates it",
			"allows addresses in 10.0.0.0/8 except 10.1.0.0/16; 10.1.2.3 is in 10.1.0.0/16, which is excluded",
			"    - from:\n      - ipBlock:\n          cidr: 10.1.2.3/32\n      ports:\n      - port: 6379\n",
		}},
		{"outside of a block", `ingress: [{from: [{podSelector: {}}, {ipBlock: {cidr: 10.0.0.0/8}}]}]`, "203.0.113.9 db tcp 6379", []string{
			"allows addresses in 10.0.0.0/8; 203.0.113.9 is outside it (the other peer of the rule does not match either)\n",
		}},
		{"an address and a selector", `ingress: [{from: [{podSelector: {}}]}]`, "203.0.113.9 db tcp 6379", []string{
			"allows every pod in namespace default; 203.0.113.9 is not the address of a pod",
		}},
		{"host network", `ingress: [{from: [{namespaceSelector: {}}]}]`, "shop/agent db tcp 6379", []string{
			"egress: shop/agent has a node's address, which no policy isolates",
			"allows every pod in every namespace; shop/agent is in the host network and has its node's address, which no selector matches",
			"cidr: 192.0.2.2/32",
		}},
		{"name of another number", `ingress: [{ports: [{port: redis}, {port: 80}]}]`, "web db tcp 81", []string{
			"allows TCP redis, TCP 80; the flow is to TCP 81, and default/db has redis=TCP 6379",
		}},
		{"name that is not there", `ingress: [{ports: [{port: http}]}]`, "web db tcp 80", []string{
			"allows TCP http; the flow is to TCP 80, and default/db has no port named http; it has dns=UDP 53, redis=TCP 6379",
		}},
		{"ICMP", `ingress: [{ports: [{port: 80}]}]`, "web db icmp", []string{
			"deny (ingress-denied): default/web (10.0.0.2, fd00::2) to default/db (10.0.0.1, fd00::1), ICMP\n",
			"allows TCP 80; the flow is ICMP, which only a rule without ports allows",
			"add to spec.ingress of NetworkPolicy default/x\n    - from:\n      - podSelector:\n          matchLabels:\n            role: backend\n",
		}},
		{"no rule", ``, "web db tcp 80", []string{"default/x has no ingress rule: it allows nothing", "add to spec.ingress of"}},
		{"egress", "policyTypes: [Egress]\negress: [{to: [{ipBlock: {cidr: 192.0.2.0/24}}], ports: [{port: 443}]}]", "db 203.0.113.9 tcp 443", []string{
			"deny (egress-denied): default/db (10.0.0.1) to 203.0.113.9 (no pod), TCP 443",
			"allows addresses in 192.0.2.0/24; 203.0.113.9 is outside it",
			"to allow the egress: add to spec.egress[0].to of",
		}},
		{"egress to a name outside", "policyTypes: [Egress]\negress: [{ports: [{port: http}]}]", "db 203.0.113.9 tcp 80", []string{
			"allows TCP http; the flow is to TCP 80, and 203.0.113.9 is not a pod, so it has no port names",
		}},
		{"malformed block", `ingress: [{from: [{ipBlock: {cidr: 010.0.0.0/8}}]}]`, "web db tcp 80", []string{
			"rule 1 allows nothing; spec.ingress[0].from[0].ipBlock.cidr cannot be understood",
			`not understood: default/x, spec.ingress[0].from[0].ipBlock.cidr: "010.0.0.0/8" is not a CIDR`,
		}},
		{"a port in quotes", `ingress: [{ports: [{port: "6379"}]}]`, "web db tcp 6379", []string{
			"rule 1 allows nothing; spec.ingress[0].ports[0].port cannot be understood\n",
			"to allow the ingress: first correct spec.ingress[0].ports[0].port of NetworkPolicy default/x: take the quotes away to mean the number: port: 6379\n",
		}},
		{"a port in quotes beside another", `ingress: [{ports: [{port: 6379}, {port: "80"}]}]`, "web db tcp 80", []string{
			"first correct spec.ingress[0].ports[1].port of NetworkPolicy default/x: take the quotes away to mean the number: port: 80\n",
		}},
		{"a broken rule beside the nearest", `ingress: [{ports: [{port: 6379}]}, {from: [{podSelector: {matchLabels: {a: b}}}], ports: [{port: "80"}]}]`, "web db tcp 80", []string{
			"to allow the ingress: apply this NetworkPolicy, for example with kubectl apply -f -\n",
		}},
		{"a number that is not a port", `ingress: [{ports: [{port: 70000}]}]`, "web db tcp 80", []string{
			"not understood: default/x, spec.ingress[0].ports[0].port: 70000 is not a port\n", "write a number from 1 to 65535",
		}},
		{"malformed subject", "podSelector: {matchExpressions: [{key: role, operator: Is}]}\ningress: [{}]", "db web tcp 80", []string{
			"default/x has no ingress rule: it allows nothing", "not understood: default/x, spec.podSelector", "to allow the ingress: first correct spec.podSelector of NetworkPolicy default/x",
		}},
		{"itself", ``, "db db tcp 80", []string{"allow (same-address): default/db (10.0.0.1, fd00::1) to default/db (10.0.0.1, fd00::1), TCP 80\n  a pod always reaches itself: no policy applies\n"}},
		{"own node", ``, "192.0.2.1 db tcp 80", []string{"allow (own-node)"}},
		{"families differ", `ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}]}]`, "web db tcp 80", []string{
			"allow (rule): default/web (10.0.0.2) to default/db (10.0.0.1), TCP 80\n",
			"default/x rule 1 allows it: addresses in 10.0.0.0/8, every port\n",
			"deny (ingress-denied): default/web (fd00::2) to default/db (fd00::1), TCP 80\n",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			spec := tt.spec
			if !strings.HasPrefix(spec, "podSelector") {
				spec = "podSelector: {matchLabels: {role: db}}\n" + spec
			}
			c := read(t, map[string]string{"x": spec})
			q := question(strings.Replace(tt.flow, "cart.shop", "shop/cart", 1))
			got := explain.Text(ask(t, c, q))
			for _, want := range tt.want {
				if !strings.Contains(got, want) {
					t.Errorf("the text does not contain\n%s\nbut is\n%s", want, got)
				}
			}
		})
	}
}

// If many rules are equally near, a few are shown and the others are counted.
func TestManyRulesAreCounted(t *testing.T) {
	rule := `{from: [{podSelector: {matchLabels: {role: frontend}}}]}`
	c := read(t, map[string]string{
		"a": "podSelector: {}\ningress: [" + rule + ", " + rule + ", " + rule + "]",
		"b": "podSelector: {}\ningress: [" + rule + ", " + rule + "]",
		"c": "podSelector: {}",
	})
	e := ask(t, c, question("web db tcp 80"))[0]
	if n := len(e.Ingress.Nearest); n != 3 || e.Ingress.More != 2 || e.Ingress.Nearest[2].Rule.Index != 2 {
		t.Errorf("%d rules and %d more", n, e.Ingress.More)
	}
	for _, want := range []string{"(2 other rules are as near)", "default/c has no ingress rule"} {
		if got := explain.Text([]explain.Explanation{e}); !strings.Contains(got, want) {
			t.Errorf("the text does not contain %q:\n%s", want, got)
		}
	}
}

func TestQuestionsThatHaveNoAnswer(t *testing.T) {
	tests := map[string]struct{ question, says string }{
		"no pod":              {"default/wbe db tcp 80", "from: there is no pod or workload default/wbe: did you mean default/web?"},
		"in other namespace":  {"cart db tcp 80", "there is no pod or workload default/cart: did you mean shop/cart?"},
		"nothing like it":     {"web nowhere/thing tcp 80", "to: there is no namespace nowhere: the namespaces here are default, shop"},
		"too many parts":      {"a/b/c/d db tcp 80", "neither a name nor an address"},
		"ended":               {"shop/done db tcp 80", "pod shop/done has ended (Succeeded)"},
		"address of another":  {"shop/early db tcp 80", "the address 10.0.0.6 of pod shop/early belongs to shop/late"},
		"families":            {"shop/cart shop/old tcp 80", "shop/cart has only IPv4, shop/old only IPv6"},
		"protocol":            {"web db tpc 80", `protocol: "tpc" is not supported: write TCP, UDP, SCTP or ICMP`},
		"no port":             {"web db tcp", "port: it is missing"},
		"port 0":              {"web db tcp 0", "from 1 to 65535"},
		"port 65536":          {"web db tcp 65536", "from 1 to 65535"},
		"a range":             {"web db tcp 80-90", "from 1 to 65535"},
		"a name":              {"web db tcp http", `default/db has no TCP port named "http": write one of its names, dns (UDP 53), redis (TCP 6379), or a number`},
		"name and protocol":   {"web db udp redis", `no UDP port named "redis"`},
		"no names":            {"db web tcp http", `default/web has no port named "http", and no other named port`},
		"a name outside":      {"web 192.0.2.9 tcp http", "is outside the cluster and has no port names"},
		"a name on the host":  {"web shop/agent tcp http", "port names have no meaning"},
		"a port with ICMP":    {"web db icmp 8", "ICMP has no ports: leave it out"},
		"a sign and a number": {"web db tcp +80x", "is not a port"},
	}
	c := read(t, nil)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := c.Flows(question(tt.question)); err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v; want %q", err, tt.says)
			}
		})
	}
	if _, err := c.Flows(explain.Question{To: "db", Port: "80"}); err == nil || !strings.Contains(err.Error(), "from: it is missing") {
		t.Errorf("without from: %v", err)
	}
}

func TestNamesOfPortsAreLookedUp(t *testing.T) {
	flows, err := read(t, nil).Flows(question("10.0.0.2 db udp dns"))
	if err != nil || len(flows) != 1 || flows[0].Key.String() != "10.0.0.2 > 10.0.0.1 UDP 53" {
		t.Errorf("%v, %v", flows, err)
	}
}
