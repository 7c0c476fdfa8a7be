package agent

import (
	"context"
	"sync"
)

// tenure is the time in which this agent decides about packets. While another agent has taken over,
// nothing can follow the flows here: it would miss what the other one decides. The zero value is a
// tenure that has begun.
type tenure struct {
	mu    sync.Mutex
	ended chan struct{} // closed at the end; nil until it matters
	over  bool
}

// begin begins the next tenure.
func (t *tenure) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.over, t.ended = false, nil
}

// end ends the tenure, and with it the contexts of within.
func (t *tenure) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.over && t.ended != nil {
		close(t.ended)
	}
	t.over = true
}

// within returns a context that ends with the tenure, too; stop releases it. If the tenure is over, it
// has ended.
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
