package explain_test

import (
	"net/netip"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/explain"
	"sluice/filter/policy/inventory"
)

// clusterPolicy returns a policy for the pods of namespace default that match a selector.
func clusterPolicy(name string, tier policy.Tier, priority int32, subject labels.Selector, rules map[filter.Direction][]policy.Rule) *policy.Policy {
	return &policy.Policy{
		Ref: policy.Ref{Kind: "ClusterNetworkPolicy", Name: name}, Tier: tier, Priority: priority,
		Subject: policy.Subject{Namespaces: labels.SelectorFromSet(labels.Set{"kubernetes.io/metadata.name": "default"}), Pods: subject},
		Rules:   [2][]policy.Rule{filter.Egress: rules[filter.Egress], filter.Ingress: rules[filter.Ingress]},
	}
}

func pods(text string) policy.Peer {
	sel, _ := labels.Parse(text)
	return policy.Peer{Namespaces: labels.Everything(), Pods: sel}
}

func rule(name string, a policy.Action, peers ...policy.Peer) policy.Rule {
	return policy.Rule{Name: name, Action: a, Peers: peers}
}

func tcp(r policy.Rule, port uint16) policy.Rule {
	r.Ports = []policy.PortRange{{Protocol: filter.TCP, Low: port, High: port}}
	return r
}

func ingress(rules ...policy.Rule) map[filter.Direction][]policy.Rule {
	return map[filter.Direction][]policy.Rule{filter.Ingress: rules}
}

func egress(rules ...policy.Rule) map[filter.Direction][]policy.Rule {
	return map[filter.Direction][]policy.Rule{filter.Egress: rules}
}

