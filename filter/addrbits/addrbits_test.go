package addrbits_test

import (
	"net/netip"
	"testing"

	"sluice/filter/addrbits"
)

// Few of 4,096 consecutive addresses share a bit, whatever part of the address networks count hosts or subnets in.
func TestNeighboringAddressesHaveDifferentBits(t *testing.T) {
	const log2, each = 20, 4096
	for _, first := range []string{"10.0.0.0", "198.18.0.0", "fd00:10:244::", "2001:db8:1:2:3:4:5:6"} {
		for _, at := range []int{15, 14, 13, 7, 6, 5} { // the byte from which the addresses are counted
			a := netip.MustParseAddr(first)
			if a.Is4() && at < 13 {
				continue
			}
			b, bits := a.As16(), make(map[uint32]bool)
			for i := range each {
				next := b
				next[at] += byte(i)
				next[at-1] += byte(i >> 8)
				bits[addrbits.Bit(netip.AddrFrom16(next).Unmap(), log2)] = true
			}
			if len(bits) < each*9/10 {
				t.Errorf("%d addresses from %s, counted in byte %d, have %d bits", each, first, at, len(bits))
			}
		}
	}
}
