package queue

import (
	"testing"
	"time"
)

// The crowd's worker takes a few packets at a time once it is behind, and more
// again when for some time hardly any have come.
func TestPace(t *testing.T) {
	crowd := &socket{overflow: true, most: overflowBurst}
	now := time.Now()
	for taken := 0; taken < floodBacklog; taken += overflowBurst {
		if crowd.most != overflowBurst {
			t.Fatalf("it takes %d after %d", crowd.most, taken)
		}
		crowd.paceAfter(overflowBurst, now)
	}
	for range 3 {
		if crowd.most != floodBurst {
			t.Errorf("it takes %d, with a crowd", crowd.most)
		}
		crowd.paceAfter(floodBurst-1, now)
		now = now.Add(floodQuiet - 1)
		crowd.paceAfter(floodBurst, now)
	}
	if crowd.paceAfter(floodBurst-1, now.Add(floodQuiet)); crowd.most != overflowBurst {
		t.Errorf("it takes %d, although the crowd is gone", crowd.most)
	}
}