// The text names each tier with its result, and the change that would allow a denied flow.
func TestTiers(t *testing.T) {
	db := labels.SelectorFromSet(labels.Set{"role": "db"})
	all := labels.Everything()
	everyPod := pods("")
	platform := clusterPolicy("platform", policy.Admin, 10, db, ingress(
		rule("monitoring", policy.Accept, pods("role=monitor")),
		rule("quarantine", policy.Deny, pods("role=backend"), pods("quarantined=true")),
		rule("to-teams", policy.Pass, everyPod),
	))
	closed := clusterPolicy("closed", policy.Baseline, 0, all, ingress(
		tcp(rule("", policy.Accept, pods("role=frontend")), 80),
		rule("", policy.Deny, everyPod),
	))
	for name, tt := range map[string]struct {
		policies []*policy.Policy
		network  map[string]string
		flow     string
		want     string
	}{
		"denied by Admin": {[]*policy.Policy{platform, closed}, map[string]string{"x": "{podSelector: {}, ingress: [{}]}"}, "web db tcp 80", `
deny (ingress-denied): default/web (10.0.0.2, fd00::2) to default/db (10.0.0.1, fd00::1), TCP 80
  egress: default/web is not isolated: no policy selects it in this direction
  ingress: default/db: denied by the tier Admin
    Admin: denied by admin/platform rule 2 "quarantine": pods with role=backend in every namespace, every port
      admin/platform rule 1 "monitoring" allows pods with role=monitor in every namespace; default/web has role=backend
      admin/platform rule 3 "to-teams" passes it, but comes later
    NetworkPolicy: not evaluated (default/x)
    Baseline: not evaluated (baseline/closed)
to allow the ingress: add before spec.ingress[1] of ClusterNetworkPolicy platform
    - action: Accept
      from:
      - pods:
          namespaceSelector:
            matchLabels:
              kubernetes.io/metadata.name: default
          podSelector:
            matchLabels:
              role: backend
      protocols:
      - tcp:
          destinationPort:
            number: 80
  or to another policy of tier Admin, with a priority below 10
  no NetworkPolicy overrides the tier Admin; a rule with the action Pass leaves the flow to NetworkPolicies
`},
		"passed by Admin, allowed by a NetworkPolicy": {[]*policy.Policy{platform, closed}, map[string]string{"x": "{podSelector: {}, ingress: [{ports: [{port: 80}]}]}"}, "shop/cart db tcp 80", `
allow (rule): shop/cart (10.0.0.3) to default/db (10.0.0.1), TCP 80
  egress: shop/cart is not isolated: no policy selects it in this direction
  ingress: default/db: allowed by the tier NetworkPolicy
    Admin: passed by admin/platform rule 3 "to-teams": every pod in every namespace, every port
    NetworkPolicy: isolated by default/x
      default/x rule 1 allows it: every peer, TCP 80
    Baseline: not evaluated (baseline/closed)
`},
		"passed by Admin, denied by a NetworkPolicy": {[]*policy.Policy{platform}, map[string]string{"x": "{podSelector: {matchLabels: {role: db}}, ingress: [{from: [{namespaceSelector: {}}], ports: [{port: 80}]}]}"}, "shop/cart db tcp 81", `
deny (ingress-denied): shop/cart (10.0.0.3) to default/db (10.0.0.1), TCP 81
  egress: shop/cart is not isolated: no policy selects it in this direction
  ingress: default/db: denied by the tier NetworkPolicy
    Admin: passed by admin/platform rule 3 "to-teams": every pod in every namespace, every port
    NetworkPolicy: isolated by default/x; no rule allows it
      default/x rule 1 allows TCP 80; the flow is to TCP 81
to allow the ingress: add to spec.ingress[0].ports of NetworkPolicy default/x
    - port: 81
      protocol: TCP
`},
		"denied by Baseline": {[]*policy.Policy{platform, closed}, nil, "shop/cart db tcp 81", `
deny (ingress-denied): shop/cart (10.0.0.3) to default/db (10.0.0.1), TCP 81
  egress: shop/cart is not isolated: no policy selects it in this direction
  ingress: default/db: denied by the tier Baseline
    Admin: passed by admin/platform rule 3 "to-teams": every pod in every namespace, every port
    NetworkPolicy: no policy selects it
    Baseline: denied by baseline/closed rule 2: every pod in every namespace, every port
      baseline/closed rule 1 allows TCP 80; the flow is to TCP 81
to allow the ingress: add before spec.ingress[1] of ClusterNetworkPolicy closed
    - action: Accept
      from:
      - pods:
          namespaceSelector:
            matchLabels:
              kubernetes.io/metadata.name: shop
          podSelector:
            matchLabels:
              role: frontend
      protocols:
      - tcp:
          destinationPort:
            number: 81
  or override the tier Baseline with a NetworkPolicy that selects default/db and allows the flow; it denies all other ingress
`},
		"allowed by Admin": {[]*policy.Policy{clusterPolicy("platform", policy.Admin, 10, db, ingress(tcp(rule("monitoring", policy.Accept, everyPod), 80)))}, map[string]string{"x": "{podSelector: {}}"}, "shop/cart db tcp 80", `
allow (rule): shop/cart (10.0.0.3) to default/db (10.0.0.1), TCP 80
  egress: shop/cart is not isolated: no policy selects it in this direction
  ingress: default/db: allowed by the tier Admin
    Admin: allowed by admin/platform rule 1 "monitoring": every pod in every namespace, TCP 80
    NetworkPolicy: not evaluated (default/x)
`},
		"no rule matches": {[]*policy.Policy{clusterPolicy("platform", policy.Admin, 10, db, ingress(rule("", policy.Deny, pods("role=x"))))}, nil, "web db tcp 80", `
allow (not-denied): default/web (10.0.0.2, fd00::2) to default/db (10.0.0.1, fd00::1), TCP 80
  egress: default/web is not isolated: no policy selects it in this direction
  ingress: default/db: allowed, because no tier denies it
    Admin: no rule of admin/platform matches
    NetworkPolicy: no policy selects it
`},
		"a rule that comes too late": {[]*policy.Policy{
			clusterPolicy("a", policy.Admin, 5, db, ingress(rule("", policy.Deny, everyPod))),
			clusterPolicy("b", policy.Admin, 6, db, ingress(tcp(rule("web", policy.Accept, pods("role=backend")), 80))),
		}, nil, "web db tcp 80", `
deny (ingress-denied): default/web (10.0.0.2, fd00::2) to default/db (10.0.0.1, fd00::1), TCP 80
  egress: default/web is not isolated: no policy selects it in this direction
  ingress: default/db: denied by the tier Admin
    Admin: denied by admin/a rule 1: every pod in every namespace, every port
      admin/b rule 1 "web" allows it, but comes later
to allow the ingress: add before spec.ingress[0] of ClusterNetworkPolicy a
    - action: Accept
      from:
      - pods:
          namespaceSelector:
            matchLabels:
              kubernetes.io/metadata.name: default
          podSelector:
            matchLabels:
              role: backend
      protocols:
      - tcp:
          destinationPort:
            number: 80
  or to another policy of tier Admin, with a priority below 5
  no NetworkPolicy overrides the tier Admin; a rule with the action Pass leaves the flow to NetworkPolicies
`},
		"the own node": {[]*policy.Policy{clusterPolicy("platform", policy.Admin, 0, db, egress(
			tcp(rule("node", policy.Deny, policy.Peer{Networks: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("192.0.2.0/24")}}), 22)))},
			map[string]string{"x": "{podSelector: {}, policyTypes: [Egress]}"}, "db 192.0.2.1 tcp 80", `
allow (own-node): default/db (10.0.0.1) to 192.0.2.1 (node of default/db), TCP 80
  egress: default/db: allowed, because no tier denies it
    Admin: no rule of admin/platform matches
    NetworkPolicy: does not apply to the pod's own node
  ingress: 192.0.2.1 has a node's address, which no policy isolates
`},
		"to the own node, without ordered rules": {nil, map[string]string{"x": "{podSelector: {}, policyTypes: [Egress]}"}, "db 192.0.2.1 tcp 80", `
allow (own-node): default/db (10.0.0.1) to 192.0.2.1 (node of default/db), TCP 80
  NetworkPolicies do not apply to what a pod sends to its own node: no policy applies
`},
	} {
		t.Run(name, func(t *testing.T) {
			got := "\n" + explain.Text(ask(t, read(t, tt.network, tt.policies...), question(tt.flow)))
			if got != tt.want {
				t.Errorf("the text is%s\nwant%s", got, tt.want)
			}
		})
	}
}

