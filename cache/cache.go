// Package cache holds every place where a verdict is remembered. Here is the
// flow cache in user space.
//
// The packages below it are the other places: kernel, a flow cache in the kernel;
// conntrack, the marks of live connections.
//
// Nothing is ever flushed. A remembered verdict carries the epochs of both ends,
// which change whenever a verdict about them could; it answers only while both
// are current. So a pod that starts elsewhere empties nobody's cache, and a
// verdict that is remembered too late never answers at all.
package cache

import (
	"hash/maphash"
	"sync/atomic"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"sluice/filter"
	"sluice/filter/policy"
)

// DefaultSize is how many flows one cache remembers: some 9 MiB when full.
const DefaultSize = 32768

// Stats say how a cache has done. They may be read while it is in use.
type Stats struct {
	Hits   uint64 // answers from the cache
	Misses uint64 // decisions, because the flow was not remembered
	Stale  uint64 // decisions, because what was remembered no longer held
	Size   int    // flows that are remembered
}

// Flows is the flow cache of one queue worker: a bounded LRU of verdicts by key.
// It takes no lock and must be used by one goroutine; the kernel hands all
// packets between two addresses to one worker, so that workers would share next
// to nothing.
//
// A flow is remembered when it is decided for the second time. A scan of ports
// then pushes nothing out that is worth keeping, and a flow that is never seen
// again costs no allocation, of which an insertion takes two.
type Flows struct {
	lru        *simplelru.LRU[filter.Key, *flow]
	seed       maphash.Seed
	doorkeeper []doorkeeperSet // by hash: flows decided lately

	hits, misses, stale atomic.Uint64
	size                atomic.Int64
}

// flow is a remembered verdict.
type flow struct {
	verdict filter.Verdict
	ends    Ends
	// snapshot is the number of the one by which the verdict was last found to
	// hold. As long as that is in force nobody has to be looked up, which is half
	// of what a hit would cost otherwise.
	snapshot uint64
}

// doorkeeperSet is a set of flows that were decided, the last one first, in one cache line.
// With room for one flow, two that take turns would each make it forget the other
// and never be remembered: an eighth of 4,000 flows had such a twin.
type doorkeeperSet [16]uint32

// Ends are the epochs of both ends of a flow: 0 where nobody is known to have the
// address.
type Ends struct{ Src, Dst uint64 }

// NewFlows returns a cache for up to size flows; 0 or less turns it off.
func NewFlows(size int) *Flows {
	if size <= 0 {
		return &Flows{}
	}
	lru, err := simplelru.NewLRU[filter.Key, *flow](size, nil)
	if err != nil {
		return &Flows{} // it fails for sizes that are not positive alone
	}
	sets := 1
	for sets*len(doorkeeperSet{}) < 2*size { // half full, few sets overflow
		sets *= 2
	}
	return &Flows{lru: lru, seed: maphash.MakeSeed(), doorkeeper: make([]doorkeeperSet, sets)}
}

// Decide gives the verdict that the snapshot gives, from memory where that still
// holds, and the epochs of both ends. fresh is set if it is a decision, and not from
// memory.
func (f *Flows) Decide(s *policy.Snapshot, k *filter.Key) (v filter.Verdict, ends Ends, fresh bool) {
	var known *flow
	if f.lru != nil {
		known, _ = f.lru.Get(*k)
	}
	if known != nil && known.snapshot == s.Number() {
		f.hits.Add(1)
		return known.verdict, known.ends, false
	}
	srcAddr, dstAddr := k.SrcAddr(), k.DstAddr()
	src, dst := s.Endpoint(srcAddr), s.Endpoint(dstAddr)
	ends = Ends{src.Epoch(), dst.Epoch()}
	if known != nil && known.ends == ends {
		f.hits.Add(1)
		known.snapshot = s.Number()
		return known.verdict, ends, false
	}
	now := flow{s.DecideBetween(k, srcAddr, dstAddr, src, dst), ends, s.Number()}
	switch {
	case known != nil:
		f.stale.Add(1)
		*known = now
	case f.lru != nil && f.seen(k):
		f.misses.Add(1)
		f.remember(k, now)
	default:
		f.misses.Add(1)
	}
	return now.verdict, ends, true
}

// remember keeps a verdict. It is a function of its own so that what is kept, and
// nothing else, is allocated.
func (f *Flows) remember(k *filter.Key, now flow) {
	f.lru.Add(*k, &now)
	f.size.Store(int64(f.lru.Len()))
}

// seen says whether the flow was decided lately, and remembers that it was. A set
// that is full forgets the flow that it has had longest. Once in some hundred
// million times it takes one flow for another and remembers it early.
func (f *Flows) seen(k *filter.Key) bool {
	h := maphash.Comparable(f.seed, *k)
	set, tag := &f.doorkeeper[h&uint64(len(f.doorkeeper)-1)], uint32(h>>32)|1 // never 0, which is no flow
	for _, t := range set {
		if t == tag {
			return true
		}
	}
	copy(set[1:], set[:])
	set[0] = tag
	return false
}

// Stats says how the cache has done.
func (f *Flows) Stats() Stats {
	return Stats{Hits: f.hits.Load(), Misses: f.misses.Load(), Stale: f.stale.Load(), Size: int(f.size.Load())}
}
