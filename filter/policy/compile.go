package policy

import (
	"cmp"
	"hash/maphash"
	"math/bits"
	"net/netip"
	"slices"

	"sluice/filter"
)

// shape bounds the size of compiled sets, relative to the number of entries in the rules.
// The fastest form is a set for each interval of ports. Where rules overlap, it may take
// rules × intervals entries. If that is more than flat allows, the form is a segment tree,
// which holds each span in at most two nodes of each level. A rule with many ports and many
// peers takes ports × peers entries in either form. If that is more than tree allows, sets
// refer to the largest of these rules instead of copying them, which costs another lookup
// for each.
type shape struct {
	floor int  // entries that are always granted
	flat  int  // entries for each entry of the rules
	tree  int  // entries for each entry of the rules and each level of the tree
	apart bool // the rules of several policies are not merged; for tests
}

func defaultShape() shape { return shape{floor: 256, flat: 8, tree: 4} }

// compiler builds a rule set from rules. Intervals, tree nodes and port names with the same
// rules share a peer set.
type compiler struct {
	shape  shape
	rules  []*rule
	weight []int          // of each rule: the number of entries that it adds to a set
	blocks [][]blockRange // of each rule
	marks  []mark
	sets   map[mark]*peerSet
	// ordered: of several rules that match, the one with the lowest index decides.
	ordered bool
}

// mark identifies a set of rules or of policies. It is the XOR of the members' marks, which
// are random and unpredictable. With 128 bits, two different sets practically never have
// the same mark.
type mark [2]uint64

func (m mark) with(o mark) mark { return mark{m[0] ^ o[0], m[1] ^ o[1]} }

// compile merges the rules of policies of one tier for one direction. Ordered rules come
// in the order of the policies.
func compile(d filter.Direction, policies []*policy, s shape) *ruleSet {
	c := compiler{shape: s, sets: make(map[mark]*peerSet), ordered: policies[0].tier != NetworkPolicy}
	out := &ruleSet{}
	if c.ordered {
		out.extra = &extra{}
	}
	for _, p := range policies {
		out.rules = slices.Grow(out.rules, len(p.rules[d]))
		for i := range p.rules[d] {
			c.rules = append(c.rules, &p.rules[d][i])
			r := &p.rules[d][i]
			out.rules = append(out.rules, filter.Rule{Policy: p.text, Direction: d, Denies: r.action == Deny, Index: r.index})
			if c.ordered {
				out.extra.actions = append(out.extra.actions, r.action)
			}
		}
	}
	out.rules, out.bounds = fitted(out.rules), c.prepare()
	var every, portless []uint32
	var all [3][]uint32
	var spans [3][]span
	names := make(map[portName][]uint32)
	for i, r := range c.rules {
		i := uint32(i)
		every = append(every, i)
		if r.portless {
			portless = append(portless, i)
		}
		for _, p := range r.ports {
			t := portTableOf(p.Protocol)
			switch {
			case p.Name != "":
				key := portName{p.Name, p.Protocol}
				names[key] = appendOnce(names[key], i)
				out.anyNamed[t] = true
			case p.All():
				all[t] = appendOnce(all[t], i)
			default:
				spans[t] = append(spans[t], span{uint32(p.Low), uint32(p.High) + 1, i})
			}
		}
	}
	out.peers, out.portless, out.named = c.set(every), c.set(portless), c.names(names)
	for t := range out.ports {
		table := &out.ports[t]
		table.all = c.set(all[t])
		var tree portTree
		if table.flat, tree = c.table(spans[t]); tree.sets != nil {
			if out.extra == nil {
				out.extra = &extra{}
			}
			out.extra.trees[t] = tree
		}
	}
	return out
}

// appendOnce appends i to an ascending list, unless i is the last element already.
func appendOnce(list []uint32, i uint32) []uint32 {
	if n := len(list); n > 0 && list[n-1] == i {
		return list
	}
	return append(list, i)
}