// The explanation of a flow contains the wanted texts.
func TestOrderedWords(t *testing.T) {
	all, everyPod := labels.Everything(), pods("")
	full := make([]policy.Rule, 25)
	for i := range full {
		full[i] = rule("", policy.Deny, everyPod)
	}
	node := policy.Peer{Nodes: labels.SelectorFromSet(labels.Set{"pool": "web"})}
	named := rule("", policy.Accept, everyPod)
	named.Ports = []policy.PortRange{{Protocol: filter.TCP, Name: "dns"}, {Protocol: filter.UDP, Name: "dns"}, {Protocol: filter.SCTP, Name: "dns"}}
	closed := clusterPolicy("x", policy.Admin, 3, all, ingress(rule("", policy.Accept, everyPod)))
	closed.Subject.Malformed = true
	closed.Problems = []policy.Problem{{Policy: closed.Ref, Field: "spec.subject", Detail: "it has no field", Hint: "write pods"}}
	// Only the first problems of a policy are reported one by one. Here, that of the ingress rule is
	// among the "3 more problems".
	many := clusterPolicy("x", policy.Admin, 3, all, ingress(policy.Rule{Action: policy.Deny}))
	many.Problems = []policy.Problem{{Policy: many.Ref, Field: "spec.egress[0].action", Detail: "it is no action", Hint: "write Accept"}, {Policy: many.Ref, Field: "spec", Detail: "it has 3 more problems"}}
	for name, tt := range map[string]struct {
		policy *policy.Policy
		flow   string
		want   []string
	}{
		"many problems": {many, "web db tcp 80", []string{
			"to allow the ingress: first correct spec.egress[0].action of ClusterNetworkPolicy x: write Accept\n",
		}},
		"no note about the own node": {clusterPolicy("x", policy.Admin, 3, all, egress(rule("", policy.Deny, networks("169.254.0.0/16")))), "web 169.254.20.10 tcp 53", []string{
			"  ingress: 169.254.20.10 is not a pod, so no policy isolates it\nto allow the egress: add before",
		}},
		"a full policy": {clusterPolicy("x", policy.Admin, 3, all, ingress(full...)), "web db tcp 80", []string{
			"  ClusterNetworkPolicy x has 25 ingress rules, the most that the API allows: add it to another policy of tier Admin, with a priority below 3\n",
		}},
		"a full policy that is the first": {clusterPolicy("x", policy.Admin, 0, all, ingress(full...)), "web db tcp 80", []string{
			"  ClusterNetworkPolicy x has 25 ingress rules, the most that the API allows: combine some of them\n",
		}},
		"a named port": {clusterPolicy("x", policy.Admin, 3, all, ingress(named, rule("", policy.Deny, everyPod))), "web db tcp 80", []string{
			"admin/x rule 1 allows port dns; the flow is to TCP 80, and default/db has dns=UDP 53\n",
		}},
		"nodes": {clusterPolicy("x", policy.Admin, 3, all, egress(rule("", policy.Accept, node), rule("", policy.Deny, everyNetwork))), "web 203.0.113.9 tcp 80", []string{
			"Admin: denied by admin/x rule 2: addresses in 0.0.0.0/0, every port\n",
			"admin/x rule 1 allows nodes with pool=web; 203.0.113.9 is not the address of a known node\n",
			"      to:\n      - networks:\n        - 203.0.113.9/32\n",
		}},
		"networks": {clusterPolicy("x", policy.Admin, 3, all, egress(rule("", policy.Accept, networks("192.0.2.0/24", "198.51.100.0/24")), rule("", policy.Deny, everyNetwork))), "web 203.0.113.9 tcp 80", []string{
			"admin/x rule 1 allows addresses in 192.0.2.0/24, 198.51.100.0/24; 203.0.113.9 is outside all of them\n",
		}},
		"names": {clusterPolicy("x", policy.Admin, 3, all, egress(rule("", policy.Accept, policy.Peer{Names: []string{"a.example"}}), rule("", policy.Deny, everyNetwork))), "web 203.0.113.9 tcp 80", []string{
			"admin/x rule 1 allows the names a.example; names are not supported and match nothing\n",
		}},
		"ICMP": {clusterPolicy("x", policy.Admin, 3, all, ingress(tcp(rule("", policy.Accept, everyPod), 80), rule("", policy.Deny, everyPod))), "web db icmp", []string{
			"admin/x rule 1 allows TCP 80; the flow is ICMP, which only a rule without protocols matches\n",
			"    - action: Accept\n      from:\n      - pods:\n          namespaceSelector:\n            matchLabels:\n              kubernetes.io/metadata.name: default\n          podSelector:\n            matchLabels:\n              role: backend\n  only a rule without protocols matches this flow, so this opens every port of every protocol\n  or",
		}},
		"a malformed subject": {closed, "web db tcp 80", []string{
			"Admin: denied by admin/x rule 1: every peer, every port\n    not understood: ClusterNetworkPolicy x, spec.subject: it has no field\n",
			"to allow the ingress: first correct spec.subject of ClusterNetworkPolicy x: write pods\n",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			got := explain.Text(ask(t, read(t, nil, tt.policy), question(tt.flow)))
			for _, want := range tt.want {
				if !strings.Contains(got, want) {
					t.Errorf("the text does not contain\n%s\nbut is\n%s", want, got)
				}
			}
		})
	}
}

