package queue

import (
	"testing"
	"time"
)

// The crowd's worker takes a few packets at a time once it is behind, and more
// again when for some time hardly any have come.
func TestPace(t *testing.T) {
	crowd := &socket{crowd: true, most: crowdBurst}
	now := time.Now()
	for taken := 0; taken < crowdBacklog; taken += crowdBurst {
		if crowd.most != crowdBurst {
			t.Fatalf("it takes %d after %d", crowd.most, taken)
		}
		crowd.paceAfter(crowdBurst, now)
	}
	for range 3 {
		if crowd.most != crowdTurn {
			t.Errorf("it takes %d, with a crowd", crowd.most)
		}
		crowd.paceAfter(crowdTurn-1, now)
		now = now.Add(crowdTime - 1)
		crowd.paceAfter(crowdTurn, now)
	}
	if crowd.paceAfter(crowdTurn-1, now.Add(crowdTime)); crowd.most != crowdBurst {
		t.Errorf("it takes %d, although the crowd is gone", crowd.most)
	}
}
