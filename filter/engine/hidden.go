package engine

import (
	"sluice/filter"
	"sluice/filter/policy"
)

// An ordered rule that denies some ports does not match a packet whose ports the agent cannot
// read, and a packet that no rule matches would pass. But the receiver may be able to read the
// ports: a pod can put so many IPv6 extension headers before a TCP header that the queue's copy
// of the packet ends before the TCP header. So such a packet passes only if all packets between
// its two addresses pass. Where only NetworkPolicies decide, that is true of every allowed packet
// without readable ports.

// denyHidden denies an allowed packet if policies may deny the ports that it hides. toNode is set
// if the packet is for this node.
func (e *Evaluator) denyHidden(k *filter.Key, v *filter.Verdict, toNode bool) (denied bool) {
	if v.Action != filter.Allow || v.Pair || !k.HidesPorts() || !e.mayDeny(k, toNode) {
		return false
	}
	*v = filter.Verdict{Action: filter.Deny, Reason: filter.Malformed}
	return true
}

// mayDeny reports whether policies may deny packets between the addresses of the key.
func (e *Evaluator) mayDeny(k *filter.Key, toNode bool) bool {
	srcAddr, dstAddr := k.SrcAddr(), k.DstAddr()
	src, dst := e.snapshot.Endpoint(srcAddr), e.snapshot.Endpoint(dstAddr)
	if toNode || dst.IsNode() || !policy.DecidedByIDs(srcAddr, dstAddr, src, dst) { // the last one is for nodes of pods elsewhere
		return src.EffectToNode() != policy.Open
	}
	return src.Effect(filter.Egress) != policy.Open || dst.Effect(filter.Ingress) != policy.Open
}