var everyNetwork = networks("0.0.0.0/0")

func networks(texts ...string) (p policy.Peer) {
	for _, text := range texts {
		p.Networks = append(p.Networks, netip.MustParsePrefix(text))
	}
	return p
}

// A missing Namespace is noted only if all Namespaces could be read.
func TestNotesAboutMissingNamespaces(t *testing.T) {
	var both []*policy.Pod
	for i, name := range []string{"web", "db"} {
		both = append(both, &policy.Pod{Namespace: "lab", Name: name, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})}})
	}
	quarantine := clusterPolicy("x", policy.Admin, 3, labels.Everything(), ingress(rule("", policy.Deny, pods(""))))
	quarantine.Subject.Namespaces = labels.SelectorFromSet(labels.Set{"quarantine": "yes"})
	for unread, want := range map[bool]string{false: "there is no Namespace lab", true: ""} {
		c := explain.New(inventory.New(inventory.Objects{Pods: both, Policies: []*policy.Policy{quarantine}, NamespacesUnread: unread}), nil)
		all, err := c.ExplainAll(explain.Question{From: "lab/web", To: "lab/db", Port: "53"})
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(all[0].Notes, "\n"); (got == "") != (want == "") || !strings.HasPrefix(got, want) {
			t.Errorf("with unread %v, notes %q, want %q", unread, got, want)
		}
	}
}
