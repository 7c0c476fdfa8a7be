// Package addrbits hashes addresses for Bloom filters with one hash function. eBPF programs test such a
// filter before they look up an address in a hash table: if the bit of the address is clear, the table does not
// have it. The filter fits into the processor's caches, while a lookup in a large table waits some 100 ns for
// memory if the address was not used recently.
//
// addrbits.h has the same function in C. The hash has no secret: an attacker who chooses addresses with set
// bits causes only the lookups that there would be without the filter. The kernel's own Bloom filters
// (BPF_MAP_TYPE_BLOOM_FILTER, Linux 5.16) are too new, and a program reaches them only by a call.
package addrbits

import (
	"encoding/binary"
	"net/netip"
)

// The multipliers are odd and irregular, so that addresses that differ in few places rarely share a bit.
const (
	high uint64 = 0x9e3779b97f4a7c15
	low  uint64 = 0xd1342543de82ef95
)

// Bit returns the number of the bit of an address in a filter of 2^log2 bits. An IPv4 address and its
// mapped form have the same bit.
func Bit(a netip.Addr, log2 int) uint32 {
	b := a.As16()
	// Programs read the words of an address in the byte order of the machine.
	word := func(i int) uint64 { return uint64(binary.NativeEndian.Uint32(b[4*i:])) }
	sum := (word(0)<<32|word(1))*high + (word(2)<<32|word(3))*low
	return uint32((sum ^ sum>>32) * high >> (64 - log2))
}

// Set sets the bit of an address in the words of a filter of 2^log2 bits.
func Set(words []uint64, a netip.Addr, log2 int) {
	bit := Bit(a, log2)
	words[bit/64] |= 1 << (bit % 64)
}
