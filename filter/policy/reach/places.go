package reach

import (
	"slices"

	"sluice/filter"
	"sluice/filter/policy/inventory"
)

// places are the verdicts about a flow at all addresses that its ends may have. A place is a set of
// addresses that policies do not tell apart. The decision of one end's policies depends only on the
// place of the other end. So the flow is allowed if src is true for the place of the source, and dst
// is true for the place of the destination.
type places struct {
	src map[string]bool // by the place of the source: whether the policies of the destination allow the flow
	dst map[string]bool // by the place of the destination: whether the policies of the source allow the flow
}

// anyPlace is the place of an address that is known or does not matter; see aligned.
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
		p.src[f.m.placeIn(&r, false)] = v.Ingress.Allows()
		p.dst[f.m.placeIn(&r, true)] = v.Egress.Allows()
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

// placeIn is placeOf for the flow of a route. If the route has no alternative for that end, the verdict is
// the same at all of its places, so that it is anyPlace: in the other cluster, the verdict may depend on
// the place.
func (m *Map) placeIn(r *route, to bool) string {
	if !slices.ContainsFunc(r.elsewhere, func(at inventory.Alternative) bool { return at.To == to }) {
		return anyPlace
	}
	return m.placeOf(r.flow, to)
}

// placeOf returns the place of an end of a flow: of the destination if to is true, and of the source
// otherwise. It is anyPlace if the address is known.
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

// opens returns the likelihood that a flow that p denies is allowed by now: maybe if this happens
// at only some of the possible addresses.
func (p places) opens(now places) likelihood {
	src, dst := aligned(p.src, now.src), aligned(p.dst, now.dst)
	both := func(v verdicts) bool { return v.now && !v.was }
	denied := func(v verdicts) bool { return !v.was }
	allowed := func(v verdicts) bool { return v.now }
	can := some(src, both) && some(dst, allowed) || some(src, allowed) && some(dst, both)
	must := every(src, allowed) && every(dst, allowed) && (every(src, denied) || every(dst, denied))
	return likelihoodOf(can, must)
}

// verdicts state whether the flow is allowed at one place in the old and in the new cluster.
type verdicts struct{ was, now bool }

// aligned returns the verdicts of both clusters at each place that both have. If they have no place in
// common, such as when the address is known in only one of them, it combines each place of the old
// cluster with each place of the new one.
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

// family returns 0 for IPv4, and 1 for IPv6.
func (r *route) family() int {
	if r.flow.Key.SrcAddr().Is4() {
		return 0
	}
	return 1
}

// verdict decides about a port of a flow. It clears the field Pair, which differs between ports that
// have the same verdict for the same reason.
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
