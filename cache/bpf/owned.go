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

// owned is the map "owned": the set of addresses that have an endpoint, or had one, and of others by
// chance. Bits are never cleared. So an address whose pod is gone still costs a packet the lookup that
// the set saves; but pods have addresses from ranges, which are used again.
type owned struct {
	in    table
	words []uint64 // what the map holds for certain
}

func newOwned(in table) *owned { return &owned{in, make([]uint64, 1<<ownedBits/64)} }

// add adds addresses. It must return before the programs read a table with endpoints of them.
func (o *owned) add(addrs iter.Seq[netip.Addr]) error {
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
