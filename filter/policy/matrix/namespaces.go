package matrix

import (
	"fmt"
	"slices"

	"sluice/filter"
	"sluice/filter/policy/near"
)

// protocols are the protocols with ports, in the order of spans.
var protocols = [...]filter.Protocol{filter.TCP, filter.UDP, filter.SCTP}

// spansWith returns spans that cover all ports with the same verdict and reason.
func spansWith(verdict, why string) (spans []span) {
	for _, p := range protocols {
		spans = append(spans, span{p, 1, 1<<16 - 1, verdict, why})
	}
	return append(spans, span{filter.ICMP, 0, 0, verdict, why})
}

// maxExamples bounds the pairs that a reason names.
const maxExamples = 3

// group is a set of pairs with the same spans.
type group struct {
	spans []span
	names []string // of the pairs
}

// combined returns one cell for all pairs of members of two parties.
func (b *builder) combined(from, to *Party, pairs []pair) *Cell {
	c := &Cell{From: from.Name, To: to.Name, Pairs: make(map[State]int)}
	var groups []*group
	known := make(map[*span]*group)
	for _, p := range pairs {
		if c.Pairs[p.state]++; p.state == Self {
			continue
		}
		g := known[&p.spans[0]]
		if g == nil {
			g = &group{spans: p.spans}
			known[&p.spans[0]] = g
			groups = append(groups, g)
		}
		g.names = append(g.names, p.from.name()+" → "+p.to.name())
	}
	c.State = combinedState(c.Pairs)
	if c.Answers = []Answer{}; len(groups) > 0 {
		c.spans = merged(groups)
		c.Answers = b.answersOf(c.spans)
	}
	return c
}

// combinedState summarizes the states of pairs.
func combinedState(pairs map[State]int) State {
	n := 0
	for state, count := range pairs {
		if state != Self {
			n += count
		}
	}
	switch {
	case n == 0:
		return Self
	case pairs[Closed] == n:
		return Closed
	case pairs[Open] == n:
		return Open
	case pairs[Declared] > 0 && pairs[Declared]+pairs[Closed] == n:
		return Declared
	}
	return Part
}

// merged divides the ports into spans within which the answer of each group is the same.
func merged(groups []*group) (all []span) {
	if len(groups) == 1 {
		return groups[0].spans
	}
	type port struct {
		proto filter.Protocol
		low   uint16
	}
	highs := make(map[port]uint16)
	var starts []port
	for _, p := range append(protocols[:], filter.ICMP) {
		var lows []int
		for _, g := range groups {
			for _, s := range g.spans {
				if s.proto == p {
					lows = append(lows, int(s.low), int(s.high)+1)
				}
			}
		}
		slices.Sort(lows)
		lows = slices.Compact(lows)
		for i := range max(0, len(lows)-1) {
			at := port{p, uint16(lows[i])}
			starts, highs[at] = append(starts, at), uint16(lows[i+1]-1)
		}
	}
	for _, at := range starts {
		if s, has := mergedAt(groups, at.proto, at.low); has {
			s.proto, s.low, s.high = at.proto, at.low, highs[at]
			all = append(all, s)
		}
	}
	return all
}

// mergedAt combines the answers of all groups about a port. has is false if no group has an answer,
// because the question is about other ports.
func mergedAt(groups []*group, proto filter.Protocol, port uint16) (s span, has bool) {
	byVerdict := make(map[string][]string)
	whys := make(map[string]bool)
	total := 0
	for _, g := range groups {
		for _, o := range g.spans {
			if o.proto == proto && o.low <= port && port <= o.high {
				byVerdict[o.verdict] = append(byVerdict[o.verdict], g.names...)
				whys[o.why] = true
				total += len(g.names)
				s.verdict, s.why = o.verdict, o.why
			}
		}
	}
	switch {
	case total == 0:
		return s, false
	case len(whys) == 1 && len(byVerdict) == 1:
		return s, true
	case len(byVerdict) == 1:
		s.why = fmt.Sprintf("all %d pairs, for different reasons", total)
		return s, true
	}
	s.verdict, s.why = some, ""
	for _, v := range []string{allowed, mixed, depends} {
		if names := byVerdict[v]; len(names) > 0 {
			s.why += fmt.Sprintf("%s: %s (%d of %d pairs); ", v, near.List(names, maxExamples, ", "), len(names), total)
		}
	}
	s.why += "deny: the others"
	if len(byVerdict[denied]) == 0 {
		s.why = s.why[:len(s.why)-len("; deny: the others")]
	}
	return s, true
}
