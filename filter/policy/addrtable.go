package policy

import (
	"encoding/binary"
	"iter"
	"math/bits"
	"net/netip"
	"slices"
)

// addrTable maps addresses to their owners and IDs. A table never changes: the method "with" returns a
// new table, which shares all unchanged chapters with the old one. In a table of 100,000
// addresses, one change copies some 16 KB, and a large batch of changes copies little more than
// the whole table once. A lookup makes one memory access that is likely to miss the CPU's caches.
//
// The usual structure for addresses, a prefix trie, would make 500 allocations for each change,
// because it would copy all neighbors of the changed address.
type addrTable struct {
	size     int
	chapters []*chapter // the length is a power of two
}

// perChapter bounds the average number of addresses in a chapter.
const perChapter = 128

// chapter is a hash table of some of the addresses, with linear probing.
type chapter struct {
	used  int
	slots []entry // the length is a power of two; at most three in four slots are used
}

// entry is a slot of a chapter: an address as 16 bytes, its owner, and its ID. A slot without an
// owner is free. With a netip.Addr, an entry would be a quarter larger, and the two lookups
// for each packet would be slower.
type entry struct {
	high, low uint64
	owner     *Endpoint
	id        ID
}

// entryOf returns an entry without an ID.
func entryOf(a netip.Addr, owner *Endpoint) entry {
	b := a.As16()
	return entry{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:]), owner, 0}
}

// addr returns the address. IPv4 addresses are unmapped.
func (e *entry) addr() netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], e.high)
	binary.BigEndian.PutUint64(b[8:], e.low)
	return netip.AddrFrom16(b).Unmap()
}

// hash returns the hash of the address. The low half of the hash selects the chapter, and the
// high half selects the slot where probing begins. The hash needs no secret seed: only an
// attacker who could choose the addresses of thousands of pods could make them collide.
func (e *entry) hash() uint64 {
	high, low := bits.Mul64(e.high^0x9e3779b97f4a7c15, e.low^0xd1b54a32d192ed03)
	return high ^ low
}

// slot returns the slot that holds the address, or the free slot where it belongs.
func (c *chapter) slot(e *entry, hash uint64) *entry {
	mask := uint64(len(c.slots) - 1)
	for i := hash >> 32; ; i++ {
		s := &c.slots[i&mask]
		if s.owner == nil || s.low == e.low && s.high == e.high {
			return s
		}
	}
}

// get returns the owner of an address, or nil.
func (t *addrTable) get(a netip.Addr) *Endpoint {
	owner, _ := t.find(a)
	return owner
}

// find returns the owner of an address and the ID of the address; nil and 0 if it has no owner.
func (t *addrTable) find(a netip.Addr) (*Endpoint, ID) {
	if t.size == 0 {
		return nil, 0
	}
	e := entryOf(a, nil)
	hash := e.hash()
	s := t.chapters[hash&uint64(len(t.chapters)-1)].slot(&e, hash)
	return s.owner, s.id
}

// all yields the addresses with their owners, in no particular order.
func (t *addrTable) all() iter.Seq2[netip.Addr, *entry] {
	return func(yield func(netip.Addr, *entry) bool) {
		for _, c := range t.chapters {
			for i := range c.slots {
				if e := &c.slots[i]; e.owner != nil && !yield(e.addr(), e) {
					return
				}
			}
		}
	}
}

// with returns a table with changed entries: each move sets the owner and the ID of an address, or
// removes the address if the owner is nil.
func (t *addrTable) with(changes []move) *addrTable {
	next := &addrTable{size: t.size, chapters: slices.Clone(t.chapters)}
	shared := make([]bool, len(t.chapters))
	for i := range shared {
		shared[i] = true
	}
	if n := chaptersFor(t.size+len(changes), len(t.chapters)); n != len(t.chapters) {
		next.size, next.chapters, shared = 0, make([]*chapter, n), make([]bool, n)
		for i := range next.chapters {
			next.chapters[i] = newChapter(nil, 4)
		}
		for _, c := range t.chapters {
			for _, e := range c.slots {
				next.set(shared, e)
			}
		}
	}
	for i := range changes {
		next.set(shared, changes[i].entry)
	}
	return next
}

// chaptersFor returns the number of chapters that a table with addrs addresses should have.
// n is the number that it has now.
func chaptersFor(addrs, n int) int {
	n = max(n, 1)
	for addrs > n*perChapter {
		n *= 2
	}
	for n > 1 && addrs < n*perChapter/8 {
		n /= 2
	}
	return n
}

// set sets the entry of an address, or removes the address if the owner is nil. If the
// chapter of the address is shared with another table, set copies the chapter first.
func (t *addrTable) set(shared []bool, e entry) {
	hash := e.hash()
	at := hash & uint64(len(t.chapters)-1)
	c := t.chapters[at]
	if shared[at] {
		c, shared[at] = &chapter{c.used, slices.Clone(c.slots)}, false
		t.chapters[at] = c
	}
	switch s := c.slot(&e, hash); {
	case (s.owner == nil) == (e.owner == nil):
		*s = e
	case e.owner == nil:
		// An entry in a later slot may have been placed there because this slot was taken. A
		// lookup stops at a free slot, and would no longer find that entry. So all entries of
		// the chapter are placed again.
		*s = entry{}
		t.chapters[at] = newChapter(c.slots, len(c.slots))
		t.size--
	default:
		*s = e
		if c.used++; 4*c.used > 3*len(c.slots) {
			t.chapters[at] = newChapter(c.slots, 2*len(c.slots))
		}
		t.size++
	}
}

// newChapter returns a chapter with the given entries and number of slots, a power of two.
func newChapter(entries []entry, slots int) *chapter {
	c := &chapter{slots: make([]entry, slots)}
	for i := range entries {
		if e := &entries[i]; e.owner != nil {
			*c.slot(e, e.hash()) = *e
			c.used++
		}
	}
	return c
}
