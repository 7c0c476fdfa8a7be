package kube

import (
	"context"
	"sync"

	"sluice/filter/policy"
)

const (
	// maxUpdate bounds an Update but the first: others get their turn in a burst.
	maxUpdate = 4096
	// maxQueued bounds the changes that wait; who brings more waits too, and with it,
	// in the end, the API server's stream.
	maxQueued = 4 * maxUpdate
)

// queue is the changes on their way to the World. They go as they come: while the
// World is busy with some, the next gather and go together.
type queue struct {
	mu      sync.Mutex
	changes []change
	missing int           // kinds of which no list has come
	wake    chan struct{} // holds a token when there may be something to do
	room    *sync.Cond
	ended   bool
}

func newQueue(kinds int) *queue {
	q := &queue{missing: kinds, wake: make(chan struct{}, 1)}
	q.room = sync.NewCond(&q.mu)
	return q
}

// add appends changes, and waits while there is no room.
func (q *queue) add(changes ...change) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.missing == 0 && len(q.changes) >= maxQueued && !q.ended {
		q.room.Wait()
	}
	q.changes = append(q.changes, changes...)
	q.signal()
}

// addFirst appends the first list of a kind.
func (q *queue) addFirst(changes []change) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.changes = append(q.changes, changes...)
	q.missing--
	q.signal()
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take returns what waits, all of it at first and later a part, and whether that
// is all. It returns nothing as long as a kind is missing.
func (q *queue) take(first bool) (changes []change, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.missing > 0 || len(q.changes) == 0 && !first {
		return nil, false
	}
	n := len(q.changes)
	if !first {
		n = min(n, maxUpdate)
	}
	changes, q.changes = q.changes[:n:n], q.changes[n:]
	if len(q.changes) == 0 {
		q.changes = nil
	}
	q.room.Broadcast()
	return changes, true
}

// run passes changes on until ctx ends.
func (q *queue) run(ctx context.Context, update func(func(*policy.World))) {
	defer context.AfterFunc(ctx, q.end)()
	for first := true; ; {
		select {
		case <-ctx.Done():
			return
		case <-q.wake:
		}
		for ctx.Err() == nil {
			changes, ok := q.take(first)
			if !ok {
				break
			}
			first = false
			update(func(w *policy.World) {
				for i := range changes {
					changes[i].apply(w)
					changes[i] = change{} // the World has what it needs
				}
			})
		}
	}
}

// end lets go those that wait for room.
func (q *queue) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	q.room.Broadcast()
}
