package reach

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"

	"sluice/filter"
	"sluice/filter/policy/inventory"
)

// decide returns the spans with the answers for flows on the routes. The result is valid until the
// next call.
func (m *Map) decide(from, to *Party, routes []route) []Span {
	if len(routes) == 0 {
		return nil
	}
	all := m.spansBetween(from.class, to.class)
	n := 0
	for _, s := range all {
		s.Answer = m.answer(routes, s.Protocol, s.Low)
		if n > 0 && all[n-1].Protocol == s.Protocol && all[n-1].Answer == s.Answer {
			all[n-1].High = s.High
			continue
		}
		all[n] = s
		n++
	}
	return all[:n]
}

// asDestination returns the end e of a party as the destination of a flow: an assumed address of the
// destination must differ from that of the source.
func (m *Map) asDestination(p *Party, e *inventory.End) *inventory.End {
	if !p.Assumed {
		return e
	}
	to, err := m.inventory.EndOf(cmp.Or(e.Pod, p.Pods[0]), true)
	if err != nil {
		return e // cannot happen: EndOf has returned this pod before
	}
	return to
}

// route is a flow between two ends by the addresses of one family, with its alternatives.
type route struct {
	flow      inventory.Flow
	elsewhere []inventory.Alternative
}

// routes returns the routes from src to dst, an end of the party to: at most one of each family, IPv4
// first.
func (m *Map) routes(src, dst *inventory.End, to *Party, rel relation) (routes []route) {
	if rel != self {
		dst = m.asDestination(to, dst)
	}
	routes = between(src, dst)
	for i := range routes {
		r := &routes[i]
		r.elsewhere = m.inventory.Elsewhere(r.flow)
		for _, at := range r.elsewhere {
			m.places[at.Range.Prefix] = &at.Range
		}
	}
	return routes
}

// between returns the routes between two ends, without alternatives.
func between(src, dst *inventory.End) (routes []route) {
	for _, a := range src.Addrs {
		for _, b := range dst.Addrs {
			if a.Is4() == b.Is4() && !slices.ContainsFunc(routes, func(r route) bool { return r.flow.Key.SrcAddr().Is4() == a.Is4() }) {
				routes = append(routes, route{flow: inventory.Flow{From: src, To: dst, Key: filter.NewKey(a, b, filter.TCP, 1)}})
			}
		}
	}
	return routes
}

// answer returns the answer for a port.
func (m *Map) answer(routes []route, proto filter.Protocol, port uint16) *Answer {
	var key answerKey
	for _, r := range routes {
		o := m.outcome(r, proto, port)
		i := r.family()
		key.known[i], key.outcomes[i] = true, o
	}
	if m.last != nil && key == m.lastKey {
		return m.last
	}
	m.last, m.lastKey = m.answerOf(key), key
	return m.last
}

// answerOf returns the answer with the outcomes in key: the same pointer for equal keys.
func (m *Map) answerOf(key answerKey) *Answer {
	if a := m.answers[key]; a != nil {
		return a
	}
	a := &Answer{number: len(m.answers)}
	for i, at := range []**Outcome{&a.IPv4, &a.IPv6} {
		if key.known[i] {
			*at = m.export(key.outcomes[i])
		}
	}
	a.Verdict = combined(a.Outcomes())
	m.answers[key] = a
	return a
}

// answerKey identifies equal answers.
type answerKey struct {
	known    [2]bool
	outcomes [2]outcome
}

// outcome is an Outcome as a comparable value.
type outcome struct {
	verdict   filter.Verdict
	depends   bool
	elsewhere filter.Verdict
	from, to  netip.Prefix // prefixes of Elsewhere.From and Elsewhere.To; invalid if the address does not matter
	all       string       // if it depends: for each alternative, the sides that allow the flow
}

func (m *Map) export(o outcome) *Outcome {
	if !o.depends {
		return &Outcome{Verdict: o.verdict}
	}
	return &Outcome{o.verdict, &Elsewhere{o.elsewhere, m.places[o.from], m.places[o.to]}}
}

// combined combines the outcomes of all families into a verdict.
func combined(outcomes []*Outcome) Verdict {
	allowed := 0
	for _, o := range outcomes {
		if o.Elsewhere != nil {
			return Depends
		}
		if o.Action == filter.Allow {
			allowed++
		}
	}
	switch allowed {
	case 0:
		return Deny
	case len(outcomes):
		return Allow
	}
	return Mixed
}

// outcome decides about a port. The decision of one end's policies depends only on the address of the
// other end. So if each side allows a denied flow at some address of its peer, the flow is allowed
// between these two addresses.
func (m *Map) outcome(r route, proto filter.Protocol, port uint16) outcome {
	o := outcome{verdict: m.verdict(r.flow, proto, port)}
	var src, dst *inventory.Alternative // src: where the ingress side allows the flow; dst: where the egress side does
	all := make([]byte, 0, len(r.elsewhere))
	for i := range r.elsewhere {
		at := &r.elsewhere[i]
		v := m.verdict(at.Flow, proto, port)
		all = append(all, sides(v))
		switch {
		case !o.depends && v.Action != o.verdict.Action:
			o = o.depending(v, at)
		case !at.To && src == nil && v.Ingress.Allows():
			src = at
		case at.To && dst == nil && v.Egress.Allows():
			dst = at
		}
	}
	if o.verdict.Action != filter.Allow && !o.depends && src != nil && dst != nil {
		both := src.Flow
		both.Key = filter.NewKey(src.Key.SrcAddr(), dst.Key.DstAddr(), proto, port)
		if v := m.verdict(both, proto, port); v.Action == filter.Allow {
			o.depends, o.elsewhere, o.from, o.to = true, v, src.Range.Prefix, dst.Range.Prefix
		}
	}
	if o.depends {
		o.all = string(all)
	}
	return o
}

// sides returns which sides of a verdict allow the flow, as bits.
func sides(v filter.Verdict) (bits byte) {
	if v.Egress.Allows() {
		bits |= 1
	}
	if v.Ingress.Allows() {
		bits |= 2
	}
	return bits
}

// depending returns o as an outcome that depends on an address: the flow has the verdict v at the
// alternative.
func (o outcome) depending(v filter.Verdict, at *inventory.Alternative) outcome {
	o.depends, o.elsewhere = true, v
	if at.To {
		o.to = at.Range.Prefix
	} else {
		o.from = at.Range.Prefix
	}
	return o
}

// intern returns a copy of the spans: the same slice for equal spans.
func (m *Map) intern(spans []Span) []Span {
	if len(spans) == 0 {
		return nil
	}
	key := m.key[:0]
	for _, s := range spans {
		key = append(key, byte(s.Protocol), byte(s.Low>>8), byte(s.Low))
		key = binary.AppendUvarint(key, uint64(s.number))
	}
	m.key = key
	if known := m.spans[string(key)]; known != nil {
		return known
	}
	spans = slices.Clone(spans)
	m.spans[string(key)] = spans
	return spans
}
