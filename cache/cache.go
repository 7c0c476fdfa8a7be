// Package cache holds every place where a verdict is remembered. Here is the
// flow cache in user space, and the [Judge] that uses it: the way of a packet
// from its bytes to its verdict.
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
	"net/netip"
	"sync/atomic"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"sluice/filter"
	"sluice/filter/policy"
)

// DefaultSize is how many flows one cache remembers: about 8 MiB when full.
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
// again costs no allocation, of which an insertion takes one.
type Flows struct {
	lru  *simplelru.LRU[filter.Key, flow]
	seed maphash.Seed
	once []uint32 // by hash: of flows decided lately, one that was decided once

	hits, misses, stale atomic.Uint64
	size                atomic.Int64
}

// flow is a remembered verdict.
type flow struct {
	src, dst uint64 // the epochs of both ends
	verdict  filter.Verdict
}

// NewFlows returns a cache for up to size flows; 0 or less turns it off.
func NewFlows(size int) *Flows {
	if size <= 0 {
		return &Flows{}
	}
	lru, err := simplelru.NewLRU[filter.Key, flow](size, nil)
	if err != nil {
		return &Flows{} // it fails for sizes that are not positive alone
	}
	slots := 1
	for slots < size {
		slots *= 2
	}
	return &Flows{lru: lru, seed: maphash.MakeSeed(), once: make([]uint32, slots)}
}

// Decide gives the verdict that the snapshot gives, from memory where that still
// holds.
func (f *Flows) Decide(s *policy.Snapshot, k *filter.Key) filter.Verdict {
	srcAddr, dstAddr := k.SrcAddr(), k.DstAddr()
	return f.DecideBetween(s, k, srcAddr, dstAddr, s.Endpoint(srcAddr), s.Endpoint(dstAddr))
}

// DecideBetween is Decide for a caller that has looked up both ends already.
func (f *Flows) DecideBetween(s *policy.Snapshot, k *filter.Key, srcAddr, dstAddr netip.Addr, src, dst *policy.Endpoint) filter.Verdict {
	if f.lru == nil {
		f.misses.Add(1)
		return s.DecideBetween(k, srcAddr, dstAddr, src, dst)
	}
	known, found := f.lru.Get(*k)
	if found && known.src == src.Epoch() && known.dst == dst.Epoch() {
		f.hits.Add(1)
		return known.verdict
	}
	return f.decide(s, k, srcAddr, dstAddr, src, dst, found)
}

// decide asks the snapshot, and remembers what it says if the flow has been
// decided before.
func (f *Flows) decide(s *policy.Snapshot, k *filter.Key, srcAddr, dstAddr netip.Addr, src, dst *policy.Endpoint, stale bool) filter.Verdict {
	v := s.DecideBetween(k, srcAddr, dstAddr, src, dst)
	if stale {
		f.stale.Add(1)
	} else {
		f.misses.Add(1)
	}
	if stale || f.seen(k) {
		f.lru.Add(*k, flow{src.Epoch(), dst.Epoch(), v})
		f.size.Store(int64(f.lru.Len()))
	}
	return v
}

// seen says whether the flow was decided lately, and remembers that it was. It
// forgets flows whose place another takes; of two flows with one hash, which is
// one in four billion, it takes the one for the other and remembers it early.
func (f *Flows) seen(k *filter.Key) bool {
	h := maphash.Comparable(f.seed, *k)
	place, tag := &f.once[h&uint64(len(f.once)-1)], uint32(h>>32)|1 // never 0, which is no flow
	if *place == tag {
		return true
	}
	*place = tag
	return false
}

// Stats says how the cache has done.
func (f *Flows) Stats() Stats {
	return Stats{Hits: f.hits.Load(), Misses: f.misses.Load(), Stale: f.stale.Load(), Size: int(f.size.Load())}
}
