package flow

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

const (
	// DefaultBuffer is the usual number of records in a Log: some 4 MiB, allocated when something
	// watches for the first time.
	DefaultBuffer = 16384
	// perSecond bounds the records of each kind within a second. Beyond it, records are left out.
	// Making a record, reading it and writing it as JSON takes 10 µs or so: 20,000 a second take a
	// fifth of a processor.
	perSecond = 20_000
	// gapInterval is the least time between two records about what is left out.
	gapInterval = time.Second
)

// Log keeps the last records for those who watch. Its methods may be called concurrently.
type Log struct {
	size        int
	watchers    atomic.Int32
	connections atomic.Int32 // the watchers of connections too
	onWatch     func(Watched)

	switching sync.Mutex // held while onWatch runs

	mu     sync.Mutex
	ring   []Entry // nil until something watches
	next   uint64  // number of the next record; record n is in ring[n%size]
	limits [LeftOut]*rate.Limiter
	left   uint64    // records that are left out, and not yet told
	told   time.Time // when the last LeftOut was recorded
	// watched and connected are when denials and connections were recorded last, or may have been.
	watched, connected time.Time
	// more is closed when there is a new record, if waiting is set: then a watcher waits for it.
	more    chan struct{}
	waiting bool

	total, leftOut atomic.Uint64
}

// Watched is what something watches.
type Watched struct{ Denials, Connections bool }

// NewLog returns a log of the given number of records. onWatch is called when what is watched has
// changed; the calls never overlap. It may be nil.
func NewLog(size int, onWatch func(Watched)) *Log {
	now := time.Now()
	l := &Log{size: max(size, 1), onWatch: onWatch, more: make(chan struct{}), watched: now, connected: now}
	for i := range l.limits {
		l.limits[i] = rate.NewLimiter(perSecond, perSecond)
	}
	return l
}

// Watched returns what something watches: connections only together with denials. It is cheap enough
// to be called for each packet.
func (l *Log) Watched() Watched { return Watched{l.watchers.Load() > 0, l.connections.Load() > 0} }

// Add records e if something watches.
func (l *Log) Add(e *Entry) {
	if !l.Watched().Denials {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ring == nil {
		return
	}
	if !l.limits[e.Kind].AllowN(e.Time, 1) {
		l.leave(e.Time, 1)
		return
	}
	if l.left > 0 {
		l.tell(e.Time)
	}
	l.put(e)
}

// Miss records that n records are missing, because what makes them could not keep up.
func (l *Log) Miss(n uint64, at time.Time) {
	if n == 0 || !l.Watched().Denials {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ring != nil {
		l.leave(at, n)
	}
}

func (l *Log) leave(at time.Time, n uint64) {
	l.left += n
	l.leftOut.Add(n)
	if at.Sub(l.told) >= gapInterval {
		l.tell(at)
	}
}

// tell records what is left out since the last call.
func (l *Log) tell(at time.Time) {
	l.put(&Entry{Kind: LeftOut, Time: at, Count: l.left})
	l.left, l.told = 0, at
}

func (l *Log) put(e *Entry) {
	l.ring[l.next%uint64(l.size)] = *e
	l.next++
	l.total.Add(1)
	l.wake()
}

// wake wakes the watchers that wait.
func (l *Log) wake() {
	if l.waiting {
		close(l.more)
		l.more, l.waiting = make(chan struct{}), false
	}
}

// Stats returns the number of records, and of those that were left out.
func (l *Log) Stats() (total, leftOut uint64) { return l.total.Load(), l.leftOut.Load() }

// Kept returns the number of records in the log, when the oldest was made, and how many there can be.
func (l *Log) Kept() (n int, oldest time.Time, size int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n = int(l.kept()); n > 0 {
		oldest = l.ring[(l.next-l.kept())%uint64(l.size)].Time
	}
	return n, oldest, l.size
}

// Watcher reads the records of a Log. It is for use by one goroutine.
type Watcher struct {
	log         *Log
	connections bool
	at          uint64 // number of the next record to read
}

// Watch begins to watch denials, and connections that begin and end if connections is set: without, it
// may get them all the same, because another watcher does. The first records that Next returns are the
// last ones from before, at most the given number. Close must be called.
func (l *Log) Watch(last int, connections bool) *Watcher {
	l.switching.Lock()
	defer l.switching.Unlock()
	l.mu.Lock()
	if l.ring == nil {
		l.ring = make([]Entry, l.size)
	}
	l.tellUnrecorded(connections, time.Now())
	at := l.next - min(uint64(max(last, 0)), l.kept())
	l.mu.Unlock()
	l.watch(1, connections)
	return &Watcher{l, connections, at}
}

// tellUnrecorded records for how long nothing has watched, if there are records from before.
func (l *Log) tellUnrecorded(connections bool, now time.Time) {
	e := Entry{Kind: Unrecorded, Time: now}
	switch w := l.Watched(); {
	case l.next == 0:
		return
	case !w.Denials:
		e.Duration = now.Sub(l.watched)
	case connections && !w.Connections:
		e.Duration, e.OnlyConnections = now.Sub(l.connected), true
	default:
		return
	}
	l.put(&e)
}

// watch adds n to the watchers.
func (l *Log) watch(n int32, connections bool) {
	before := l.Watched()
	l.watchers.Add(n)
	if connections {
		l.connections.Add(n)
	}
	now := l.Watched()
	if now == before {
		return
	}
	if l.onWatch != nil {
		l.onWatch(now)
	}
	l.noteEnd(before, now)
}

// noteEnd remembers when something has ceased to be watched.
func (l *Log) noteEnd(before, now Watched) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := time.Now()
	if before.Denials && !now.Denials {
		l.watched = at
	}
	if before.Connections && !now.Connections {
		l.connected = at
	}
}

// kept returns the number of records in the ring.
func (l *Log) kept() uint64 { return min(l.next, uint64(l.size)) }

// Next returns the next records, at most len(into), and waits for one unless wait is false. If the
// watcher was too slow, so that records are lost, the first one is a LeftOut with their number. It
// returns 0 if there are none, and wait is false or ctx has ended.
func (w *Watcher) Next(ctx context.Context, into []Entry, wait bool) int {
	for {
		n, more, untold := w.read(into, wait)
		if n > 0 || !wait {
			return n
		}
		var later <-chan time.Time
		if untold {
			later = time.After(gapInterval)
		}
		select {
		case <-ctx.Done():
			return 0
		case <-more:
		case at := <-later:
			w.log.tellNow(at)
		}
	}
}

// tellNow records what is left out since the last record about it, because no later record does.
func (l *Log) tellNow(at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left > 0 {
		l.tell(at)
	}
}

// read returns the records that are there. untold reports that records are left out about which none
// of them tells.
func (w *Watcher) read(into []Entry, wait bool) (n int, more <-chan struct{}, untold bool) {
	l := w.log
	l.mu.Lock()
	defer l.mu.Unlock()
	if oldest := l.next - l.kept(); w.at < oldest {
		into[0] = Entry{Kind: LeftOut, Time: l.ring[oldest%uint64(l.size)].Time, Count: oldest - w.at}
		l.leftOut.Add(oldest - w.at)
		w.at, n = oldest, 1
	}
	for ; n < len(into) && w.at < l.next; n++ {
		into[n] = l.ring[w.at%uint64(l.size)]
		w.at++
	}
	l.waiting = l.waiting || n == 0 && wait
	return n, l.more, l.left > 0
}

// Close ends watching.
func (w *Watcher) Close() {
	l := w.log
	l.switching.Lock()
	defer l.switching.Unlock()
	l.watch(-1, w.connections)
}
