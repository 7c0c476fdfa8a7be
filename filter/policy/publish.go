package policy

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Published is the snapshot in force: one atomic pointer, and the means to know
// when no reader uses an earlier snapshot any more.
//
// A reader brackets each piece of work, from loading the snapshot until what it
// decided has taken effect, with Enter and Exit. Publish followed by Synchronize
// therefore guarantees that every effect of an older snapshot is visible: no
// verdict given under it can still be on its way. Readers pay two uncontended
// atomic stores; only Synchronize waits.
type Published struct {
	current atomic.Pointer[Snapshot]

	mu      sync.Mutex
	readers []*Reader
}

// Reader is one goroutine's access to the snapshot in force.
type Reader struct {
	from *Published
	// section is odd while the reader is at work. It has a cache line to itself:
	// each worker writes its own with every packet.
	section atomic.Uint64
	_       [48]byte
}

// Publish puts a snapshot in force.
func (p *Published) Publish(s *Snapshot) { p.current.Store(s) }

// Snapshot returns the snapshot in force, nil before the first Publish. Code that uses it
// for longer than a moment goes through a Reader.
func (p *Published) Snapshot() *Snapshot { return p.current.Load() }

// NewReader registers a reader. Close ends it.
func (p *Published) NewReader() *Reader {
	r := &Reader{from: p}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.readers = append(p.readers, r)
	return r
}

// Enter returns the snapshot in force and starts a piece of work on it.
func (r *Reader) Enter() *Snapshot {
	r.section.Add(1)
	return r.from.current.Load()
}

// Exit says that all that was decided since Begin has taken effect.
func (r *Reader) Exit() { r.section.Add(1) }

// Close takes the reader off the list that Synchronize waits for.
func (r *Reader) Close() {
	r.from.mu.Lock()
	defer r.from.mu.Unlock()
	for i, o := range r.from.readers {
		if o == r {
			r.from.readers = append(r.from.readers[:i:i], r.from.readers[i+1:]...)
			return
		}
	}
}

// Synchronize returns when every piece of work that began before the call has ended.
// Workers take microseconds for one, so that it polls rather than have each of
// them signal.
func (p *Published) Synchronize(ctx context.Context) error {
	p.mu.Lock()
	readers := p.readers
	p.mu.Unlock()
	for _, r := range readers {
		turn := r.section.Load()
		for wait := time.Microsecond; turn%2 == 1 && r.section.Load() == turn; wait = min(2*wait, time.Millisecond) {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(wait):
			}
		}
	}
	return nil
}
