package inventory

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sluice/filter/policy"
)

// Range is a set of addresses that no range of a policy tells apart: those in Prefix, but not in
// Except.
type Range struct {
	Prefix netip.Prefix
	Except []netip.Prefix // inside of Prefix, disjoint, sorted
}

// maxExcept bounds the number of exceptions in the text of a range.
const maxExcept = 3

// String returns the range as people write it: "10.0.0.0/8 except 10.1.0.0/16".
func (r Range) String() string {
	text := r.Prefix.String()
	if r.Prefix.IsSingleIP() {
		text = r.Prefix.Addr().String()
	}
	if len(r.Except) == 0 {
		return text
	}
	var texts []string
	for i, e := range r.Except {
		if i == maxExcept && len(r.Except) > maxExcept+1 {
			texts = append(texts, fmt.Sprintf("%d more", len(r.Except)-i))
			break
		}
		texts = append(texts, e.String())
	}
	return text + " except " + strings.Join(texts, ", ")
}

// Where states that an address is in the range, as in "is in 10.0.0.0/8" or "is 10.0.0.1".
func (r Range) Where() string {
	if r.Prefix.IsSingleIP() {
		return "is " + r.String()
	}
	return "is in " + r.String()
}

// Contains reports whether an address is in the range.
func (r Range) Contains(a netip.Addr) bool {
	return r.Prefix.Contains(a) && !slices.ContainsFunc(r.Except, func(e netip.Prefix) bool { return e.Contains(a) })
}

// Addrs yields the addresses of the range in ascending order, except that the first address of the
// prefix, which usually belongs to no host, comes last.
func (r Range) Addrs(yield func(netip.Addr) bool) {
	first, last := r.Prefix.Addr(), lastOf(r.Prefix)
	at := first
	if first != last {
		at = at.Next()
	}
	for i := 0; at.IsValid() && at.Compare(last) <= 0; {
		for i < len(r.Except) && lastOf(r.Except[i]).Compare(at) < 0 {
			i++
		}
		if i < len(r.Except) && r.Except[i].Contains(at) {
			at = lastOf(r.Except[i]).Next()
			continue
		}
		if !yield(at) {
			return
		}
		at = at.Next()
	}
	if first != last && r.Contains(first) {
		yield(first)
	}
}

// without returns r without the prefixes, which are masked, disjoint and sorted.
func (r Range) without(prefixes []netip.Prefix) Range {
	var cut []netip.Prefix
	for _, p := range prefixes {
		switch {
		case !p.Overlaps(r.Prefix):
		case p.Bits() <= r.Prefix.Bits():
			return Range{Prefix: r.Prefix, Except: []netip.Prefix{r.Prefix}}
		default:
			cut = append(cut, p)
		}
	}
	if len(cut) == 0 {
		return r
	}
	return Range{Prefix: r.Prefix, Except: newMarks(append(cut, r.Except...)).outermost()}
}

// lastOf returns the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b) // cannot fail: b has the length of an address
	return a
}

// marks are the prefixes in the rules of policies. Two prefixes are disjoint, or one contains the
// other, so the marks are a forest.
type marks struct {
	prefixes []netip.Prefix // sorted, each before those that it contains
	outer    []int          // by index in prefixes: the index of the smallest other prefix that contains it, or unmarked
}

// unmarked is the index for an address or a prefix that no mark contains.
const unmarked = -1

// marksOf collects the prefixes of all policies: of ipBlocks, of their exceptions, and of
// networks.
func marksOf(policies []*policy.Policy) marks {
	var all []netip.Prefix
	for _, p := range policies {
		for d := range p.Rules {
			for _, r := range p.Rules[d] {
				for _, peer := range r.Peers {
					if peer.Block != nil && peer.Block.CIDR.IsValid() {
						all = append(append(all, peer.Block.CIDR), peer.Block.Except...)
					}
					all = append(all, peer.Networks...)
				}
			}
		}
	}
	return newMarks(all)
}

// newMarks returns the marks of prefixes, which may be in any order. It modifies the slice.
func newMarks(prefixes []netip.Prefix) marks {
	prefixes = slices.DeleteFunc(prefixes, func(p netip.Prefix) bool { return !p.IsValid() })
	for i, p := range prefixes {
		prefixes[i] = p.Masked()
	}
	slices.SortFunc(prefixes, comparePrefixes)
	m := marks{prefixes: slices.Compact(prefixes)}
	for i, p := range m.prefixes {
		m.outer = append(m.outer, m.contains(i-1, p.Addr()))
	}
	return m
}

// comparePrefixes orders masked prefixes by address, and a prefix before those that it contains.
func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// outermost returns the marks that no other mark contains.
func (m marks) outermost() (out []netip.Prefix) {
	for i, p := range m.prefixes {
		if m.outer[i] == unmarked {
			out = append(out, p)
		}
	}
	return out
}

// contains returns the smallest mark that contains an address, out of mark i and the marks that
// contain mark i.
func (m marks) contains(i int, a netip.Addr) int {
	for i != unmarked && !m.prefixes[i].Contains(a) {
		i = m.outer[i]
	}
	return i
}

// at returns the smallest mark that contains an address. All other marks that contain the address
// contain this mark, so addresses with the same smallest mark are in the same ranges of policies.
func (m marks) at(a netip.Addr) int {
	behind, _ := slices.BinarySearchFunc(m.prefixes, a, func(p netip.Prefix, a netip.Addr) int {
		if p.Addr().Compare(a) <= 0 {
			return -1
		}
		return 1
	})
	return m.contains(behind-1, a)
}

// inside returns the marks that a prefix contains, without the prefix itself.
func (m marks) inside(p netip.Prefix) []netip.Prefix {
	first, has := slices.BinarySearchFunc(m.prefixes, p, comparePrefixes)
	if has {
		first++
	}
	n := 0
	for n < len(m.prefixes)-first && p.Contains(m.prefixes[first+n].Addr()) {
		n++
	}
	return m.prefixes[first : first+n]
}

// cut cuts a prefix into ranges at the marks. The first range has the addresses of the prefix that
// are in none of the marks inside of it; it is missing if there are no such addresses.
func (m marks) cut(within netip.Prefix) []Range {
	within = within.Masked()
	ranges := []Range{{Prefix: within}}
	open := []int{0} // the ranges that contain the current mark, outermost first
	for _, p := range m.inside(within) {
		for !ranges[open[len(open)-1]].Prefix.Contains(p.Addr()) {
			open = open[:len(open)-1]
		}
		parent := &ranges[open[len(open)-1]]
		parent.Except = append(parent.Except, p)
		ranges = append(ranges, Range{Prefix: p})
		open = append(open, len(ranges)-1)
	}
	return slices.DeleteFunc(ranges, func(r Range) bool { return !r.first().IsValid() })
}

// first returns the first address that Addrs yields; it is invalid if the range is empty.
func (r Range) first() netip.Addr {
	for a := range r.Addrs {
		return a
	}
	return netip.Addr{}
}

// around returns the marks that contain an address, as text.
func (m marks) around(a netip.Addr) string {
	var b strings.Builder
	for i := m.at(a); i != unmarked; i = m.outer[i] {
		b.WriteString(m.prefixes[i].String() + " ")
	}
	return b.String()
}
