package policy

import (
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
	ownNode  bool // the destination is the node of the source
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
	if t := r.extra.table; t != nil {
		return t.first(q)
	}
	p := remoteOf(q, r)
	at, anyPort := r.lowestInSets(q, &p)
	if at = min(at, r.lowestNamed(q, &p)); at == noRule {
		return match{}, anyPort == noRule
	}
	rank := &r.extra.ranks[at]
	return match{rank.rule, rank.action}, at == anyPort && rank.portless
}

// remoteOf returns the peer of a flow for lookups in a rule set.
func remoteOf(q *query, r *ruleSet) remote {
	p := remote{addr: q.addr, rules: r}
	if q.peer != nil && q.peer.class != nil {
		p.some, p.whole = &q.peer.class.peers, &q.everyone[q.peer.class.namespace]
	}
	return p
}

// lowestInSets returns the lowest rank of the rules that match the flow by numbers of ports,
// and the lowest one of the rules that match its peer at any port. It is for a rule set
// without a table.
func (r *ruleSet) lowestInSets(q *query, p *remote) (at, anyPort uint32) {
	if anyPort = r.peers.lowest(p); anyPort == noRule {
		return noRule, noRule
	}
	if q.key.Transport != filter.Ported {
		return r.portless.lowest(p), anyPort
	}
	table := portTableOf(q.key.Protocol)
	t, tree := &r.ports[table], &r.extra.trees[table]
	at = noRule
	switch {
	case t.flat != nil:
		at = t.at(q.key.Port).lowest(p)
	case tree.sets != nil:
		for node := tree.leaf(q.key.Port); node > 0; node /= 2 {
			at = min(at, tree.sets[node].lowest(p))
		}
	default: // no rule is for some ports of the protocol
		at = min(r.portless.lowest(p), t.all.lowest(p))
	}
	return at, anyPort
}

// lowestNamed returns the lowest rank of the rules for the name of the port, or noRule.
func (r *ruleSet) lowestNamed(q *query, p *remote) uint32 {
	at := noRule
	if len(r.named) == 0 || q.key.Transport != filter.Ported || q.dst == nil || q.dst.class == nil {
		return at
	}
	for i := range q.dst.class.ports {
		np := &q.dst.class.ports[i]
		if np.number == q.key.Port && np.protocol == q.key.Protocol {
			at = min(at, r.named[portName{np.name, np.protocol}].lowest(p))
		}
	}
	return at
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
	if len(s.blocks) > 0 && p.isNear() {
		at = min(at, blockAt(s.blocks, p.place))
	}
	if s.more != nil {
		for _, o := range s.more.list {
			at = min(at, o.lowest(p))
		}
	}
	return at
}

// isNear reports whether a block may contain the address. If so, isNear has stored the place of
// the address among the bounds.
func (p *remote) isNear() bool {
	if !p.placed {
		if p.placed, p.far = true, !p.rules.extra.near.has(p.addr); !p.far {
			p.place = placeOf(p.rules.bounds, p.addr)
		}
	}
	return !p.far
}

// nearBits has a bit for each first byte of the addresses in some blocks: 256 bits for IPv4, then
// 256 for IPv6. It fills one cache line. It saves most addresses a search in ruleSet.bounds, which
// reads several cache lines, because their first byte is that of no block.
type nearBits [8]uint64

func firstByteOf(a netip.Addr) uint {
	if a.Is4() {
		b := a.As4()
		return uint(b[0])
	}
	b := a.As16()
	return 256 + uint(b[0])
}

func (n *nearBits) has(a netip.Addr) bool {
	i := firstByteOf(a)
	return n[i/64]>>(i%64)&1 == 1
}

func (n *nearBits) add(r addrRange) {
	for i := firstByteOf(r.low); i <= firstByteOf(r.high); i++ {
		n[i/64] |= 1 << (i % 64)
	}
}

// lowestShared returns the lowest rank among the rules whose selectors are in set, or noRule.
func lowestShared(rules []peerRule, set *idSet) uint32 {
	at := noRule
	if set.dense == nil && len(set.list) < len(rules) {
		for _, id := range set.list {
			i := searchRules(rules, id)
			if i == len(rules) {
				return at
			}
			if rules[i].selector == id {
				at = min(at, rules[i].rule)
			}
			rules = rules[i:]
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
	return r.extra != nil && (slices.ContainsFunc(r.extra.ranks, func(k rank) bool { return k.action != Accept && k.action != Pass }) ||
		slices.ContainsFunc(r.extra.parts, (*ruleSet).mayDeny))
}

// deniesAll reports whether the first rule denies everything.
func (r *ruleSet) deniesAll() bool {
	return r.extra != nil && r.extra.closed
}

// byRank cuts overlapping ranges into pieces that do not overlap, and returns the pieces
// sorted by address for a binary search. If several ranges contain a piece, the piece gets
// the lowest of their rule indexes: of ordered rules, this one decides. Of other rules, any may decide,
// but it must be the same one wherever the same rules apply (see ID).
func byRank(ranges []blockRange) []blockRange {
	slices.SortFunc(ranges, func(a, b blockRange) int { return compareBoth(a.low, b.low, a.rule, b.rule) })
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
			heap.Push(&open, &ranges[next])
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

// rankHeap is a heap of ranges. The range with the lowest rule index is at the top. Its elements
// are pointers, because each push and pop of a value would allocate.
type rankHeap []*blockRange

func (h rankHeap) Len() int           { return len(h) }
func (h rankHeap) Less(i, j int) bool { return h[i].rule < h[j].rule }
func (h rankHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push implements [heap.Interface].
func (h *rankHeap) Push(r any) { *h = append(*h, r.(*blockRange)) }

// Pop implements [heap.Interface].
func (h *rankHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}
