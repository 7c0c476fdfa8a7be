package policy

import (
	"encoding/binary"
	"iter"
	"math/bits"
	"net/netip"
	"slices"
)

// addrTable says who has an address. It never changes: with makes another one,
// which shares the chapters in which nothing has changed. So a lone change costs
// about 20 KB and a burst of them little more than the table's size, both of which
// is soon garbage; and a look-up is one place in memory that is not near.
//
// A prefix trie, for which addresses are made, copies every neighbor of a host
// address with each change: 500 allocations.
type addrTable struct {
	size     int
	chapters []*chapter // as many as a power of two
}

// perChapter is how many addresses a chapter has at most, on average.
const perChapter = 128

// chapter is a hash table of some addresses, with open addressing.
type chapter struct {
	used  int
	slots []entry // as many as a power of two, of which at most three in four are used
}

// entry is an address, as 16 bytes, and its owner, which is nil if the slot is free. With
// a netip.Addr it would be a third larger, and the packet's two look-ups slower.
type entry struct {
	high, low uint64
	owner     *Endpoint
}

func entryOf(a netip.Addr, owner *Endpoint) entry {
	b := a.As16()
	return entry{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:]), owner}
}

// addr is the address.
func (e *entry) addr() netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], e.high)
	binary.BigEndian.PutUint64(b[8:], e.low)
	return netip.AddrFrom16(b).Unmap()
}

// hash says where the address is: the low half in which chapter, the high half from
// which slot on. It is the same for every agent: an attacker who wants addresses to
// collide would have to choose those of thousands of pods.
func (e *entry) hash() uint64 {
	high, low := bits.Mul64(e.high^0x9e3779b97f4a7c15, e.low^0xd1b54a32d192ed03)
	return high ^ low
}

// slot is where the address is, or else a free slot.
func (c *chapter) slot(e *entry, hash uint64) *entry {
	mask := uint64(len(c.slots) - 1)
	for i := hash >> 32; ; i++ {
		s := &c.slots[i&mask]
		if s.owner == nil || s.low == e.low && s.high == e.high {
			return s
		}
	}
}

// get returns who has an address, or nil.
func (t *addrTable) get(a netip.Addr) *Endpoint {
	if t.size == 0 {
		return nil
	}
	e := entryOf(a, nil)
	hash := e.hash()
	return t.chapters[hash&uint64(len(t.chapters)-1)].slot(&e, hash).owner
}

// all lists all addresses, in no particular order.
func (t *addrTable) all() iter.Seq2[netip.Addr, *Endpoint] {
	return func(yield func(netip.Addr, *Endpoint) bool) {
		for _, c := range t.chapters {
			for i := range c.slots {
				if e := &c.slots[i]; e.owner != nil && !yield(e.addr(), e.owner) {
					return
				}
			}
		}
	}
}

// with returns a table in which some addresses have other owners; nil is none.
func (t *addrTable) with(changes []entry) *addrTable {
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
	for _, e := range changes {
		next.set(shared, e)
	}
	return next
}

// chaptersFor returns the number of chapters that a table of addrs addresses needs, given
// that it has n now.
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

// set sets the owner of an address, or nil, in a chapter that is not shared afterwards.
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
		// What stands behind it may be there only because it was in the way.
		s.owner = nil
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

// newChapter makes a chapter of entries, with so many slots.
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
