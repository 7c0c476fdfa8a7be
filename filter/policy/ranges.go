package policy

import (
	"net/netip"
	"slices"
)

// addrRange is a range of addresses of one family, from low to high, both included.
// netip.Addr.Compare sorts all IPv4 addresses before all IPv6 addresses, so that one sorted
// list holds ranges of both families.
type addrRange struct {
	low, high netip.Addr
}

// lastOf returns the highest address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

// subtract returns the addresses of a prefix without those of the exceptions. It ignores
// host bits. Exceptions of the other address family are entirely below or above the prefix,
// and have no effect.
func subtract(from netip.Prefix, written []netip.Prefix) []addrRange {
	from = from.Masked()
	excepts := make([]netip.Prefix, len(written))
	for i, e := range written {
		excepts[i] = e.Masked()
	}
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

// after returns the address after a, where IPv6 follows IPv4. It returns the zero Addr
// after the last IPv6 address.
func after(a netip.Addr) netip.Addr {
	if next := a.Next(); next.IsValid() || a.Is6() {
		return next
	}
	return netip.IPv6Unspecified()
}

// placeOf returns the place of an address among sorted bounds: the number of bounds that are
// less than or equal to the address.
func placeOf(bounds []netip.Addr, addr netip.Addr) uint32 {
	low, high := 0, len(bounds)
	for low < high {
		if mid := int(uint(low+high) >> 1); addr.Less(bounds[mid]) {
			high = mid
		} else {
			low = mid + 1
		}
	}
	return uint32(low)
}

// disjoint sorts ranges, in place, and removes overlaps, so that a binary search finds the
// range of an address. An overlap stays with the range that begins first.
func disjoint(ranges []blockRange) []blockRange {
	slices.SortFunc(ranges, func(a, b blockRange) int { return compareBoth(a.low, b.low, a.rule, b.rule) })
	out := ranges[:0]
	for _, r := range ranges {
		if n := len(out); n > 0 {
			last := out[n-1].end
			if r.end <= last {
				continue
			}
			r.low = max(r.low, last)
			if r.low == last && out[n-1].rule == r.rule {
				out[n-1].end = r.end
				continue
			}
		}
		out = append(out, r)
	}
	return fitted(out)
}

// blockAt returns the rule index of the range that contains an address, or noRule. "place" is
// the address's place among the bounds (see placeOf).
func blockAt(ranges []blockRange, place uint32) uint32 {
	low, high := 0, len(ranges)
	for low < high {
		if mid := int(uint(low+high) >> 1); place < ranges[mid].low {
			high = mid
		} else {
			low = mid + 1
		}
	}
	if low == 0 || ranges[low-1].end <= place {
		return noRule
	}
	return ranges[low-1].rule
}