// prepare computes the weight, the mark and the address ranges of each rule. It returns the
// sorted bounds of all ranges.
func (c *compiler) prepare() []netip.Addr {
	seeds := [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}
	var bounds []netip.Addr
	for i, r := range c.rules {
		c.marks = append(c.marks, mark{maphash.Comparable(seeds[0], i), maphash.Comparable(seeds[1], i)})
		for _, b := range r.blocks {
			bounds = append(bounds, b.low)
			if end := after(b.high); end.IsValid() {
				bounds = append(bounds, end)
			}
		}
	}
	slices.SortFunc(bounds, netip.Addr.Compare)
	bounds = slices.Clip(slices.Compact(bounds))
	c.weight, c.blocks = make([]int, len(c.rules)), make([][]blockRange, len(c.rules))
	for i, r := range c.rules {
		if c.weight[i] = 1; r.anyone {
			continue
		}
		list := make([]blockRange, len(r.blocks))
		for j, b := range r.blocks {
			list[j] = blockRange{placeOf(bounds, b.low), uint32(len(bounds)) + 1, uint32(i)}
			if end := after(b.high); end.IsValid() {
				list[j].end = placeOf(bounds, end)
			}
		}
		c.blocks[i] = disjoint(list)
		c.weight[i] += len(r.some) + len(r.whole) + len(c.blocks[i])
	}
	return bounds
}

// names builds the peer sets of named ports.
func (c *compiler) names(names map[portName][]uint32) map[portName]*peerSet {
	if len(names) == 0 {
		return nil
	}
	places := newPlaces(len(names))
	keys := make([]portName, 0, len(names))
	for key, rules := range names {
		for range rules {
			places.count(len(keys))
		}
		keys = append(keys, key)
	}
	places.allot()
	for i, key := range keys {
		for _, r := range names[key] {
			places.put(i, r)
		}
	}
	out := make(map[portName]*peerSet, len(names))
	for i, s := range c.setsAt(places, c.shape.floor+c.shape.flat*(c.weightOf(places)+len(places.rules))) {
		out[keys[i]] = s
	}
	return out
}

// span is the half-open range [low, end) of ports that a rule names. table replaces the
// ports by indexes of intervals.
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

// table cuts the ports into intervals where spans begin or end. It returns a set for each
// interval, or a tree if these sets would be too large.
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

// flat returns a set for each interval, or nil if these would have more entries than limit.
// It counts the entries before it builds any set.
func (c *compiler) flat(spans []span, starts []uint32, limit int) []interval {
	type edge struct{ at, rule uint32 }
	edges := make([]edge, 0, 2*len(spans))
	for _, s := range spans {
		edges = append(edges, edge{s.low, s.rule}, edge{s.end, s.rule})
	}
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Compare(a.at, b.at) })
	open := make([]bool, len(c.rules))
	// sweep calls f for each interval with the mark and the weight of its rules, which are
	// those with open[rule] true. Spans of one rule do not touch, so each edge opens or
	// closes its rule.
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

// tree builds the sets of a segment tree over the intervals, with about limit entries or
// fewer. Each span is in at most two nodes of a level.
func (c *compiler) tree(spans []span, intervals, limit int) []*peerSet {
	nodes := newPlaces(2 * intervals)
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

// places is a number of lists of rules, stored in one slice. To fill it, call count for
// each element, then allot, then put for each element.
type places struct {
	ends  []int // where each list ends in rules; while it is filled, where its next element goes
	rules []uint32
}

func newPlaces(n int) *places { return &places{ends: make([]int, n)} }

// count reserves room for one more rule in list i.
func (p *places) count(i int) { p.ends[i]++ }

// allot allocates the lists, after all calls of count.
func (p *places) allot() {
	sum := 0
	for i, n := range p.ends {
		p.ends[i] = sum
		sum += n
	}
	p.rules = make([]uint32, sum)
}

// put adds a rule to list i, for which count must have reserved room.
func (p *places) put(i int, rule uint32) {
	p.rules[p.ends[i]] = rule
	p.ends[i]++
}

// at returns list i.
func (p *places) at(i int) []uint32 {
	begin := 0
	if i > 0 {
		begin = p.ends[i-1]
	}
	return p.rules[begin:p.ends[i]]
}

// weightOf returns the weight of all rules in p, each counted once.
func (c *compiler) weightOf(p *places) (sum int) {
	counted := make([]bool, len(c.rules))
	for _, r := range p.rules {
		if !counted[r] {
			counted[r] = true
			sum += c.weight[r]
		}
	}
	return sum
}

// setsAt builds the set of each list of rules, with about limit entries or fewer in total.
func (c *compiler) setsAt(p *places, limit int) []*peerSet {
	large := c.large(p, limit)
	sets := make([]*peerSet, len(p.ends))
	for i := range sets {
		sets[i] = c.split(p.at(i), large)
	}
	return sets
}

// large picks the rules that sets refer to instead of copying them, so that all sets
// together have about limit entries or fewer: those with the largest copies. It returns nil
// if no rule needs to be picked.
func (c *compiler) large(p *places, limit int) []bool {
	seen, total := make(map[mark]bool), 0
	uses := make([]int, len(c.rules))
	for i := range p.ends {
		var m mark
		weight := 0
		for _, r := range p.at(i) {
			m = m.with(c.marks[r])
			weight += c.weight[r]
			uses[r]++
		}
		if !seen[m] {
			seen[m] = true
			total += weight
		}
	}
	if total <= limit {
		return nil
	}
	var order []int
	total = 0
	for r, n := range uses {
		total += n * c.weight[r]
		if n > 1 && c.weight[r] > 1 {
			order = append(order, r)
		}
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(uses[b]*c.weight[b], uses[a]*c.weight[a]) })
	large := make([]bool, len(c.rules))
	for _, r := range order {
		if total <= limit {
			break
		}
		large[r] = true
		total -= uses[r] * c.weight[r]
	}
	return large
}

