package agent

import (
	"context"
	"sync"
)

// tenure is the time in which this agent decides about packets. It begins when the rules of the agent are
// in place, and ends when another agent takes over. At other times, clients cannot follow the flows of
// this agent, because its records would be incomplete. The zero value is a tenure that has not begun.
type tenure struct {
	mu    sync.Mutex
	ended chan struct{} // closed when the tenure ends; nil while there is no tenure
}

// begin begins a tenure, unless one has begun.
func (t *tenure) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended == nil {
		t.ended = make(chan struct{})
	}
}

// end ends the tenure, and the contexts that within has returned.
func (t *tenure) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended != nil {
		close(t.ended)
		t.ended = nil
	}
}

// within returns a context that ends when ctx or the tenure ends. While there is no tenure, the returned
// context has already ended. The caller must call stop.
func (t *tenure) within(ctx context.Context) (limited context.Context, stop context.CancelFunc) {
	limited, stop = context.WithCancel(ctx)
	t.mu.Lock()
	ended := t.ended
	t.mu.Unlock()
	if ended == nil {
		stop()
		return limited, stop
	}
	go func() {
		select {
		case <-ended:
			stop()
		case <-limited.Done():
		}
	}()
	return limited, stop
}
