package engine

import (
	"net/netip"

	"sluice/cache"
	"sluice/filter"
	"sluice/filter/packet"
	"sluice/filter/policy"
)

// decideToNode decides a packet to this node. Its source is a pod of this node, or an address
// that is expected to belong to a pod of this node (policy.PendingLocal).
//
// The destination need not be an address that the snapshot lists: it may be a multicast group,
// or an address that was added a moment ago. The verdict about such a packet is stored nowhere,
// because for packets to other hosts the same key has another verdict. For a mid-stream packet,
// the opposite direction is not checked, because what the node sends to its pods is always
// allowed.
func (e *Evaluator) decideToNode(p *packet.Packet, v *filter.Verdict) (pending netip.Addr) {
	k := &p.Key
	translated, possible := e.translated(k)
	switch {
	case translated:
		v.Action = filter.Skip
		return pending
	case possible && k.HidesPorts():
		// The decoder could not read the port, but IPVS may read it, and send the packet to a
		// pod. A verdict for packets to the node would let such a packet pass unjudged.
		v.Action, v.Reason = filter.Deny, filter.Malformed
		return pending
	}
	srcAddr := k.SrcAddr()
	src := e.snapshot.Endpoint(srcAddr)
	if src == nil && e.snapshot.JudgesOwnNode() && e.snapshot.Pending(srcAddr) == policy.PendingLocal {
		*v = filter.Verdict{Action: filter.Allow, Reason: filter.OwnNode}
		return srcAddr
	}
	if !e.snapshot.Endpoint(k.DstAddr()).IsNode() {
		switch *v = e.snapshot.DecideToNode(k); {
		case v.Reason == filter.NamespaceNotKnown:
			return srcAddr
		case e.denyHidden(k, v, true):
			return pending
		}
		e.trackToNode(k, v, src)
		return pending
	}
	var ends cache.Ends
	var fresh bool
	switch *v, ends, fresh = e.flows.Decide(e.snapshot, k); {
	case v.Reason == filter.NamespaceNotKnown:
		return srcAddr
	case e.denyHidden(k, v, true):
		return pending
	}
	if src.EffectToNode() == policy.Open {
		return pending // the kernel's cache needs no verdict about such a source; if a policy comes to concern it, a sweep follows
	}
	if fresh {
		e.trackToNode(k, v, src)
	}
	if e.config.Memory != nil && !possible && ends.ByIDs {
		key := *k
		if v.Pair {
			key = key.Pair()
		}
		e.config.Memory.Remember(policy.NewIDKey(&key, ends.SrcID, ends.DstID), v.Answer())
	}
	return pending
}

func (e *Evaluator) translated(k *filter.Key) (translated, possible bool) {
	if e.config.Translated == nil {
		return false, false
	}
	return e.config.Translated(*k)
}

// trackToNode passes an allowed key to Tracker if policies may deny what src sends to its node.
//
// A flow that no rule allows is tracked too, unlike a flow between pods, because a later policy
// may deny it. A sweep checks all connections of a pod only after the first policy that may deny
// what the pod sends to its node; later sweeps may check only tracked flows.
func (e *Evaluator) trackToNode(key *filter.Key, v *filter.Verdict, src *policy.Endpoint) {
	if e.config.Tracker == nil || v.Action != filter.Allow || v.Reason == filter.SameAddress || src.EffectToNode() == policy.Open {
		return
	}
	k := *key
	if v.Pair {
		k = k.Pair()
	}
	e.config.Tracker.Track(e.snapshot, k)
}
