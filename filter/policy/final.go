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
	switch {
	case own == PendingLocal:
		return depends
	case own == PendingRemote, side.Allows():
		return always // a rule that allows an address allows whichever pod has it
	case peer == Known, e == nil, e.class == nil:
		return never
	case e.class.groups[d].rules.mayAllow(k, d, e.class.ports):
		return depends
	}
	return never
}

// reach is where a rule could allow a pod that is not known yet: the ports of the
// rules that name pods by labels, and all named ports, which the pod may have at any
// number. It takes no more room than the rules.
type reach struct {
	portless bool
	all      [3]bool
	spans    [3][]portRange // sorted, and apart from each other
	named    []portName     // of rules that name pods
	anyNamed [3]bool        // also of rules that name addresses, or all
}

func reachOf(d filter.Direction, policies []*policy) (out reach) {
	for _, p := range policies {
		for i := range p.rules[d] {
			out.add(&p.rules[d][i])
		}
	}
	for t := range out.spans {
		out.spans[t] = merged(out.spans[t])
	}
	slices.SortFunc(out.named, comparePortNames)
	out.named = slices.Clip(slices.Compact(out.named))
	return out
}

func (r *reach) add(o *rule) {
	pods := len(o.some)+len(o.whole) > 0
	r.portless = r.portless || pods && o.portless
	for _, p := range o.ports {
		t := portTableOf(p.protocol)
		switch {
		case p.name != "":
			r.anyNamed[t] = true
			if pods {
				r.named = append(r.named, portName{p.name, p.protocol})
			}
		case !pods: // what it allows does not depend on the pod
		case p.all():
			r.all[t] = true
		default:
			r.spans[t] = append(r.spans[t], p)
		}
	}
}

func comparePortNames(a, b portName) int {
	if a.protocol != b.protocol {
		return int(a.protocol) - int(b.protocol)
	}
	switch {
	case a.name < b.name:
		return -1
	case a.name > b.name:
		return 1
	}
	return 0
}

// merged joins ranges that touch or overlap.
func merged(list []portRange) []portRange {
	slices.SortFunc(list, func(a, b portRange) int { return int(a.low) - int(b.low) })
	out := list[:0]
	for _, p := range list {
		if n := len(out); n > 0 && int(p.low) <= int(out[n-1].high)+1 {
			out[n-1].high = max(out[n-1].high, p.high)
			continue
		}
		out = append(out, p)
	}
	return slices.Clone(out)
}

// mayAllow is that of the rules, or of any part of them.
func (r *ruleSet) mayAllow(k *filter.Key, d filter.Direction, ports []namedPort) bool {
	for _, part := range r.parts {
		if part.mayAllow(k, d, ports) {
			return true
		}
	}
	return r.reach.mayAllow(k, d, ports)
}

// mayAllow reports whether a rule could allow a flow in a direction that is pending
// at the other end. ports are those of the end that the rules are for.
func (r *reach) mayAllow(k *filter.Key, d filter.Direction, ports []namedPort) bool {
	if r.portless {
		return true
	}
	if k.Transport != filter.Ported {
		return false
	}
	t := portTableOf(k.Protocol)
	if r.all[t] || within(r.spans[t], k.Port) {
		return true
	}
	if d == filter.Egress {
		return r.anyNamed[t] // names are looked up at the destination
	}
	for i := range ports {
		if np := &ports[i]; np.number == k.Port && np.protocol == k.Protocol {
			if _, found := slices.BinarySearchFunc(r.named, portName{np.name, np.protocol}, comparePortNames); found {
				return true
			}
		}
	}
	return false
}

// within reports whether a port is in one of the ranges.
func within(list []portRange, port uint16) bool {
	low, high := 0, len(list)
	for low < high {
		if mid := int(uint(low+high) >> 1); list[mid].low <= port {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low > 0 && list[low-1].high >= port
}