// split returns the set of some rules. It refers to the large ones and copies the others.
func (c *compiler) split(rules []uint32, large []bool) *peerSet {
	if large == nil || len(rules) < 2 || !slices.ContainsFunc(rules, func(r uint32) bool { return large[r] }) {
		return c.set(rules)
	}
	m := c.markOf(rules)
	if s := c.sets[m]; s != nil {
		return s
	}
	s := &peerSet{everyone: noRule}
	var small []uint32
	var more []*peerSet
	for _, r := range rules {
		if large[r] {
			more = append(more, c.set([]uint32{r}))
		} else {
			small = append(small, r)
		}
	}
	if of := c.set(small); of != nil {
		*s = *of
	}
	s.more = &peerSets{slices.Clip(more)}
	c.sets[m] = s
	return s
}

func (c *compiler) markOf(rules []uint32) (m mark) {
	for _, r := range rules {
		m = m.with(c.marks[r])
	}
	return m
}

// set returns the peer set of some rules, nil for none, and builds it on first use. The
// rules must be sorted and distinct.
func (c *compiler) set(rules []uint32) *peerSet {
	if len(rules) == 0 {
		return nil
	}
	m := c.markOf(rules)
	s := c.sets[m]
	if s == nil {
		s = c.build(rules)
		c.sets[m] = s
	}
	return s
}

func (c *compiler) build(rules []uint32) *peerSet {
	s := &peerSet{everyone: noRule}
	some, whole, blocks := 0, 0, 0
	for n, i := range rules {
		r := c.rules[i]
		if r.anyone && !c.ordered {
			return &peerSet{everyone: i}
		}
		if r.anyone { // later rules are never reached
			s.everyone, rules = i, rules[:n]
			break
		}
		some, whole, blocks = some+len(r.some), whole+len(r.whole), blocks+len(c.blocks[i])
	}
	s.peers, s.blocks = make([]peerRule, 0, some+whole), make([]blockRange, 0, blocks)
	for _, i := range rules {
		for _, sel := range c.rules[i].some {
			s.peers = append(s.peers, peerRule{sel.id, i})
		}
		s.blocks = append(s.blocks, c.blocks[i]...)
	}
	s.peers = distinct(s.peers)
	s.whole = uint32(len(s.peers))
	for _, i := range rules {
		for _, sel := range c.rules[i].whole {
			s.peers = append(s.peers, peerRule{sel.id, i})
		}
	}
	s.peers = fitted(s.peers[:len(distinct(s.peers[s.whole:]))+int(s.whole)])
	if c.ordered {
		s.blocks = byRank(s.blocks)
	} else {
		s.blocks = disjoint(s.blocks)
	}
	return s
}

// distinct sorts rules by selector, in place, and keeps the first rule of each selector.
func distinct(rules []peerRule) []peerRule {
	slices.SortFunc(rules, func(a, b peerRule) int {
		return cmp.Or(cmp.Compare(a.selector, b.selector), cmp.Compare(a.rule, b.rule))
	})
	return slices.CompactFunc(rules, func(a, b peerRule) bool { return a.selector == b.selector })
}

// fitted returns list, copied to memory of its own size if its capacity is much larger.
func fitted[T any](list []T) []T {
	if len(list) == 0 {
		return nil
	}
	if cap(list)-len(list) > len(list)/8 {
		return append(make([]T, 0, len(list)), list...)
	}
	return list
}
