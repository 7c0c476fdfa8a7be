package policy

import (
	"slices"

	"sluice/filter"
)

// Pending describes an end of a flow whose address no pod is known to have.
type Pending uint8

const (
	// Known is not pending: the owner of the address is known, or it is an address
	// that no pod should have.
	Known Pending = iota
	// PendingRemote should be a pod of another node, which enforces the policies that
	// isolate that pod.
	PendingRemote
	// PendingLocal should be a pod of this node.
	PendingLocal
)

// Final reports whether v, the verdict about k, is the same whichever pods turn out
// to have the pending addresses. Such a packet need not wait for them.
//
// A pod of this node could be isolated by any policy, also one of which the news
// comes with that of the pod: so until it is known nothing is finally allowed to or
// from it, but with its own node. It parses nothing and allocates nothing.
func (s *Snapshot) Final(k *filter.Key, v *filter.Verdict, src, dst Pending) bool {
	from, to := s.Endpoint(k.SrcAddr()), s.Endpoint(k.DstAddr())
	switch v.Reason {
	case filter.SameAddress:
		return src != PendingLocal
	case filter.OwnNode:
		return from.IsNode() || to.IsNode() // or else only as long as the address is not a pod's
	}
	egress := s.outcome(k, filter.Egress, &v.Egress, from, src, dst)
	ingress := s.outcome(k, filter.Ingress, &v.Ingress, to, dst, src)
	return egress == never || ingress == never || egress == always && ingress == always
}

// outcome is what the policies of one end let pass, whichever pods there are.
type outcome uint8

const (
	depends outcome = iota // on the pods
	always
	never
)

func (s *Snapshot) outcome(k *filter.Key, d filter.Direction, side *filter.Side, e *Endpoint, own, peer Pending) outcome {
	l := e.chain(d)
	switch {
	case own == PendingLocal:
		return depends
	case own == PendingRemote:
		return always
	case l != nil && l.isolation == nil && peer != Known:
		return depends // the pod may match a rule before the one that matches its address
	case side.Allows():
		return always // a rule that allows an address allows any pod that has it
	case peer == Known, l == nil:
		return never
	case l.rules.mayAllow(k, d, e.class.ports):
		return depends
	}
	return never
}

// mayAllow reports whether a rule could allow a flow in a direction that is pending
// at the other end, and is not allowed with no pod there. That is a rule for the
// flow's port that names pods by labels; or one for a named port, which the pod may
// have at any number. ports are those of the end that the rules are for.
func (r *ruleSet) mayAllow(k *filter.Key, d filter.Direction, ports []namedPort) bool {
	for _, part := range r.parts() {
		if part.mayAllow(k, d, ports) {
			return true
		}
	}
	if r.portless.namesPods() {
		return true
	}
	if k.Transport != filter.Ported {
		return false
	}
	t := portTableOf(k.Protocol)
	if r.ports[t].all.namesPods() || r.ports[t].at(k.Port).namesPods() {
		return true
	}
	if r.extra != nil && r.extra.trees[t].namesPods(k.Port) {
		return true
	}
	if d == filter.Egress {
		return r.anyNamed[t] // names are looked up at the destination
	}
	for i := range ports {
		if np := &ports[i]; np.number == k.Port && np.protocol == k.Protocol && r.named[portName{np.name, np.protocol}].namesPods() {
			return true
		}
	}
	return false
}

// namesPods reports whether the set has a rule for a port that names pods.
func (t *portTree) namesPods(port uint16) bool {
	for node := t.leaf(port); node > 0; node /= 2 {
		if t.sets[node].namesPods() {
			return true
		}
	}
	return false
}

// namesPods reports whether the set has a rule that names pods by labels.
func (s *peerSet) namesPods() bool {
	if s == nil {
		return false
	}
	return len(s.peers) > 0 || s.more != nil && slices.ContainsFunc(s.more.list, (*peerSet).namesPods)
}
