package queue_test

import (
	"testing"
	"time"

	"sluice/filter"
	"sluice/filter/queue"
)

// A packet that is rejected goes through its chain again with the mark. If the rules queue it
// again, it is dropped: otherwise it would be queued forever.
func TestRejectedOnce(t *testing.T) {
	for mark, want := range map[uint32]int64{0x20: 2, 0: 1} {
		r := newFixture(t, 1, func([]byte) filter.Action { return filter.Reject })
		q, _ := r.run(queue.Options{RejectMark: mark})
		for sent := int64(2); sent <= 4; sent += 2 { // by the time the second pair is denied, the first is no longer queued
			if n := r.reaches("udp", 200*time.Millisecond); n != 0 {
				t.Errorf("mark %#x: %d datagrams were answered", mark, n)
			}
			r.await("the packets are denied", func() bool { return q.Stats().Denied >= uint64(sent*want) })
		}
		if n := r.evaluators[0].evaluated.Load() + r.evaluators[1].evaluated.Load(); n != 4*want {
			t.Errorf("mark %#x: four packets were evaluated %d times, want %d", mark, n, 4*want)
		}
	}
}
