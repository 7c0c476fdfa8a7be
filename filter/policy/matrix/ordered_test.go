package matrix_test

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/matrix"
)

// If several ordered rules decide about different ports, each reason has an answer of its own, with the
// tier and the rule.
func TestOrderedRules(t *testing.T) {
	peers := []policy.Peer{{Namespaces: labels.Everything(), Pods: labels.Everything()}}
	tcp := func(low, high uint16) []policy.PortRange {
		return []policy.PortRange{{Protocol: filter.TCP, Low: low, High: high}}
	}
	rules := []policy.Rule{
		{Name: "team", Action: policy.Pass, Peers: peers, Ports: tcp(85, 86)},
		{Name: "old", Action: policy.Deny, Peers: peers, Ports: tcp(80, 90)},
	}
	policies := []*policy.Policy{
		{
			Ref: policy.Ref{Kind: "ClusterNetworkPolicy", Name: "platform"}, Tier: policy.Admin, Rules: [2][]policy.Rule{filter.Ingress: rules},
			Subject: policy.Subject{Namespaces: labels.Everything(), Pods: labels.SelectorFromSet(labels.Set{"app": "db"})},
		},
		{
			Ref: policy.Ref{Kind: "ClusterNetworkPolicy", Name: "closed"}, Tier: policy.Baseline,
			Rules:   [2][]policy.Rule{filter.Ingress: {{Action: policy.Deny, Peers: peers, Ports: tcp(86, 87)}}},
			Subject: policy.Subject{Namespaces: labels.Everything(), Pods: labels.Everything()},
		},
	}
	pods := []*policy.Pod{
		{Namespace: "a", Name: "db", Labels: labels.Set{"app": "db"}, Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}},
		{Namespace: "a", Name: "web", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.2")}},
	}
	m := matrix.New(inventory.New(inventory.Objects{Pods: pods, Policies: policies}), matrix.Options{})
	if db := m.From[0]; !slices.Equal(db.OrderedIngress, []string{"admin/platform", "baseline/closed"}) || db.OrderedEgress != nil || db.Ingress != nil {
		t.Errorf("the policies of db are %v and %v, isolated by %v", db.OrderedIngress, db.OrderedEgress, db.Ingress)
	}
	i := slices.IndexFunc(m.Flows, func(c *matrix.Cell) bool { return c.From == "a/web" && c.To == "a/db" })
	got := m.Flows[i].Answers
	want := []matrix.Answer{
		{Ports: []string{"TCP 1-79", "TCP 91-65535", "UDP", "SCTP", "ICMP"}, Verdict: "allow", Why: "egress: not isolated; ingress: not isolated"},
		{Ports: []string{"TCP 85"}, Verdict: "allow", Why: `egress: not isolated; ingress: passed by admin/platform rule 1 "team", then not isolated`},
		{Ports: []string{"TCP 80-84", "TCP 87-90"}, Verdict: "deny", Why: `egress: not isolated; ingress: denied by admin/platform rule 2 "old"`},
		{Ports: []string{"TCP 86"}, Verdict: "deny", Why: `egress: not isolated; ingress: passed by admin/platform rule 1 "team", then denied by baseline/closed rule 1`},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the answers are\n%v, want\n%v", got, want)
	}
}
