package policy

import (
	"net/netip"
	"slices"

	"sluice/filter"
)

// addrRange is the addresses from low to high, both included, of one family, and
// the rule that allows them. netip.Addr.Compare puts all of IPv4 before all of
// IPv6, so that one sorted list serves both.
type addrRange struct {
	low, high netip.Addr
	rule      *filter.Rule
}

// lastOf is the highest address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

// subtract cuts the exceptions out of a prefix. Those of the other family are all
// below it or all above it.
func subtract(from netip.Prefix, excepts []netip.Prefix) []addrRange {
	slices.SortFunc(excepts, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	low, high := from.Addr(), lastOf(from)
	var left []addrRange
	for _, e := range excepts {
		first, last := e.Addr(), lastOf(e)
		if last.Less(low) || high.Less(first) {
			continue
		}
		if low.Less(first) {
			left = append(left, addrRange{low: low, high: first.Prev()})
		}
		if low = last.Next(); !low.IsValid() || high.Less(low) {
			return left // nothing remains above this exception
		}
	}
	return append(left, addrRange{low: low, high: high})
}

// disjoint sorts ranges and cuts away where they overlap, so that a binary search
// finds the one that holds an address. Where two overlap, the one that begins
// first keeps its rule.
func disjoint(ranges []addrRange) []addrRange {
	slices.SortStableFunc(ranges, func(a, b addrRange) int { return a.low.Compare(b.low) })
	var out []addrRange
	for _, r := range ranges {
		if n := len(out); n > 0 {
			last := out[n-1].high
			if !last.Less(r.high) {
				continue
			}
			if !last.Less(r.low) {
				r.low = last.Next()
			}
		}
		out = append(out, r)
	}
	return out
}

// find returns the rule of the range that holds addr, or nil.
func find(ranges []addrRange, addr netip.Addr) *filter.Rule {
	low, high := 0, len(ranges)
	for low < high {
		if mid := int(uint(low+high) >> 1); addr.Less(ranges[mid].low) {
			high = mid
		} else {
			low = mid + 1
		}
	}
	if low == 0 || ranges[low-1].high.Less(addr) {
		return nil
	}
	return ranges[low-1].rule
}
