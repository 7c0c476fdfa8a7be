package queue

import (
	"testing"
	"time"
)

// During a flood, the worker of the overflow queue reads at most floodBurst packets at a
// time. When its reads have not been full for floodQuiet, it reads up to overflowBurst
// packets again.
func TestPace(t *testing.T) {
	p := newPace(true)
	now := time.Now()
	for taken := 0; taken < floodBacklog; taken += overflowBurst {
		if p.burst != overflowBurst {
			t.Fatalf("burst is %d after %d messages", p.burst, taken)
		}
		p.adapt(overflowBurst, now)
	}
	for range 3 {
		if p.burst != floodBurst {
			t.Errorf("burst is %d during a flood", p.burst)
		}
		p.adapt(floodBurst-1, now)
		now = now.Add(floodQuiet - 1)
		p.adapt(floodBurst, now)
	}
	if p.adapt(floodBurst-1, now.Add(floodQuiet)); p.burst != overflowBurst {
		t.Errorf("burst is %d, although the flood is over", p.burst)
	}
}
