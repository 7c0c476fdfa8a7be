package reach

import (
	"sluice/filter"
	"sluice/filter/policy/inventory"
)

// places are the verdicts about flows at all addresses that their ends may have. What the policies
// of one end decide depends only on the address of the other, so a flow is allowed if src allows it
// at the address of the source, and dst at that of the destination.
type places struct {
	src map[string]bool // by the place of the source: what the policies of the destination decide
	dst map[string]bool // by the place of the destination: what the policies of the source decide
}

// anyPlace is the place of an address that is known: it is compared with every place.
const anyPlace = ""

// places returns the verdicts of a family about the first port of a span.
func (f *flows) places(family int, s Span) places {
	p := places{make(map[string]bool), make(map[string]bool)}
	if f.state == unjudged {
		p.src[anyPlace], p.dst[anyPlace] = true, true
		return p
	}
	src, dst := ends(f.from, f.to, f.relation)
	for _, r := range f.m.routes(src, dst, f.to, f.relation) {
		if r.family() != family {
			continue
		}
		v := f.m.verdict(r.flow, s.Protocol, s.Low)
		p.src[f.m.placeOf(r.flow, false)] = v.Ingress.Allows()
		p.dst[f.m.placeOf(r.flow, true)] = v.Egress.Allows()
		for _, at := range r.elsewhere {
			v := f.m.verdict(at.Flow, s.Protocol, s.Low)
			if at.To {
				p.dst[f.m.placeOf(at.Flow, true)] = v.Egress.Allows()
			} else {
				p.src[f.m.placeOf(at.Flow, false)] = v.Ingress.Allows()
			}
		}
	}
	return p
}

// placeOf returns the place of an end of a flow: anyPlace if its address is known.
func (m *Map) placeOf(f inventory.Flow, to bool) string {
	e, addr := f.From, f.Key.SrcAddr()
	if to {
		e, addr = f.To, f.Key.DstAddr()
	}
	if !e.Assumed {
		return anyPlace
	}
	return "in " + m.inventory.PlaceOf(addr)
}

// opens reports whether a flow that is denied by p is allowed by now: at some of the possible
// addresses, or at all.
func (p places) opens(now places) likelihood {
	src, dst := aligned(p.src, now.src), aligned(p.dst, now.dst)
	both := func(v verdicts) bool { return v.now && !v.was }
	denied := func(v verdicts) bool { return !v.was }
	allowed := func(v verdicts) bool { return v.now }
	can := some(src, both) && some(dst, allowed) || some(src, allowed) && some(dst, both)
	must := every(src, allowed) && every(dst, allowed) && (every(src, denied) || every(dst, denied))
	return likelihoodOf(can, must)
}

// verdicts are those at one place in both clusters.
type verdicts struct{ was, now bool }

// aligned returns the verdicts of both clusters at each place that both have. An address that is
// known in one cluster is compared with all places of the other, and so is every place if they
// have none in common.
func aligned(was, now map[string]bool) (all []verdicts) {
	for place, w := range was {
		if n, has := now[place]; has {
			all = append(all, verdicts{w, n})
		}
	}
	if len(all) > 0 {
		return all
	}
	for _, w := range was {
		for _, n := range now {
			all = append(all, verdicts{w, n})
		}
	}
	return all
}

func some(all []verdicts, f func(verdicts) bool) bool {
	for _, v := range all {
		if f(v) {
			return true
		}
	}
	return false
}

func every(all []verdicts, f func(verdicts) bool) bool {
	return !some(all, func(v verdicts) bool { return !f(v) })
}

// family returns 0 for IPv4.
func (r *route) family() int {
	if r.flow.Key.SrcAddr().Is4() {
		return 0
	}
	return 1
}

// verdict decides about a port of a flow. The field Pair is not set: it differs between ports
// that have the same verdict for the same reason.
func (m *Map) verdict(f inventory.Flow, proto filter.Protocol, port uint16) filter.Verdict {
	src, dst := f.Key.SrcAddr(), f.Key.DstAddr()
	if proto == filter.ICMP && src.Is6() {
		proto = filter.ICMPv6
	}
	f.Key = filter.NewKey(src, dst, proto, port)
	v := m.inventory.Decide(f)
	v.Pair = false
	return v
}
