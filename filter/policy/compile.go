package policy

import (
	"hash/maphash"
	"net/netip"
	"slices"

	"sluice/filter"
)

// shape bounds the memory of a compiled rule set, in entries. The bounds depend on n, the
// number of entries in the rules. For rules with port numbers, the compiler tries three forms
// in this order:
//
//   - One peer set for each interval of ports. It is the fastest form. Where rules overlap, it
//     takes up to rules × intervals entries; its bound is floor + flat × n.
//   - A segment tree, which stores each span of ports in at most two nodes of each level. A
//     rule with many ports and many peers takes ports × peers entries; the bound of the tree
//     is tree × n × (number of levels).
//   - The same tree, whose sets refer to the largest rules instead of copying them. Each such
//     rule costs one more lookup.
//
// The sets of named ports have the bound of the first form, and refer to large rules likewise.
type shape struct {
	floor int  // constant part of the bound on the first form
	flat  int  // factor of the bound on the first form
	tree  int  // factor of the bound on the segment tree
	apart bool // the rules of several policies are never merged; for tests
}

func defaultShape() shape { return shape{floor: 256, flat: 8, tree: 4} }

// compiler builds a rule set from rules. Intervals, tree nodes and port names with the same
// rules share a peer set.
type compiler struct {
	shape  shape
	rules  []*rule
	weight []int          // for each rule, the number of entries that it adds to a set
	blocks [][]blockRange // for each rule, its address ranges
	marks  []mark
	sets   map[mark]*peerSet
	// If ordered is set, the rule with the lowest index decides if several rules match.
	ordered bool
}

// mark identifies a set of rules or of policies. It is the XOR of the members' marks, which
// are random and unpredictable. With 128 bits, two different sets practically never have
// the same mark.
type mark [2]uint64

func (m mark) with(o mark) mark { return mark{m[0] ^ o[0], m[1] ^ o[1]} }

// compile merges the rules of policies of the same tier for one direction. In every tier except
// NetworkPolicy, rules are ordered: compile ranks them in the order of the policies.
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
	lists := newRuleLists(len(names))
	keys := make([]portName, 0, len(names))
	for key, rules := range names {
		for range rules {
			lists.count(len(keys))
		}
		keys = append(keys, key)
	}
	lists.allot()
	for i, key := range keys {
		for _, r := range names[key] {
			lists.put(i, r)
		}
	}
	out := make(map[portName]*peerSet, len(names))
	for i, s := range c.setsAt(lists, c.shape.floor+c.shape.flat*(c.weightOf(lists)+len(lists.rules))) {
		out[keys[i]] = s
	}
	return out
}
