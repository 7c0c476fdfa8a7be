package inventory

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sluice/filter/policy"
)

// Range is a set of addresses that no range of a policy tells apart: those of Prefix, without
// those of Except.
type Range struct {
	Prefix netip.Prefix
	Except []netip.Prefix // inside of Prefix, disjoint, sorted
}

// maxExcept bounds the exceptions in the text of a range.
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

// Addrs yields the addresses of the range in ascending order. It begins after the first address
// of the prefix, which usually belongs to no host, unless the range has no other.
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

// lastOf returns the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b) // the length is that of an address
	return a
}

// marks are the prefixes in the ranges of policies, sorted, each before those inside of it.
type marks []netip.Prefix

// marksOf collects the prefixes of all policies: of ipBlocks, of their exceptions, and of
// networks.
func marksOf(policies []*policy.Policy) marks {
	var all marks
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
	return all.sorted()
}

func (m marks) sorted() marks {
	m = slices.DeleteFunc(m, func(p netip.Prefix) bool { return !p.IsValid() })
	for i, p := range m {
		m[i] = p.Masked()
	}
	slices.SortFunc(m, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.Compact(m)
}

// cut cuts a prefix into ranges at the marks. The first is what remains of the prefix itself; it
// is missing if the marks inside of the prefix cover it.
func (m marks) cut(within netip.Prefix) []Range {
	ranges := []Range{{Prefix: within.Masked()}}
	open := []int{0} // the ranges that contain the current mark, outermost first
	for _, p := range m {
		if p.Bits() <= within.Bits() || !within.Overlaps(p) {
			continue
		}
		for !ranges[open[len(open)-1]].Prefix.Contains(p.Addr()) {
			open = open[:len(open)-1]
		}
		parent := &ranges[open[len(open)-1]]
		parent.Except = append(parent.Except, p)
		ranges = append(ranges, Range{Prefix: p})
		open = append(open, len(ranges)-1)
	}
	return slices.DeleteFunc(ranges, func(r Range) bool { return r.empty() })
}

func (r Range) empty() bool {
	for range r.Addrs {
		return false
	}
	return true
}

// around returns the marks that contain an address, as text.
func (m marks) around(a netip.Addr) string {
	var b strings.Builder
	for _, p := range m {
		if p.Contains(a) {
			b.WriteString(p.String() + " ")
		}
	}
	return b.String()
}
