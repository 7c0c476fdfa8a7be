package policy

import (
	"cmp"
	"slices"
)

func (c *compiler) markOf(rules []uint32) (m mark) {
	for _, r := range rules {
		m = m.with(c.marks[r])
	}
	return m
}

// set returns the peer set of the given rules, which it builds on first use. It returns nil
// if there are no rules. The rules must be sorted and distinct.
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
		if r.anyone {
			s.everyone = min(s.everyone, i)
		}
		if r.anyone && r.portless { // later rules are never reached
			rules = rules[:n]
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
	s.blocks = byRank(s.blocks)
	return s
}

// distinct sorts rules by selector, in place, and keeps the first rule of each selector.
func distinct(rules []peerRule) []peerRule {
	slices.SortFunc(rules, func(a, b peerRule) int { return compareBoth(a.selector, b.selector, a.rule, b.rule) })
	return slices.CompactFunc(rules, func(a, b peerRule) bool { return a.selector == b.selector })
}

// compareBoth compares a1 with b1 and, if they are equal, a2 with b2. It compares once, because
// sorting takes much of the time of compiling.
func compareBoth(a1, b1, a2, b2 uint32) int {
	return cmp.Compare(uint64(a1)<<32|uint64(a2), uint64(b1)<<32|uint64(b2))
}

// fitted returns list or, if the list has much spare capacity, a copy that has none.
func fitted[T any](list []T) []T {
	if len(list) == 0 {
		return nil
	}
	if cap(list)-len(list) > len(list)/8 {
		return append(make([]T, 0, len(list)), list...)
	}
	return list
}
