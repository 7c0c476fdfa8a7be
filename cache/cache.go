// Package cache is the flow cache in user space: verdicts by key, for the evaluator of
// sluice/filter/engine. The packages below it are the other places that remember verdicts:
// bpf, a flow cache in the kernel; conntrack, the marks of live connections.
//
// A cache is never flushed. A remembered verdict contains the epochs that the source and
// the destination had when it was decided. The epoch of an address changes whenever a
// verdict about the address may change. A cache uses a verdict only if both of its epochs
// are current. So a new pod does not invalidate verdicts about other addresses. A verdict
// that is decided before a change and inserted after it is never used.
package cache

import (
	"hash/maphash"
	"sync/atomic"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"sluice/filter"
	"sluice/filter/policy"
)

// DefaultSize is the number of flows in one cache: some 9 MiB when full.
const DefaultSize = 32768

// Stats are the statistics of a cache. They may be read while it is in use.
type Stats struct {
	Hits   uint64 // verdicts from the cache
	Misses uint64 // decisions about flows that were not in the cache
	Stale  uint64 // decisions about flows whose verdict was out of date
	Size   int    // flows in the cache
}

// Flows is the flow cache of one queue worker: a bounded LRU of verdicts by key.
// It takes no lock and serves one goroutine. A cache for all workers would save little: the
// kernel sends all packets between two addresses to one worker.
//
// A flow is inserted when it is decided for the second time. A port scan then evicts no flow
// in use. A flow that is seen only once costs no allocation; an insertion costs two
// allocations.
type Flows struct {
	lru        *simplelru.LRU[filter.Key, *flow]
	seed       maphash.Seed
	doorkeeper []doorkeeperSet // flows that were decided recently, by hash

	hits, misses, stale atomic.Uint64
	size                atomic.Int64
}

// flow is a remembered verdict.
type flow struct {
	verdict filter.Verdict
	ends    Ends
	// snapshot is the number of the last snapshot for which Decide has found the verdict
	// valid. While that snapshot is in force, Decide returns the verdict without looking up
	// the endpoints to compare epochs. This halves the cost of a hit.
	snapshot uint64
}

// doorkeeperSet holds the tags of up to 16 flows that were decided recently, the latest
// first. The tag of a flow is a part of its hash. A set is one cache line long. If a set
// had only one entry, two flows of the same set could evict each other in turn, and neither
// would ever enter the cache: with 32,768 such sets, one in eight of 4,000 flows shares its
// set with another.
type doorkeeperSet [16]uint32

// Ends are the source and the destination of a flow, as a snapshot knows them.
type Ends struct {
	// Src and Dst are the epochs of the ends, and 0 if the snapshot has no policy.Endpoint for the
	// address.
	Src, Dst     uint64
	SrcID, DstID policy.ID
	ByIDs        bool // see policy.DecidedByIDs
}

// Reverse returns the ends of the opposite direction.
func (e Ends) Reverse() Ends { return Ends{e.Dst, e.Src, e.DstID, e.SrcID, e.ByIDs} }

// NewFlows returns a cache for up to size flows; 0 or less disables it.
func NewFlows(size int) *Flows {
	if size <= 0 {
		return &Flows{}
	}
	lru, err := simplelru.NewLRU[filter.Key, *flow](size, nil)
	if err != nil {
		return &Flows{} // NewLRU fails only for sizes that are not positive
	}
	sets := 1
	for sets*len(doorkeeperSet{}) < 2*size { // at least two entries for each cached flow, so that few sets overflow
		sets *= 2
	}
	return &Flows{lru: lru, seed: maphash.MakeSeed(), doorkeeper: make([]doorkeeperSet, sets)}
}

// Decide returns the snapshot's verdict and the epochs of both ends. It returns a cached
// verdict if there is one with these epochs. Otherwise the snapshot decides, and the last
// result is true.
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
	src, srcID := s.Identify(srcAddr)
	dst, dstID := s.Identify(dstAddr)
	ends = Ends{src.Epoch(), dst.Epoch(), srcID, dstID, policy.DecidedByIDs(srcAddr, dstAddr, src, dst)}
	if known != nil && known.ends.Src == ends.Src && known.ends.Dst == ends.Dst {
		f.hits.Add(1)
		known.ends, known.snapshot = ends, s.Number() // an ID may change while the epoch stays
		return known.verdict, ends, false
	}
	decided := flow{s.DecideBetween(k, srcAddr, dstAddr, src, dst), ends, s.Number()}
	switch {
	case known != nil:
		f.stale.Add(1)
		*known = decided
	case f.lru != nil && f.seen(k):
		f.misses.Add(1)
		f.remember(k, decided)
	default:
		f.misses.Add(1)
	}
	return decided.verdict, ends, true
}

// remember inserts a verdict. It is separate from Decide because its second parameter escapes
// to the heap: as a variable of Decide, this value would be allocated on every miss.
func (f *Flows) remember(k *filter.Key, decided flow) {
	f.lru.Add(*k, &decided)
	f.size.Store(int64(f.lru.Len()))
}

// seen reports whether the flow was decided recently: whether its tag is in its
// doorkeeperSet. If not, seen adds the tag, and a full set drops its oldest tag. About once
// in a hundred million calls, another flow of the set has the same tag. Then seen wrongly
// returns true, and the only effect is that Decide inserts the flow already at its first
// decision.
func (f *Flows) seen(k *filter.Key) bool {
	h := maphash.Comparable(f.seed, *k)
	set, tag := &f.doorkeeper[h&uint64(len(f.doorkeeper)-1)], uint32(h>>32)|1 // a tag is never 0, because 0 marks a free entry
	for _, t := range set {
		if t == tag {
			return true
		}
	}
	copy(set[1:], set[:])
	set[0] = tag
	return false
}

// Stats returns the statistics of the cache.
func (f *Flows) Stats() Stats {
	return Stats{Hits: f.hits.Load(), Misses: f.misses.Load(), Stale: f.stale.Load(), Size: int(f.size.Load())}
}
