package policy

import (
	"slices"

	"sluice/filter"
)

// Pending states whether an address is expected to belong to a pod that is not known yet, and
// on which node.
type Pending uint8

const (
	// Known is an address whose owner is known, or that is not expected to belong to a pod.
	Known Pending = iota
	// PendingRemote is an address that is expected to belong to a pod of another node. That
	// node enforces the policies that isolate the pod.
	PendingRemote
	// PendingLocal is an address that is expected to belong to a pod of this node.
	PendingLocal
)

// Final reports whether v, the verdict about k, is final: any pod that may turn out to have a
// pending address would get the same verdict. A packet with a final verdict need not be held.
// src and dst state whether the addresses of k are pending.
//
// Any policy may isolate a pending pod of this node, even a policy that the agent has not read
// yet. So a verdict that allows traffic of such a pod is final in two cases only: if the flow
// comes from this node, or if it is to this node and no policy may deny what pods send to their
// node. Final does not allocate.
func (s *Snapshot) Final(k *filter.Key, v *filter.Verdict, src, dst Pending) bool {
	from, to := s.Endpoint(k.SrcAddr()), s.Endpoint(k.DstAddr())
	switch v.Reason {
	case filter.SameAddress:
		return src != PendingLocal
	case filter.OwnNode:
		// If neither end is this node, the verdict is not final: a pod may turn out to have the
		// address.
		return from.IsNode() || to.IsNode() && (src != PendingLocal || !s.toNode)
	}
	egress := s.outcome(k, filter.Egress, &v.Egress, from, src, dst)
	ingress := s.outcome(k, filter.Ingress, &v.Ingress, to, dst, src)
	return egress == never || ingress == never || egress == always && ingress == always
}

// outcome states whether the policies of one end allow a flow. The pod at a pending address of
// the flow is not known yet, so outcome covers every pod that may turn out to have the address.
type outcome uint8

const (
	depends outcome = iota // may be allowed for some possible pods and denied for others
	always                 // allowed for every possible pod
	never                  // denied for every possible pod
)

func (s *Snapshot) outcome(k *filter.Key, d filter.Direction, side *filter.Side, e *Endpoint, own, peer Pending) outcome {
	l := e.chain(d)
	switch {
	case own == PendingLocal:
		return depends
	case own == PendingRemote:
		return always
	case l != nil && l.isolation == nil && peer != Known:
		return s.orderedOutcome(k, d, side, e)
	case side.Allows():
		return always // a rule that allows the address allows any pod with the address
	case peer == Known, l == nil:
		return never
	case l.rules.mayAllow(k, d, e.class.ports):
		return depends
	}
	return never
}

// mayAllow reports whether a rule may allow a flow once its pending peer is known. The caller
// has checked that no rule allows the flow now. Two kinds of rules may allow it later: a rule
// that names pods by labels and includes the port of the flow; and, for egress, a rule for a
// named port, because the peer may give any port that name. ports are the named ports of the
// pod that the rules isolate.
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
		return r.anyNamed[t] // the destination, which defines the names, is not known
	}
	for i := range ports {
		if np := &ports[i]; np.number == k.Port && np.protocol == k.Protocol && r.named[portName{np.name, np.protocol}].namesPods() {
			return true
		}
	}
	return false
}

// namesPods reports whether the tree has a rule for port that names pods by labels.
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
