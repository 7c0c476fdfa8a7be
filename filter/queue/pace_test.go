package queue

import (
	"testing"
	"time"
)

// The worker of the overflow queue takes a few packets at a time once it is behind,
// and more again when hardly any have come for some time.
func TestPace(t *testing.T) {
	p := newPace(true)
	now := time.Now()
	for taken := 0; taken < floodBacklog; taken += overflowBurst {
		if p.burst != overflowBurst {
			t.Fatalf("it takes %d after %d", p.burst, taken)
		}
		p.adapt(overflowBurst, now)
	}
	for range 3 {
		if p.burst != floodBurst {
			t.Errorf("it takes %d during a flood", p.burst)
		}
		p.adapt(floodBurst-1, now)
		now = now.Add(floodQuiet - 1)
		p.adapt(floodBurst, now)
	}
	if p.adapt(floodBurst-1, now.Add(floodQuiet)); p.burst != overflowBurst {
		t.Errorf("it takes %d, although the flood is over", p.burst)
	}
}
