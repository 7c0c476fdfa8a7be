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
//
// Before these forms, ordered rules try a rankTable, which has the bound of the first form.
type shape struct {
	floor int // constant part of the bound on the first form
	flat  int // factor of the bound on the first form
	tree  int // factor of the bound on the segment tree

	// For tests:
	apart    bool // the rules of several policies are never merged
	noTables bool // there are no rank tables
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
	for _, p := range policies {
		c.rules = slices.Grow(c.rules, len(p.rules[d]))
		for i := range p.rules[d] {
			c.rules = append(c.rules, &p.rules[d][i])
		}
	}
	out.bounds = c.prepare()
	if c.ordered {
		out.extra = c.rank()
	} else {
		for _, r := range c.rules {
			out.rules = append(out.rules, &r.is)
		}
		out.rules = fitted(out.rules)
	}
	l := c.lists()
	for p := range l.names {
		out.anyNamed[portTableOf(p.protocol)] = true
	}
	out.peers, out.portless, out.named = c.set(l.every), c.set(l.portless), c.names(l.names)
	if c.ordered {
		if out.extra.table = c.rankTable(out, l); out.extra.table != nil {
			return out
		}
	}
	c.portTables(out, l)
	return out
}

// rank returns what lookups need of ordered rules.
func (c *compiler) rank() *extra {
	e := &extra{ranks: make([]rank, len(c.rules))}
	for i, r := range c.rules {
		e.ranks[i] = rank{&r.is, r.is.Action, r.portless}
		for _, b := range r.blocks {
			e.near.add(b)
		}
	}
	if len(c.rules) > 0 {
		r := c.rules[0]
		e.closed = r.is.Action == Deny && r.portless && r.anyone
	}
	return e
}

// lists are the rules of a compiler by their ports. The tables of ports are indexed like
// ruleSet.ports.
type lists struct {
	every, portless []uint32
	all             [3][]uint32 // rules for all ports of a protocol
	spans           [3][]span   // rules for some ports: see cut
	starts          [3][]uint32 // where the intervals of ports start
	names           map[portName][]uint32
}

func (c *compiler) lists() *lists {
	l := &lists{}
	for i, r := range c.rules {
		i := uint32(i)
		l.every = append(l.every, i)
		if r.portless {
			l.portless = append(l.portless, i)
		}
		for _, p := range r.ports {
			t := portTableOf(p.Protocol)
			switch {
			case p.Name != "":
				key := portName{p.Name, p.Protocol}
				if l.names == nil {
					l.names = make(map[portName][]uint32)
				}
				l.names[key] = appendOnce(l.names[key], i)
			case p.All():
				l.all[t] = appendOnce(l.all[t], i)
			default:
				l.spans[t] = append(l.spans[t], span{uint32(p.Low), uint32(p.High) + 1, i})
			}
		}
	}
	for t := range l.spans {
		if len(l.spans[t]) == 0 {
			continue
		}
		if c.ordered {
			l.spans[t] = everyPort(l.spans[t], l.portless, l.all[t])
		}
		l.starts[t], l.spans[t] = cut(l.spans[t])
	}
	return l
}

// portTables stores in out the port table of each protocol.
func (c *compiler) portTables(out *ruleSet, l *lists) {
	for t := range out.ports {
		table := &out.ports[t]
		table.all = c.set(l.all[t])
		var tree portTree
		if table.flat, tree = c.table(l.spans[t], l.starts[t]); tree.sets != nil {
			if out.extra == nil {
				out.extra = &extra{}
			}
			out.extra.trees[t] = tree
		}
	}
}

// everyPort adds a span of all ports for each rule in lists: these rules are for every port. In
// an ordered rule set, the peer set for a port then has all rules that apply to this port, and
// one lookup finds the first match.
func everyPort(spans []span, lists ...[]uint32) []span {
	for _, list := range lists {
		for _, rule := range list {
			spans = append(spans, span{0, 1 << 16, rule})
		}
	}
	return spans
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
