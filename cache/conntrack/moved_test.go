package conntrack_test

import (
	"net/netip"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"

	"sluice/cache/conntrack"
	"sluice/filter"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

var stranger = netip.MustParseAddr("198.51.100.1") // has no pod, and no policy names it

// guardFrom returns guard's policy with one more rule: it allows TCP to a port from a block of addresses.
func guardFrom(app string, port int32, block string, ports ...int32) *networkingv1.NetworkPolicy {
	p, from := guard(app, ports...), guard(app, port).Spec.Ingress[0]
	from.From = []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: block}}}
	p.Spec.Ingress = append(p.Spec.Ingress, from)
	return p
}

// Of two outside addresses with the same ID, a new policy allows only the one that was tracked last, by a
// block of addresses. The connection of the other address is revoked.
func TestOutsideAddressMoves(t *testing.T) {
	h, k := quiet(t)
	h.store.SetPolicy(netpol.Read(guard("p0", 80, 81)))
	h.publishAndSweep(conntrack.ScopeFlows)
	denied := h.open(filter.NewKey(stranger, k.DstAddr(), filter.TCP, 80), false)
	k.Port = 81 // a key that no cache has, so that the evaluator tracks this address last
	h.open(k, false)
	k.Port = 80
	kept := h.open(k, false)

	h.store.SetPolicy(netpol.Read(guardFrom("p0", 80, "203.0.113.0/24", 81)))
	h.publishAndSweep(conntrack.ScopeFlows)
	h.want(denied, revoked)
	h.want(kept, allowed)
}

// A policy allows a block of addresses that begins with those of this node's pods. The first address is pending,
// so that connections from it are denied. A connection from another address of the block, which was revoked before,
// is allowed again.
func TestOutsideAddressIsPending(t *testing.T) {
	h, k := quiet(t)
	h.FailOpen = false
	h.store.SetPodRanges([]netip.Prefix{nodePods})
	h.store.SetNodeRanges("other", nil)
	h.store.SetPod(kubepod.Read(pod("p1", h.addrs[5])))
	h.store.SetPolicy(netpol.Read(guard("p1", 80)))
	h.publishAndSweep(conntrack.ScopeFlows)
	ref := h.open(filter.NewKey(netip.MustParseAddr("10.1.9.9"), k.DstAddr(), filter.TCP, 80), false)
	h.store.SetPolicy(netpol.Read(guard("p0", 81)))
	h.publishAndSweep(conntrack.ScopeFlows)
	h.want(ref, revoked)
	h.open(filter.NewKey(stranger, h.addrs[5], filter.TCP, 80), false) // an address outside the block

	h.store.SetPolicy(netpol.Read(guardFrom("p0", 80, allPods.String())))
	h.publishAndSweep(conntrack.ScopeFlows)
	h.want(ref, allowed)
}
