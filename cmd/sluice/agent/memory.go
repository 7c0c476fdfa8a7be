package agent

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// headroom is the growth of the heap, in bytes, that starts a garbage collection. In a
	// small cluster it is several times the live heap, so that go-nfqueue's allocations for
	// each packet rarely start a collection. In a large cluster it is a fraction of the live
	// heap; Go's default (GOGC=100) would double the memory that policies and pods need.
	headroom = 64 << 20
	// minGC and maxGC bound the growth of the heap that starts a collection, in percent of the
	// live heap. They take precedence over headroom: see gcPercent.
	minGC, maxGC = 40, 400
	// overhead is the memory of the process in addition to the heap and the headroom: stacks,
	// the collector itself, and fragmentation.
	overhead = 48 << 20
	// startInterval is the interval of tuneMemory's adjustments until the agent has read the
	// first list of each kind of object; tuneInterval is their interval afterwards.
	startInterval, tuneInterval = 100 * time.Millisecond, time.Minute
)

// tuneMemory adjusts the garbage collector to the live heap at intervals, until ctx ends. It
// does nothing if the user has set GOGC or GOMEMLIMIT.
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
			// Reading the first lists leaves garbage of several times their size.
			debug.FreeOSMemory()
		case <-tick.C:
		}
	}
}

// liveHeap returns the size of the heap after the last collection, in bytes.
func liveHeap() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	if sample[0].Value.Kind() != metrics.KindUint64 {
		return headroom // for which gcPercent returns Go's default, 100
	}
	return sample[0].Value.Uint64()
}

// gcPercent returns the value for debug.SetGCPercent: the growth of the heap, in percent of
// the live heap, that starts a garbage collection.
func gcPercent(live uint64) int {
	return int(min(max(100*headroom/max(live, 1), minGC), maxGC))
}

// memoryLimit returns the soft limit for the memory of the process, in bytes. Near this limit,
// Go's collector runs more often than gcPercent requests. The limit matters during a burst of
// events: the agent then produces garbage faster than the collector frees it.
func memoryLimit(live uint64) int64 {
	return int64(live + max(headroom, live/100*minGC) + overhead)
}
