package policy

import (
	"cmp"
	"container/heap"
	"net/netip"
	"slices"

	"sluice/filter"
)

// query is a flow, seen from the pod at one of its ends. The policy sets of this pod decide
// about the flow.
type query struct {
	key      *filter.Key
	peer     *Endpoint  // the other end of the flow
	addr     netip.Addr // the peer's address
	dst      *Endpoint  // the destination, in which named ports are looked up
	everyone []idSet
}

// match is the rule that matches a flow, and its action. rule is nil if no rule matches.
type match struct {
	rule   *filter.Rule
	action Action
}

// lowest returns the rule of the lowest rank that matches the flow. The rank of a rule is
// its index in rules. The second result reports whether the first is the same for all flows
// between the two addresses.
func (r *ruleSet) lowest(q *query) (m match, pair bool) {
	if r.peers == nil {
		return r.lowestInParts(q)
	}
	p := remote{addr: q.addr, rules: r}
	if q.peer != nil && q.peer.class != nil {
		p.some, p.whole = &q.peer.class.peers, &q.everyone[q.peer.class.namespace]
	}
	at := r.portless.lowest(&p)
	if q.key.Transport == filter.Ported {
		at = min(at, r.lowestAtPort(q, &p))
	}
	// The result is the same for all flows between the two addresses if no rule names the peer.
	// It is also the same if a rule without ports matches, and each rule of a lower rank names
	// only other peers.
	pair = r.peers.lowest(&p) == at && r.portless.lowest(&p) == at
	if at == noRule {
		return match{}, pair
	}
	return match{&r.rules[at], r.extra.actions[at]}, pair
}

// lowestInParts is like lowest, for a rule set with a part for each policy. The parts are
// sorted by rank.
func (r *ruleSet) lowestInParts(q *query) (m match, pair bool) {
	pair = true
	for _, part := range r.parts() {
		found, same := part.lowest(q)
		if pair = pair && same; found.rule != nil {
			return found, pair
		}
	}
	return match{}, pair
}

// lowestAtPort returns the lowest rank of the rules for the port of the flow, or noRule.
func (r *ruleSet) lowestAtPort(q *query, p *remote) uint32 {
	k := q.key
	table := portTableOf(k.Protocol)
	t := &r.ports[table]
	at := min(t.all.lowest(p), t.at(k.Port).lowest(p))
	if r.extra != nil {
		tree := &r.extra.trees[table]
		for node := tree.leaf(k.Port); node > 0; node /= 2 {
			at = min(at, tree.sets[node].lowest(p))
		}
	}
	if len(r.named) == 0 || q.dst == nil || q.dst.class == nil {
		return at
	}
	for i := range q.dst.class.ports {
		np := &q.dst.class.ports[i]
		if np.number == k.Port && np.protocol == k.Protocol {
			at = min(at, r.named[portName{np.name, np.protocol}].lowest(p))
		}
	}
	return at
}

// lowest returns the lowest rank of the rules that name the peer, or noRule, which is above
// all ranks.
func (s *peerSet) lowest(p *remote) uint32 {
	if s == nil {
		return noRule
	}
	at := s.everyone
	if p.some != nil {
		at = min(at, lowestShared(s.peers[:s.whole], p.some), lowestShared(s.peers[s.whole:], p.whole))
	}
	if len(s.blocks) > 0 {
		if !p.placed {
			p.place, p.placed = placeOf(p.rules.bounds, p.addr), true
		}
		at = min(at, blockAt(s.blocks, p.place))
	}
	if s.more != nil {
		for _, o := range s.more.list {
			at = min(at, o.lowest(p))
		}
	}
	return at
}

// lowestShared returns the lowest rank among the rules whose selectors are in set, or noRule.
func lowestShared(rules []peerRule, set *idSet) uint32 {
	at := noRule
	if set.dense == nil && len(set.list) < len(rules) {
		for _, id := range set.list {
			if i := searchRules(rules, id); i < len(rules) && rules[i].selector == id {
				at = min(at, rules[i].rule)
			}
		}
		return at
	}
	for i := range rules {
		if rules[i].rule < at && set.has(rules[i].selector) {
			at = rules[i].rule
		}
	}
	return at
}

// mayDeny reports whether there is a rule that denies.
func (r *ruleSet) mayDeny() bool {
	return r.extra != nil && (slices.ContainsFunc(r.extra.actions, func(a Action) bool { return a != Accept && a != Pass }) ||
		slices.ContainsFunc(r.extra.parts, (*ruleSet).mayDeny))
}

// deniesAll reports whether the first rule denies everything.
func (r *ruleSet) deniesAll() bool {
	return r.extra != nil && len(r.extra.actions) > 0 && r.extra.actions[0] == Deny && r.portless != nil && r.portless.everyone == 0
}

// byRank cuts overlapping ranges into pieces that do not overlap, and returns the pieces
// sorted by address for a binary search. If several ranges contain a piece, the piece gets
// the lowest of their rule indexes, because the rule of the lowest rank decides.
func byRank(ranges []blockRange) []blockRange {
	slices.SortFunc(ranges, func(a, b blockRange) int { return cmp.Or(cmp.Compare(a.low, b.low), cmp.Compare(a.rule, b.rule)) })
	cuts := make([]uint32, 0, 2*len(ranges))
	for _, r := range ranges {
		cuts = append(cuts, r.low, r.end)
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	var out []blockRange
	var open rankHeap
	next := 0
	for i, low := range cuts {
		for ; next < len(ranges) && ranges[next].low == low; next++ {
			heap.Push(&open, ranges[next])
		}
		for len(open) > 0 && open[0].end <= low {
			heap.Pop(&open)
		}
		if len(open) == 0 || i == len(cuts)-1 {
			continue
		}
		if n := len(out) - 1; n >= 0 && out[n].end == low && out[n].rule == open[0].rule {
			out[n].end = cuts[i+1]
			continue
		}
		out = append(out, blockRange{low, cuts[i+1], open[0].rule})
	}
	return fitted(out)
}

// rankHeap is a heap of ranges. The range with the lowest rule index is at the top.
type rankHeap []blockRange

func (h rankHeap) Len() int           { return len(h) }
func (h rankHeap) Less(i, j int) bool { return h[i].rule < h[j].rule }
func (h rankHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push implements [heap.Interface].
func (h *rankHeap) Push(r any) { *h = append(*h, r.(blockRange)) }

// Pop implements [heap.Interface].
func (h *rankHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}
