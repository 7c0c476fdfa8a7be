package kube

import (
	"context"
	"maps"
	"slices"
	"sync"

	"sluice/filter/policy"
)

const (
	// maxUpdate bounds the changes in each Update except the first Update, so that Updates of
	// other sources can run in between.
	maxUpdate = 4096
	// maxQueued bounds the queued changes. While the queue is full, add blocks, which is
	// the backpressure on the watch.
	maxQueued = 4 * maxUpdate
)

// queue holds the changes for the policy store. While the store applies one Update, further
// changes are collected for the next.
type queue struct {
	mu      sync.Mutex
	changes []change
	missing map[*kind]bool // kinds whose first list has not arrived
	wake    chan struct{}  // holds a token if there may be changes to take
	room    *sync.Cond     // wakes blocked calls of add: broadcast by take and end
	ended   bool
}

func newQueue(kinds ...*kind) *queue {
	q := &queue{missing: make(map[*kind]bool), wake: make(chan struct{}, 1)}
	for _, k := range kinds {
		q.missing[k] = true
	}
	q.room = sync.NewCond(&q.mu)
	return q
}

// add appends changes. It blocks while the queue is full, but not before the first lists of
// all kinds have arrived.
func (q *queue) add(changes ...change) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.missing) == 0 && len(q.changes) >= maxQueued && !q.ended {
		q.room.Wait()
	}
	q.changes = append(q.changes, changes...)
	q.signal()
}

// addFirst appends the first list of a kind.
func (q *queue) addFirst(k *kind, changes []change) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.changes = append(q.changes, changes...)
	delete(q.missing, k)
	q.signal()
}

// awaited returns the kinds whose first list has not arrived.
func (q *queue) awaited() []*kind {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Collect(maps.Keys(q.missing))
}

// skip lets the first Update go ahead without the list of a kind. It returns false if the list
// has arrived.
func (q *queue) skip(k *kind) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.missing[k] {
		return false
	}
	delete(q.missing, k)
	q.signal()
	return true
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take removes the queued changes and returns them: all for the first Update, and later at
// most maxUpdate. It returns false while the first list of a kind is missing and, after the
// first Update, if there are no changes.
func (q *queue) take(first bool) (changes []change, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.missing) > 0 || len(q.changes) == 0 && !first {
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

// run calls update() with the queued changes until ctx ends.
func (q *queue) run(ctx context.Context, update func(func(*policy.Store))) {
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
			update(func(w *policy.Store) {
				w.RequireNamespaces()
				for i := range changes {
					changes[i].apply(w)
					changes[i] = change{} // frees the object: the policy store has what it needs
				}
			})
		}
	}
}

// end unblocks all calls of add().
func (q *queue) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	q.room.Broadcast()
}
