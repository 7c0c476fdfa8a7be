// Package cache is the flow cache in user space: verdicts by key, for the evaluator of
// sluice/filter/engine. The packages below it are the other places that remember verdicts:
// bpf, a flow cache in the kernel; conntrack, the marks of live connections.
//
// A cache is never flushed, and no entry is ever out of date. The key of a verdict has an ID for each
// end, which stands for all that policies can see of the address (see policy.ID). So the verdict holds
// for all addresses with these IDs, also for those that were never seen before. A change that alters
// a verdict gives an address of it another ID, and with it another key. A verdict that is decided
// before a change and inserted after it is never used for an address that the change concerns.
package cache

import (
	"hash/maphash"
	"sync/atomic"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"sluice/filter"
	"sluice/filter/policy"
)

// DefaultSize is the number of verdicts in one cache: some 7 MiB when full.
const DefaultSize = 32768

// Stats are the statistics of a cache. They may be read while it is in use.
type Stats struct {
	Hits   uint64 // verdicts from the cache
	Misses uint64 // decisions about flows that were not in the cache
	Size   int    // verdicts in the cache
}

// Flows is the flow cache of one queue worker: a bounded LRU of verdicts by key.
// It takes no lock and serves one goroutine. A cache for all workers would save little: the
// kernel sends all packets between two addresses to one worker.
//
// A verdict is inserted when it is decided for the second time. A port scan then evicts no verdict
// in use. A verdict that is needed only once costs no allocation; an insertion costs one.
type Flows struct {
	lru        *simplelru.LRU[policy.IDKey, filter.Verdict]
	seed       maphash.Seed
	doorkeeper []doorkeeperSet // keys that were decided recently, by hash

	hits, misses atomic.Uint64
	size         atomic.Int64
}

// doorkeeperSet holds the tags of up to 16 flows that were decided recently, the latest
// first. The tag of a flow is a part of its hash. A set is one cache line long. If a set
// had only one entry, two flows of the same set could evict each other in turn, and neither
// would ever enter the cache: with 32,768 such sets, one in eight of 4,000 flows shares its
// set with another.
type doorkeeperSet [16]uint32

// Ends are the source and the destination of a flow, as a snapshot knows them.
type Ends struct {
	SrcID, DstID           policy.ID
	SrcPending, DstPending policy.Pending
	ByIDs                  bool // see policy.DecidedByIDs
}

// Reverse returns the ends of the opposite direction.
func (e Ends) Reverse() Ends { return Ends{e.DstID, e.SrcID, e.DstPending, e.SrcPending, e.ByIDs} }

// Pending reports whether the address of an end is pending.
func (e Ends) Pending() bool { return e.SrcPending != policy.Known || e.DstPending != policy.Known }

// NewFlows returns a cache for up to size flows; 0 or less disables it.
func NewFlows(size int) *Flows {
	if size <= 0 {
		return &Flows{}
	}
	lru, err := simplelru.NewLRU[policy.IDKey, filter.Verdict](size, nil)
	if err != nil {
		return &Flows{} // NewLRU fails only for sizes that are not positive
	}
	sets := 1
	for sets*len(doorkeeperSet{}) < 2*size { // at least two entries for each cached verdict, so that few sets overflow
		sets *= 2
	}
	return &Flows{lru: lru, seed: maphash.MakeSeed(), doorkeeper: make([]doorkeeperSet, sets)}
}

// Decide returns the snapshot's verdict and the ends of the flow. If the verdict is not from the cache,
// the last result is true.
//
// The cache has no verdicts about pending addresses. The engine may not act on these verdicts, and others
// that have the same ID, but are not pending, would get them as if it had.
func (f *Flows) Decide(s *policy.Snapshot, k *filter.Key) (v filter.Verdict, ends Ends, fresh bool) {
	srcAddr, dstAddr := k.SrcAddr(), k.DstAddr()
	src, srcID := s.Identify(srcAddr)
	dst, dstID := s.Identify(dstAddr)
	ends = Ends{srcID, dstID, policy.Known, policy.Known, policy.DecidedByIDs(srcAddr, dstAddr, src, dst)}
	if src == nil {
		ends.SrcPending = s.Pending(srcAddr)
	}
	if dst == nil {
		ends.DstPending = s.Pending(dstAddr)
	}
	if f.lru == nil || !ends.ByIDs || ends.Pending() {
		f.misses.Add(1)
		return s.DecideBetween(k, srcAddr, dstAddr, src, dst), ends, true
	}
	key := policy.NewIDKey(k, srcID, dstID)
	if v, ok := f.lru.Get(key); ok {
		f.hits.Add(1)
		return v, ends, false
	}
	f.misses.Add(1)
	v = s.DecideBetween(k, srcAddr, dstAddr, src, dst)
	if f.seen(&key) {
		f.lru.Add(key, v)
		f.size.Store(int64(f.lru.Len()))
	}
	return v, ends, true
}

// seen reports whether the flow was decided recently: whether its tag is in its
// doorkeeperSet. If not, seen adds the tag, and a full set drops its oldest tag. About once
// in a hundred million calls, another flow of the set has the same tag. Then seen wrongly
// returns true, and the only effect is that Decide inserts the flow already at its first
// decision.
func (f *Flows) seen(k *policy.IDKey) bool {
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
	return Stats{Hits: f.hits.Load(), Misses: f.misses.Load(), Size: int(f.size.Load())}
}
