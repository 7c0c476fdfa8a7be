package agent

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// headroom is the growth of the heap that starts a collection. In a small cluster it is
	// several times the heap, so that what go-nfqueue allocates for each packet rarely starts
	// one. In a large cluster it is a part of the heap, where Go's own rule would take as much
	// memory again as policies and pods need.
	headroom = 64 << 20
	// minGC and maxGC bound the percentage of the live heap that this is.
	minGC, maxGC = 40, 400
	// overhead is the memory of the process beside the heap and the headroom: stacks, the
	// collector itself, and room between objects.
	overhead = 48 << 20
	// startInterval and tuneInterval are the times between two adjustments: while the first
	// lists are read, and later.
	startInterval, tuneInterval = 100 * time.Millisecond, time.Minute
)

// tuneMemory has the garbage collector leave the headroom, until ctx ends. It does nothing
// if the user has set GOGC or GOMEMLIMIT.
func (a *agent) tuneMemory(ctx context.Context) {
	if !a.opts.TuneMemory {
		return
	}
	tick := time.NewTicker(startInterval)
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
			tick.Reset(tuneInterval)
			// The first lists leave garbage of several times their size.
			debug.FreeOSMemory()
		case <-tick.C:
		}
	}
}

// liveHeap is the size of the heap after the last collection, in bytes.
func liveHeap() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	if sample[0].Value.Kind() != metrics.KindUint64 {
		return headroom // for which the percentage is Go's default
	}
	return sample[0].Value.Uint64()
}

// gcPercent returns how much the heap may grow, in percent of the live heap.
func gcPercent(live uint64) int {
	return int(min(max(100*headroom/max(live, 1), minGC), maxGC))
}

// memoryLimit returns the memory that the process may take in total, in bytes. A burst of
// events makes garbage faster than the collector returns it by its percentage alone; near
// the limit it works harder.
func memoryLimit(live uint64) int64 {
	return int64(live + max(headroom, live/100*minGC) + overhead)
}
