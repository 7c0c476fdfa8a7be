package agent

import (
	"context"
	"sync"
)

// tenure is the time in which this agent decides about packets. After another agent has taken over,
// clients must not follow the flows of this agent, because they would miss the verdicts of the other
// agent. The zero value is a tenure that has begun.
type tenure struct {
	mu    sync.Mutex
	ended chan struct{} // closed by end; nil until within is called
	over  bool
}

// begin begins the next tenure.
func (t *tenure) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.over, t.ended = false, nil
}

// end ends the tenure and the contexts that within has returned.
func (t *tenure) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.over && t.ended != nil {
		close(t.ended)
	}
	t.over = true
}

// within returns a context that ends when ctx or the tenure ends. If the tenure is over, the context has
// already ended. The caller must call stop to release it.
func (t *tenure) within(ctx context.Context) (limited context.Context, stop context.CancelFunc) {
	limited, stop = context.WithCancel(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		stop()
		return limited, stop
	}
	if t.ended == nil {
		t.ended = make(chan struct{})
	}
	ended := t.ended
	go func() {
		select {
		case <-ended:
			stop()
		case <-limited.Done():
		}
	}()
	return limited, stop
}
