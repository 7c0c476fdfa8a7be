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
	slices.SortFunc(spans, func(a, b span) int { return compareBoth(a.rule, b.rule, a.low, b.low) })
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

// cut divides the ports into intervals: each begin and each end of a span begins a new interval.
// It returns the first port of each interval. It also returns the spans, with indexes of
// intervals in place of ports. In these, spans of one rule that touched are joined.
func cut(spans []span) (starts []uint32, of []span) {
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
	if last := len(cuts) - 1; cuts[last] == 1<<16 {
		cuts = cuts[:last]
	}
	return cuts, spans
}

// table returns a list of the intervals of ports with one set for each (flat), or a tree if
// these sets together would have too many entries.
func (c *compiler) table(spans []span, starts []uint32) (flat []interval, tree portTree) {
	if len(spans) == 0 {
		return nil, tree
	}
	size := c.sizeOf(spans)
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

// sizeOf returns the number of entries of rules and their spans. The spans are sorted by rule.
func (c *compiler) sizeOf(spans []span) int {
	size := len(spans)
	for i, s := range spans {
		if i == 0 || spans[i-1].rule != s.rule {
			size += c.weight[s.rule]
		}
	}
	return size
}

// portWalk visits intervals of ports in their order. The rules of an interval are those with a
// span that contains it.
type portWalk struct {
	edges  []edge
	starts []uint32
	weight []int
	marks  []mark
	open   []bool // true for the rules of the current interval
}

// edge is where a span of a rule begins or ends: "at" is the first interval of the span, or the
// one after its last.
type edge struct{ at, rule uint32 }

func (c *compiler) walk(spans []span, starts []uint32) portWalk {
	edges := make([]edge, 0, 2*len(spans))
	for _, s := range spans {
		edges = append(edges, edge{s.low, s.rule}, edge{s.end, s.rule})
	}
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Compare(a.at, b.at) })
	return portWalk{edges, starts, c.weight, c.marks, make([]bool, len(c.rules))}
}

// each calls f for each interval, until f returns false. m combines the marks of the rules of
// the interval, and weight is the sum of their weights. The spans of one rule do not touch
// each other, so a rule's edges open and close it in turn.
func (w *portWalk) each(f func(interval int, m mark, weight int) bool) bool {
	clear(w.open)
	var m mark
	weight := 0
	for next := 0; next < len(w.edges); {
		at := w.edges[next].at
		for ; next < len(w.edges) && w.edges[next].at == at; next++ {
			r := w.edges[next].rule
			if m, w.open[r] = m.with(w.marks[r]), !w.open[r]; w.open[r] {
				weight += w.weight[r]
			} else {
				weight -= w.weight[r]
			}
		}
		if int(at) < len(w.starts) && !f(int(at), m, weight) {
			return false
		}
	}
	return true
}

// rules appends the rules of the current interval to list, in their order.
func (w *portWalk) rules(list []uint32) []uint32 {
	for r, is := range w.open {
		if is {
			list = append(list, uint32(r))
		}
	}
	return list
}

// flat returns a set for each interval, or nil if the sets would have more than limit
// entries. It counts the entries before it builds any set.
func (c *compiler) flat(spans []span, starts []uint32, limit int) []interval {
	intervals := c.walk(spans, starts)
	seen, total := make(map[mark]bool), 0
	if !intervals.each(func(_ int, m mark, weight int) bool {
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
	intervals.each(func(i int, m mark, _ int) bool {
		if m == (mark{}) {
			return true
		}
		if out[i].set = c.sets[m]; out[i].set == nil {
			rules = intervals.rules(rules[:0])
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
