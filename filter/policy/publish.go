package policy

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Published holds the snapshot in force, behind an atomic pointer. Its Synchronize waits
// until no reader uses an earlier snapshot, as in RCU.
//
// A read section begins with Enter, which loads the snapshot. It ends with Exit, when all
// decisions of the section have taken effect. So after Publish and Synchronize, no verdict
// of an older snapshot can still take effect. A read section costs two uncontended atomic
// additions; only Synchronize waits.
type Published struct {
	current atomic.Pointer[Snapshot]

	mu      sync.Mutex
	readers []*Reader
}

// Reader is one goroutine's access to the snapshot in force.
type Reader struct {
	from *Published
	// section counts calls of Enter and Exit, so it is odd within a read section. It is
	// padded to a cache line of its own, because each worker writes its section with every
	// burst of packets.
	section atomic.Uint64
	_       [48]byte
}

// Publish puts a snapshot in force. It does not wait for readers.
func (p *Published) Publish(s *Snapshot) { p.current.Store(s) }

// Snapshot returns the snapshot in force, or nil before the first Publish. Synchronize does
// not wait for callers of Snapshot. Code that Synchronize must wait for needs a Reader.
func (p *Published) Snapshot() *Snapshot { return p.current.Load() }

// NewReader registers a reader, which must be closed after use.
func (p *Published) NewReader() *Reader {
	r := &Reader{from: p}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.readers = append(p.readers, r)
	return r
}

// Enter begins a read section and returns the snapshot in force.
func (r *Reader) Enter() *Snapshot {
	r.section.Add(1)
	return r.from.current.Load()
}

// Exit ends the read section. All decisions since Enter must have taken effect.
func (r *Reader) Exit() { r.section.Add(1) }

// Close unregisters the reader, so that Synchronize no longer waits for it.
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

// Synchronize returns when all read sections that began before the call have ended. If ctx
// ends first, it returns the cause. It polls, because a read section takes microseconds, and
// signaling its end would slow down every section.
func (p *Published) Synchronize(ctx context.Context) error {
	p.mu.Lock()
	readers := p.readers
	p.mu.Unlock()
	for _, r := range readers {
		begun := r.section.Load()
		for wait := time.Microsecond; begun%2 == 1 && r.section.Load() == begun; wait = min(2*wait, time.Millisecond) {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(wait):
			}
		}
	}
	return nil
}
