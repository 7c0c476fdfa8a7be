package matrix_test

import (
	"net/netip"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/matrix"
)

// No container declares a port, so Flow.Other has the answers about all ports. Where ordered
// rules are for some of them, it has an answer for each range of ports. The reasons name the
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
	w := policy.NewStore()
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
	for _, p := range policies {
		w.SetPolicy(p)
	}
	for _, p := range pods {
		w.SetPod(p)
	}
	s, _ := w.Commit()
	m := matrix.New(s, pods, policies, matrix.Options{})
	if db := m.Pods[0]; !slices.Equal(db.OrderedIngress, []string{"admin/platform", "baseline/closed"}) || db.OrderedEgress != nil || db.Ingress != nil {
		t.Errorf("the policies of db are %v and %v, isolated by %v", db.OrderedIngress, db.OrderedEgress, db.Ingress)
	}
	toDB := m.Flows[2].Other
	want := []string{"TCP 1-79", "TCP 85", "TCP 91-65535", "UDP", "SCTP", "ICMP"}
	if m.Flows[2].To != "a/db" || !slices.Equal(toDB.Allowed, want) {
		t.Errorf("to %s, %v are open, want %v", m.Flows[2].To, toDB.Allowed, want)
	}
	const why = `TCP 1-79, TCP 85, TCP 91-65535, UDP, SCTP, ICMP: egress: not isolated; ingress: not isolated; else: egress: not isolated; ingress: denied by admin/platform rule 2 "old"`
	if toDB.Why != why {
		t.Errorf("the reason is %s\nwant %s", toDB.Why, why)
	}
}
