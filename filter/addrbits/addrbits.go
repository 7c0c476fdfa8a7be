// Package addrbits computes the bits of addresses in sets with false positives, which BPF programs
// look into before they look an address up in a hash table. An address whose bit is not set is not in the table.
// Such a set is small enough for the processor's caches. A lookup in a large table takes some 100 ns
// if the address was not seen lately, because it waits for memory.
//
// addrbits.h has the same function for programs. The bits are not secret: whoever sends packets from
// addresses whose bits are set only causes the lookups that there would be without the set.
package addrbits

import (
	"encoding/binary"
	"net/netip"
)

// The factors are odd, and their bits are mixed, so that addresses that differ in a few bits of any word
// have different bits.
const (
	high uint64 = 0x9e3779b97f4a7c15
	low  uint64 = 0xd1342543de82ef95
)

// Bit returns the number of the bit of an address in a set of 2^log2 bits. An IPv4 address and its
// mapped form have the same.
func Bit(a netip.Addr, log2 int) uint32 {
	b := a.As16()
	// Programs read the words of an address in the byte order of the machine.
	word := func(i int) uint64 { return uint64(binary.NativeEndian.Uint32(b[4*i:])) }
	sum := (word(0)<<32|word(1))*high + (word(2)<<32|word(3))*low
	return uint32((sum ^ sum>>32) * high >> (64 - log2))
}
