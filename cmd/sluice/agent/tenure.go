package agent

import (
	"context"
	"sync"
)

// tenure is the time in which this agent decides about packets: from when its rules are in place until
// another agent takes over. At other times, nothing can follow the flows here, because they would be
// incomplete. The zero value is a tenure that has not begun.
type tenure struct {
	mu    sync.Mutex
	ended chan struct{} // closed at the end; nil while there is no tenure
}

// begin begins a tenure.
func (t *tenure) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended == nil {
		t.ended = make(chan struct{})
	}
}

// end ends the tenure, and with it the contexts that within has returned.
func (t *tenure) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended != nil {
		close(t.ended)
		t.ended = nil
	}
}

// within returns a context that also ends with the tenure; stop releases it. Without a tenure, it has
// ended.
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
