package policy

import (
	"cmp"
	"net/netip"
	"slices"
)

// group is all addresses with an endpoint, of one family, whose longest prefix is the same. The families
// have groups of their own, so that IDs can pass on (see mover.identify) if policies name prefixes of
// one family only. No packet has addresses of both.
type group struct {
	key   groupKey
	addrs int
}

// groupKey is the ID of the longest prefix, or 0, and the family.
type groupKey struct {
	prefix ID
	v6     bool
}

// fewAddrs is the usual Store.few: moving as many addresses takes less than half a millisecond.
const fewAddrs = 512

// groupKeyOf returns the key of the group to which an address belongs after this Commit.
func (m *mover) groupKeyOf(a netip.Addr) groupKey { return groupKey{m.is.find(a), !a.Is4()} }

// groupOf returns the group in which an address with an endpoint is counted.
func (m *mover) groupOf(a netip.Addr) *group {
	if g := m.strays[a]; g != nil {
		return g
	}
	return m.groups[groupKey{m.was.find(a), !a.Is4()}]
}

// useGroup counts an address in a group, and returns the group.
func (m *mover) useGroup(k groupKey) *group {
	g := m.groups[k]
	if g == nil {
		g = &group{key: k}
		m.groups[k] = g
	}
	g.addrs++
	return g
}

// releaseGroup removes a group if no address is in it.
func (m *mover) releaseGroup(g *group) {
	if g.addrs == 0 && m.groups[g.key] == g {
		delete(m.groups, g.key)
	}
}

// regroup makes changes of prefixes take effect on whole groups of addresses, where that moves nearly
// all addresses of a group. It returns the prefixes for which it does not.
//
// The first policy that names a CIDR with all pods changes the longest prefix of every address.
// Nevertheless, their IDs pass on, because policies can tell the addresses apart as before. To find
// that out address by address takes 50 ms for 100,000 pods. With the whole group, nothing changes
// about its addresses. The few addresses of the group that do not belong to it then, like those of
// this node, are strays until moveInPrefixes moves them.
//
// The changes are made one after the other, as if each were a Commit of its own.
func (m *mover) regroup(set, removed []*prefix) (rest []*prefix) {
	if len(set)+len(removed) > fewChanges {
		return slices.Concat(set, removed)
	}
	slices.SortFunc(set, func(a, b *prefix) int { return cmp.Compare(a.is.Bits(), b.is.Bits()) })
	for _, p := range set {
		if n := m.count(p.is); n > 0 && (n <= m.few || !m.setGroup(p)) {
			rest = append(rest, p)
		}
	}
	for _, p := range removed {
		if n := m.count(p.is); n > 0 && (n <= m.few || !m.removeGroup(p)) {
			rest = append(rest, p)
		}
	}
	return rest
}

// count returns the number of addresses with an endpoint in a prefix, or a number above few.
func (m *mover) count(in netip.Prefix) (n int) {
	for range m.addrs.Subnets(in) {
		if n++; n > m.few {
			break
		}
	}
	return n
}

// setGroup gives a new prefix the group of the prefix around it. It returns false if that group has too
// many addresses outside of the new prefix.
func (m *mover) setGroup(p *prefix) bool {
	with := m.was.with([]*prefix{p}, nil)
	around, bits := around(m.was, p)
	if !m.pass(p.is, bits, around, m.groups[around], groupKey{p.id, around.v6}) {
		return false
	}
	m.was = with
	return true
}

// removeGroup gives the prefix around a removed one the group of the removed one. It returns false if
// too many addresses are in the group around.
func (m *mover) removeGroup(p *prefix) bool {
	without := m.was.with(nil, []*prefix{p})
	around, bits := around(without, p)
	if !m.pass(p.is, bits, groupKey{p.id, around.v6}, m.groups[around], around) {
		return false
	}
	m.was = without
	return true
}

// around returns the key of the group of the longest prefix in t with all of p, and the bits of that
// prefix: 0 if there is none.
func around(t *prefixTable, p *prefix) (groupKey, int) {
	is, found, _ := t.ids.LookupPrefixLPM(p.is)
	return groupKey{found.id, !p.is.Addr().Is4()}, max(0, is.Bits())
}

// pass makes the group with the key "from" the one with the key "to", unless there is none. Addresses
// of the group "outside" that are not in the prefix become strays. The prefix around has the given
// number of bits.
func (m *mover) pass(in netip.Prefix, bits int, from groupKey, outside *group, to groupKey) bool {
	g := m.groups[from]
	if g == nil {
		return true
	}
	strays, ok := m.outside(in, bits, outside)
	if !ok {
		return false
	}
	if len(strays) > 0 && m.strays == nil {
		m.strays = make(map[netip.Addr]*group)
	}
	for _, a := range strays {
		m.strays[a] = outside
	}
	delete(m.groups, from)
	g.key = to
	m.groups[to] = g
	return true
}

// outside returns the addresses of a group that are not in the prefix "in", but in the shorter prefix
// around it that has the given number of bits. It returns false if it would look at more than a few
// addresses.
func (m *mover) outside(in netip.Prefix, bits int, g *group) (list []netip.Addr, ok bool) {
	if g == nil {
		return nil, true
	}
	for n := in.Bits(); n > bits; n-- {
		for p := range m.addrs.Subnets(sibling(in.Addr(), n)) {
			if len(list) > m.few {
				return nil, false
			}
			list = append(list, p.Addr())
		}
	}
	return slices.DeleteFunc(list, func(a netip.Addr) bool { return m.groupOf(a) != g }), true
}

// sibling returns the prefix with n bits that differs in the last one from the prefix of an address.
func sibling(a netip.Addr, n int) netip.Prefix {
	b := a.As16()
	bit := n - 1
	if a.Is4() {
		bit += 96
	}
	b[bit/8] ^= 0x80 >> (bit % 8)
	other := netip.AddrFrom16(b)
	if a.Is4() {
		other = other.Unmap()
	}
	return netip.PrefixFrom(other, n).Masked()
}
