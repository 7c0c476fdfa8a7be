package agent

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// headroom is how much the heap may grow before it is collected. In a small
	// cluster it is several times the heap, so that what go-nfqueue allocates for
	// each packet seldom gives rise to a collection; in a large one it is a part of
	// it, where Go's own rule would take as much again as the World needs.
	headroom = 64 << 20
	// The bounds of what that comes to, in percent of the live heap.
	leastGC, mostGC = 40, 400
	// beside is what the process takes beside the heap and the headroom: stacks, the
	// collector's own, and room between objects.
	beside = 48 << 20
	// How often it is reckoned anew, while the first lists come and later.
	firstReckoning, reckoning = 100 * time.Millisecond, time.Minute
)

// tendMemory has the collector leave the headroom, until ctx ends. Who sets GOGC
// or GOMEMLIMIT knows better.
func (a *agent) tendMemory(ctx context.Context) {
	if !a.opts.TuneMemory {
		return
	}
	tick := time.NewTicker(firstReckoning)
	defer tick.Stop()
	synced := a.synced
	for {
		live := liveHeap()
		debug.SetGCPercent(gcPercent(live))
		debug.SetMemoryLimit(memoryLimit(live))
		select {
		case <-ctx.Done():
			return
		case <-synced:
			synced = nil
			tick.Reset(reckoning)
			// The first lists leave several times their size behind.
			debug.FreeOSMemory()
		case <-tick.C:
		}
	}
}

// liveHeap is what the last collection has left, in bytes.
func liveHeap() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	if sample[0].Value.Kind() != metrics.KindUint64 {
		return headroom // which leaves the collector as it is
	}
	return sample[0].Value.Uint64()
}

// gcPercent is how much the heap may grow, in percent of what is live.
func gcPercent(live uint64) int {
	return int(min(max(100*headroom/max(live, 1), leastGC), mostGC))
}

// memoryLimit is how many bytes the process is to take at most, all in all. A burst
// of events is garbage faster than the collector, left to its percentage, gives it
// back; by this it hurries.
func memoryLimit(live uint64) int64 {
	return int64(live + max(headroom, live/100*leastGC) + beside)
}
