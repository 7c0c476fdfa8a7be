package engine

import (
	"sluice/filter"
	"sluice/filter/policy"
)

// An ordered rule that denies ports does not match a packet whose ports cannot be read, and what
// no rule matches passes. But the receiver may read them: a pod can put so many IPv6 extension
// headers before a TCP header that the queue's copy of the packet ends before it. So such a
// packet passes only if all packets between the two addresses do. Where only NetworkPolicies
// decide, this is always the case if it is allowed.

// denyHidden denies an allowed packet that may have ports which policies deny. toNode is set if
// the packet is for this node.
func (e *Evaluator) denyHidden(k *filter.Key, v *filter.Verdict, toNode bool) (denied bool) {
	if v.Action != filter.Allow || v.Pair || !k.HidesPorts() || !e.mayDeny(k, toNode) {
		return false
	}
	*v = filter.Verdict{Action: filter.Deny, Reason: filter.Malformed}
	return true
}

// mayDeny reports whether policies may deny packets between the addresses of the key.
func (e *Evaluator) mayDeny(k *filter.Key, toNode bool) bool {
	src, dst := e.snapshot.Endpoint(k.SrcAddr()), e.snapshot.Endpoint(k.DstAddr())
	if toNode || dst.IsNode() {
		return src.EffectToNode() != policy.Open
	}
	return src.Effect(filter.Egress) != policy.Open || dst.Effect(filter.Ingress) != policy.Open
}
