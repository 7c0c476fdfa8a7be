package policy

import (
	"cmp"
	"math/bits"
	"slices"
)

// span is the half-open range [low, end) of ports that a rule names. compiler.table replaces
// both ports by indexes of intervals.
type span struct {
	low, end, rule uint32
}

// joined sorts spans by rule, and joins spans of one rule that overlap or touch.
func joined(spans []span) []span {
	slices.SortFunc(spans, func(a, b span) int {
		return cmp.Or(cmp.Compare(a.rule, b.rule), cmp.Compare(a.low, b.low))
	})
	out := spans[:0]
	for _, s := range spans {
		if n := len(out); n > 0 && out[n-1].rule == s.rule && s.low <= out[n-1].end {
			out[n-1].end = max(out[n-1].end, s.end)
			continue
		}
		out = append(out, s)
	}
	return out
}

// table divides the ports into intervals: an interval begins wherever a span begins or ends.
// It returns flat, a list of the intervals with a peer set for each. If these sets together
// would have too many entries, flat is nil and it returns tree.
func (c *compiler) table(spans []span) (flat []interval, tree portTree) {
	if len(spans) == 0 {
		return nil, tree
	}
	spans = joined(spans)
	cuts := make([]uint32, 0, 2*len(spans))
	for _, s := range spans {
		cuts = append(cuts, s.low, s.end)
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	for i := range spans {
		low, _ := slices.BinarySearch(cuts, spans[i].low)
		end, _ := slices.BinarySearch(cuts, spans[i].end)
		spans[i].low, spans[i].end = uint32(low), uint32(end)
	}
	size := len(spans)
	for i, s := range spans {
		if i == 0 || spans[i-1].rule != s.rule {
			size += c.weight[s.rule]
		}
	}
	starts := cuts
	if last := len(cuts) - 1; cuts[last] == 1<<16 {
		starts = cuts[:last]
	}
	if flat = c.flat(spans, starts, c.shape.floor+c.shape.flat*size); flat != nil {
		return flat, tree
	}
	tree.starts = make([]uint16, len(starts))
	for i, port := range starts {
		tree.starts[i] = uint16(port)
	}
	tree.sets = c.tree(spans, len(starts), c.shape.tree*bits.Len(uint(len(starts)))*size)
	return nil, tree
}

// flat returns a peer set for each interval, or nil if the sets together would have more
// entries than limit. It counts the entries before it builds any set.
func (c *compiler) flat(spans []span, starts []uint32, limit int) []interval {
	type edge struct{ at, rule uint32 }
	edges := make([]edge, 0, 2*len(spans))
	for _, s := range spans {
		edges = append(edges, edge{s.low, s.rule}, edge{s.end, s.rule})
	}
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Compare(a.at, b.at) })
	open := make([]bool, len(c.rules))
	// sweep calls f for each interval, in order, until f returns false. The rules of an
	// interval are those with a span that contains it. During the call, open[rule] is true for
	// these rules, m is the XOR of their marks, and weight is the sum of their weights. The
	// spans of one rule do not touch each other, so each edge of a rule inverts open[rule].
	sweep := func(f func(interval int, m mark, weight int) bool) bool {
		clear(open)
		var m mark
		weight := 0
		for next := 0; next < len(edges); {
			at := edges[next].at
			for ; next < len(edges) && edges[next].at == at; next++ {
				r := edges[next].rule
				if m, open[r] = m.with(c.marks[r]), !open[r]; open[r] {
					weight += c.weight[r]
				} else {
					weight -= c.weight[r]
				}
			}
			if int(at) < len(starts) && !f(int(at), m, weight) {
				return false
			}
		}
		return true
	}
	seen, total := make(map[mark]bool), 0
	if !sweep(func(_ int, m mark, weight int) bool {
		if !seen[m] {
			seen[m] = true
			total += weight
		}
		return total <= limit
	}) {
		return nil
	}
	out := make([]interval, len(starts))
	for i, port := range starts {
		out[i].start = uint16(port)
	}
	var rules []uint32
	sweep(func(i int, m mark, _ int) bool {
		if m == (mark{}) {
			return true
		}
		if out[i].set = c.sets[m]; out[i].set == nil {
			rules = rules[:0]
			for r, is := range open {
				if is {
					rules = append(rules, uint32(r))
				}
			}
			out[i].set = c.set(rules)
		}
		return true
	})
	return out
}

// tree returns the peer sets of the nodes of a segment tree, whose leaves are the intervals.
// The rule of a span is in the sets of those nodes that together cover the span: at most two
// nodes on each level of the tree. The total number of entries in all sets does not exceed
// limit by much.
func (c *compiler) tree(spans []span, intervals, limit int) []*peerSet {
	nodes := newRuleLists(2 * intervals)
	each := func(f func(node int, rule uint32)) {
		for _, s := range spans {
			low, end := int(s.low)+intervals, int(s.end)+intervals
			for ; low < end; low, end = low/2, end/2 {
				if low%2 == 1 {
					f(low, s.rule)
					low++
				}
				if end%2 == 1 {
					end--
					f(end, s.rule)
				}
			}
		}
	}
	each(func(node int, _ uint32) { nodes.count(node) })
	nodes.allot()
	each(nodes.put)
	return c.setsAt(nodes, limit)
}
