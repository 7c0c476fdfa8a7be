package policy

import (
	"hash/maphash"
	"math/bits"
	"slices"
)

// idSet is the set of ids of the selectors that match an object. It never changes. A set of
// more than idBits.few ids is a bitmap from its lowest to its highest id, if the bitmap
// takes less memory than a list. Every other set is a sorted list. So a set that is not
// small takes at most one bit for each existing selector.
type idSet struct {
	list  []uint32
	dense *idWords // nil if the set is a list
}

// idWords is a bitmap of ids. idSet has only a pointer to it and so stays small: each class has
// an idSet, and the fields of a class that a decision reads must fit into one cache line.
type idWords struct {
	first uint32 // words[0] holds ids from first*64 on
	words []uint64
}

// has reports whether the set has an id.
func (s *idSet) has(id uint32) bool {
	if s.dense == nil {
		_, found := slices.BinarySearch(s.list, id)
		return found
	}
	return s.dense.has(id)
}

func (d *idWords) has(id uint32) bool {
	at := id/64 - d.first
	return at < uint32(len(d.words)) && d.words[at]>>(id%64)&1 == 1
}

// all calls f for each id, in ascending order.
func (s *idSet) all(f func(uint32)) {
	for _, id := range s.list {
		f(id)
	}
	if s.dense != nil {
		s.dense.all(f)
	}
}

func (d *idWords) all(f func(uint32)) {
	for i, word := range d.words {
		for ; word != 0; word &= word - 1 {
			f((d.first+uint32(i))*64 + uint32(bits.TrailingZeros64(word)))
		}
	}
}

// common calls f for each id that is both in s and in b, in ascending order. It stops when f
// returns false.
func (s *idSet) common(b *idBits, f func(uint32) bool) {
	for _, id := range s.list {
		if at := int(id / 64); at < len(b.words) && b.words[at]>>(id%64)&1 == 1 && !f(id) {
			return
		}
	}
	if s.dense == nil {
		return
	}
	for i := range s.dense.words {
		at := i + int(s.dense.first)
		if at >= len(b.words) {
			return
		}
		for word := s.dense.words[i] & b.words[at]; word != 0; word &= word - 1 {
			if !f(uint32(at*64 + bits.TrailingZeros64(word))) {
				return
			}
		}
	}
}

func (s *idSet) equal(o *idSet) bool {
	if s.dense == nil || o.dense == nil {
		return s.dense == o.dense && slices.Equal(s.list, o.list)
	}
	return s.dense.first == o.dense.first && slices.Equal(s.dense.words, o.dense.words)
}

// sum writes the set to a hash.
func (s *idSet) sum(h *maphash.Hash) {
	var d idWords
	if s.dense != nil {
		d = *s.dense
	}
	maphash.WriteComparable(h, [3]uint32{uint32(len(s.list)), d.first, uint32(len(d.words))})
	for _, id := range s.list {
		maphash.WriteComparable(h, id)
	}
	for _, word := range d.words {
		maphash.WriteComparable(h, word)
	}
}

// idBits is a reusable bitmap in which sets are built.
type idBits struct {
	words     []uint64
	low, high int // words outside of words[low:high] are 0
	few       int // largest number of ids for which take() returns a list
}

func (b *idBits) grow(words int) {
	if n := words - len(b.words); n > 0 {
		b.words = append(b.words, make([]uint64, n)...)
	}
}

func (b *idBits) widen(low, high int) {
	if b.grow(high); b.low == b.high {
		b.low, b.high = low, high
		return
	}
	b.low, b.high = min(b.low, low), max(b.high, high)
}

func (b *idBits) set(id uint32) {
	at := int(id / 64)
	b.widen(at, at+1)
	b.words[at] |= 1 << (id % 64)
}

func (b *idBits) unset(id uint32) {
	if at := int(id / 64); at < len(b.words) {
		b.words[at] &^= 1 << (id % 64)
	}
}

func (b *idBits) has(id uint32) bool {
	at := int(id / 64)
	return at < len(b.words) && b.words[at]>>(id%64)&1 == 1
}

// all calls f for each id, in ascending order.
func (b *idBits) all(f func(uint32)) {
	all := idWords{words: b.words}
	all.all(f)
}

// copyOf makes b a copy of o.
func (b *idBits) copyOf(o *idBits) {
	b.reset()
	b.widen(o.low, o.high)
	copy(b.words[b.low:b.high], o.words[o.low:o.high])
}

// add adds all ids of o.
func (b *idBits) add(o *idBits) {
	if o.low == o.high {
		return
	}
	b.widen(o.low, o.high)
	for i := o.low; i < o.high; i++ {
		b.words[i] |= o.words[i]
	}
}

func (b *idBits) reset() {
	clear(b.words[b.low:b.high])
	b.low, b.high = 0, 0
}

// take returns the ids as an idSet, and empties b.
func (b *idBits) take() (s idSet) {
	words := b.words[b.low:b.high]
	count := 0
	for len(words) > 0 && words[len(words)-1] == 0 {
		words = words[:len(words)-1]
	}
	first := b.low
	for len(words) > 0 && words[0] == 0 {
		words, first = words[1:], first+1
	}
	for _, word := range words {
		count += bits.OnesCount64(word)
	}
	switch wide := (idWords{uint32(first), words}); {
	case count == 0:
	case count > b.few && count > 2*len(words):
		s.dense = &idWords{uint32(first), slices.Clone(words)}
	default:
		s.list = make([]uint32, 0, count)
		wide.all(func(id uint32) { s.list = append(s.list, id) })
	}
	b.reset()
	return s
}
