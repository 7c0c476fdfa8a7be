package queue

import "testing"

// The crowd's worker takes a few packets at a time once it is behind, and more
// again when it has caught up. The others never do.
func TestPace(t *testing.T) {
	crowd, other := &socket{crowd: true, most: crowdBurst}, &socket{most: burst}
	for taken := 0; taken < crowdBacklog; taken += crowdBurst {
		if crowd.most != crowdBurst {
			t.Fatalf("it takes %d after %d", crowd.most, taken)
		}
		crowd.paceAfter(crowdBurst)
	}
	for range 2 {
		if crowd.most != crowdTurn || crowd.behind == 0 {
			t.Errorf("it takes %d, behind by %d", crowd.most, crowd.behind)
		}
		crowd.paceAfter(crowdTurn)
	}
	if crowd.paceAfter(crowdTurn - 1); crowd.most != crowdBurst || crowd.behind != 0 {
		t.Errorf("it takes %d, behind by %d, although nothing waits", crowd.most, crowd.behind)
	}
	for range 2 * crowdBacklog / burst {
		if other.paceAfter(burst); other.most != burst {
			t.Fatalf("a worker of others takes %d", other.most)
		}
	}
}
