package agent

import (
	"runtime"
	"testing"
)

func TestGCPercent(t *testing.T) {
	for live, want := range map[uint64]int{
		0: maxGC, 1 << 20: maxGC, 32 << 20: 200, headroom: 100, 128 << 20: 50, 200 << 20: minGC, 1 << 40: minGC,
	} {
		if got := gcPercent(live); got != want {
			t.Errorf("a live heap of %d bytes: %d percent, want %d", live, got, want)
		}
	}
	runtime.GC()
	if live := liveHeap(); live == 0 {
		t.Error("the live heap is 0 bytes")
	}
}

func TestMemoryLimit(t *testing.T) {
	for live, want := range map[uint64]int64{
		0: headroom + overhead, 100 << 20: 100<<20 + headroom + overhead, 1000 << 20: 1400<<20 + overhead,
	} {
		if got := memoryLimit(live); got != want {
			t.Errorf("a live heap of %d bytes: limit %d, want %d", live, got, want)
		}
	}
}
