package bpf

import (
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"sluice/filter/addrbits"
)

// ownedBits is the binary logarithm of the number of bits in the map "owned": OWNED_BITS in program.c.
const ownedBits = 20

// ownedFilter is the map "owned": a Bloom filter of the addresses that have or had an endpoint. Bits are never
// cleared: the addresses of deleted pods keep causing lookups. But pod addresses are reused, so their
// number stays bounded.
type ownedFilter struct {
	in    table
	words []uint64 // bits that the map has; after an error it may have more
}

func newOwnedFilter(in table) *ownedFilter { return &ownedFilter{in, make([]uint64, 1<<ownedBits/64)} }

// add adds addresses. It must return before the programs read a table that has endpoints of these addresses.
func (o *ownedFilter) add(addrs iter.Seq[netip.Addr]) error {
	changed := make(map[uint32]uint64)
	for a := range addrs {
		bit := addrbits.Bit(a, ownedBits)
		at, mask := bit/64, uint64(1)<<(bit%64)
		if o.words[at]&mask == 0 {
			changed[at] = changed[at] | o.words[at] | mask
		}
	}
	keys := slices.Sorted(maps.Keys(changed))
	values := make([]uint64, 0, len(keys))
	for _, at := range keys {
		values = append(values, changed[at])
	}
	if err := put(o.in, keys, values); err != nil {
		return fmt.Errorf("record addresses that have endpoints: %w", err)
	}
	for at, word := range changed {
		o.words[at] = word
	}
	return nil
}
