package bpf

import (
	"fmt"
	"iter"
	"maps"
	"math/bits"
	"net/netip"
	"slices"

	"sluice/filter/addrbits"
)

// ownedBits is the binary logarithm of the number of bits in the map "owned": OWNED_BITS in program.c.
const ownedBits = 20

// manyBits is the number of set bits up to which the filter needs no cleaning: an eighth of all.
const manyBits = 1 << ownedBits / 8

// ownedFilter is the map "owned": a Bloom filter of the addresses that have an endpoint, and of others that had one.
// The addresses of deleted pods keep causing lookups until clean removes them. Usually pod addresses are
// reused, so that it never has to; but over IPv6 a network plugin may give every pod a new one.
type ownedFilter struct {
	in    table
	words []uint64 // bits that the map has; after an error it may have more
	set   int      // number of bits in words
}

func newOwnedFilter(in table) *ownedFilter {
	return &ownedFilter{in: in, words: make([]uint64, 1<<ownedBits/64)}
}

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
	if err := o.put(changed); err != nil {
		return fmt.Errorf("record addresses that have endpoints: %w", err)
	}
	o.know(changed)
	return nil
}

// clean removes all addresses but those given, if many others are in the filter. n is the number of those
// given. No table that the programs read may have endpoints of other addresses.
func (o *ownedFilter) clean(n int, addrs iter.Seq[netip.Addr]) error {
	if o.set <= max(manyBits, 2*n) {
		return nil
	}
	words := make([]uint64, len(o.words))
	for a := range addrs {
		addrbits.Set(words, a, ownedBits)
	}
	changed := make(map[uint32]uint64)
	for at, word := range words {
		if word != o.words[at] {
			changed[uint32(at)] = word
		}
	}
	o.know(changed)
	if err := o.put(changed); err != nil {
		return fmt.Errorf("forget addresses that had endpoints: %w", err)
	}
	return nil
}

// know records that the map has these words.
func (o *ownedFilter) know(changed map[uint32]uint64) {
	for at, word := range changed {
		o.set += bits.OnesCount64(word) - bits.OnesCount64(o.words[at])
		o.words[at] = word
	}
}

// put writes words into the map.
func (o *ownedFilter) put(changed map[uint32]uint64) error {
	keys := slices.Sorted(maps.Keys(changed))
	values := make([]uint64, 0, len(keys))
	for _, at := range keys {
		values = append(values, changed[at])
	}
	return put(o.in, keys, values)
}
