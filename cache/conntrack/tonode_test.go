package conntrack_test

import (
	"net/netip"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/cache/conntrack"
	"sluice/filter"
	"sluice/filter/policy"
)

// Connections from a pod to its node are revoked by ordered rules only, also those to an address
// of the node that the snapshot lacks. Connections that the node has opened are never revoked.
func TestConnectionsToTheNode(t *testing.T) {
	bridge := netip.MustParseAddr("10.1.0.254")
	r := newFixture(t)
	r.Local = func() ([]netip.Addr, error) { return []netip.Addr{node, bridge}, nil }
	toNode, toBridge := r.track(web, node, filter.TCP, 22, allowed), r.track(web, bridge, filter.TCP, 22, allowed)
	other, dns := r.track(db, node, filter.TCP, 22, allowed), r.track(web, bridge, filter.UDP, 53, allowed)
	probe, fromBridge := r.track(node, web, filter.TCP, 80, 0), r.track(bridge, web, filter.TCP, 80, 0)
	closed := &policy.Policy{
		Ref: policy.Ref{Kind: "NetworkPolicy", Namespace: "default", Name: "closed"}, Tier: policy.NetworkPolicy,
		Subject: policy.Subject{Namespace: "default", Pods: labels.Everything()}, Isolates: [2]bool{true, true},
	}
	r.store.SetPolicy(closed)
	r.commit(conntrack.ScopeFlows)
	for _, ref := range []conntrack.Ref{toNode, toBridge, other, dns} {
		r.want(ref, allowed)
	}
	r.store.SetPolicy(&policy.Policy{
		Ref: policy.Ref{Kind: "Ordered", Name: "p", Namespace: "default"}, Tier: policy.Admin,
		Subject: policy.Subject{Namespace: "default", Pods: labels.SelectorFromSet(labels.Set{"app": "web"})},
		Rules:   [2][]policy.Rule{filter.Egress: {{Action: policy.Deny, Ports: []policy.PortRange{{Protocol: filter.TCP, Low: 22, High: 22}}}}},
	})
	r.commit(conntrack.ScopeFlows)
	for ref, mark := range map[conntrack.Ref]uint32{toNode: revoked, toBridge: revoked, other: allowed, dns: allowed, probe: 0, fromBridge: 0} {
		r.want(ref, mark)
	}
	r.store.DeletePolicy(policy.Ref{Kind: "Ordered", Name: "p", Namespace: "default"})
	r.commit(conntrack.ScopeFlows)
	r.want(toNode, allowed)
}
