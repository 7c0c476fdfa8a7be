package flow

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

const (
	// DefaultBuffer is the default number of records in a Log. They take some 4 MiB, which are allocated
	// when something watches for the first time.
	DefaultBuffer = 16384
	// perSecond bounds the records of each kind within a second. Further records are left out. The help of
	// "sluice observe" names this number. A record takes some 3 µs of the agent's CPU, so 20,000
	// connections that begin and end within a second take an eighth of a processor.
	perSecond = 20_000
	// gapInterval is the least time between two LeftOuts that the log adds. Beyond the rate, the log keeps
	// and leaves out records in turn, and would otherwise add a LeftOut for almost each record that it
	// keeps.
	gapInterval = time.Second
	// gatherTime is how long a watcher waits after the first record has come, before it reads. It then
	// reads, encodes and writes all records of this time together. To wake up the watcher for each record,
	// and to write each record on its own, would take several times as much CPU as the record.
	gatherTime = 10 * time.Millisecond
	// joinInterval bounds the time between two Unrecordeds that become one. In this time, something
	// watched.
	joinInterval = time.Second
)

// Log keeps the last records for its watchers. Its methods may be called concurrently.
type Log struct {
	size        int
	watchers    atomic.Int32
	connections atomic.Int32 // those of the watchers that watch connections, too
	onWatch     func(Watched)

	switching sync.Mutex // held while onWatch runs

	mu     sync.Mutex
	ring   []Entry // nil until something watches
	next   uint64  // number of the next record; record n is in ring[n%size]
	limits [LeftOut]*rate.Limiter
	left   uint64    // records that were left out since the last LeftOut
	told   time.Time // when the last LeftOut was added
	// watched is the time at which the last watcher of denials ended, and connected the time at which the
	// last watcher of connections ended. If there was none yet, it is the time at which the log was made.
	watched, connected time.Time
	// more is closed, and replaced, when a record is added or is the first to be left out, but only if
	// waiting is set. waiting is set while a watcher waits.
	more    chan struct{}
	waiting bool

	total, leftOut atomic.Uint64
}

// Watched reports what at least one watcher watches.
type Watched struct{ Denials, Connections bool }

// NewLog returns a log that keeps size records. The log calls onWatch when Watched changes; the calls
// never overlap. onWatch may be nil.
func NewLog(size int, onWatch func(Watched)) *Log {
	now := time.Now()
	l := &Log{size: max(size, 1), onWatch: onWatch, more: make(chan struct{}), watched: now, connected: now}
	for i := range l.limits {
		l.limits[i] = rate.NewLimiter(perSecond, perSecond)
	}
	return l
}

// Watched returns what the watchers watch. Connections is set only together with Denials, because each
// watcher watches denials. It is cheap enough to be called for each packet.
func (l *Log) Watched() Watched { return Watched{l.watchers.Load() > 0, l.connections.Load() > 0} }

// Add adds e to the log if something watches denials, as every watcher does. If e is beyond the rate of
// its kind, Add only counts it as left out.
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
	if l.left > 0 && e.Time.Sub(l.told) >= gapInterval {
		l.tell(e.Time)
	}
	l.put(e)
}

// Skip reports whether Add would leave out a record of the kind because of its rate. If so, Skip counts
// this record as left out, and the caller does not have to make it.
func (l *Log) Skip(kind Kind, at time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ring == nil || l.limits[kind].TokensAt(at) >= 1 {
		return false
	}
	l.leave(at, 1)
	return true
}

// Miss counts n records as left out, because their source could not keep up.
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

// leave counts n records as left out. If the last LeftOut is old enough, leave adds another one. If it is
// not, and these records are the first since then, leave wakes the watchers that wait. They add a LeftOut
// later, if no record follows. Further records that are left out do not wake them again.
func (l *Log) leave(at time.Time, n uint64) {
	first := l.left == 0
	l.left += n
	l.leftOut.Add(n)
	switch {
	case at.Sub(l.told) >= gapInterval:
		l.tell(at)
	case first:
		l.wake()
	}
}

// tell adds a LeftOut with the number of records that were left out since the last one.
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

// Stats returns the number of records that were added, and of those that were left out.
func (l *Log) Stats() (total, leftOut uint64) { return l.total.Load(), l.leftOut.Load() }

// Kept returns the number of records in the log, the time of the oldest, and how many the log can keep.
func (l *Log) Kept() (n int, oldest time.Time, size int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n = int(l.kept()); n > 0 {
		oldest = l.ring[(l.next-l.kept())%uint64(l.size)].Time
	}
	return n, oldest, l.size
}

// Watcher reads the records of a Log. Next is for use by one goroutine; the other methods may be called
// while it waits.
type Watcher struct {
	log         *Log
	connections bool   // guarded by Log.switching
	at          uint64 // number of the next record to read
	closed      bool   // guarded by Log.mu
}

// Watch begins to watch denials and, if connections is true, also connections that begin and end. If
// connections is false, Next may still return connections, because another watcher watches them. Next
// first returns earlier records. These are the last flows in the log, at most as many as the parameter
// last, and the records about missing flows among and after them. The caller must call Close.
func (l *Log) Watch(last int, connections bool) *Watcher {
	l.switching.Lock()
	defer l.switching.Unlock()
	l.mu.Lock()
	if l.ring == nil {
		l.ring = make([]Entry, l.size)
	}
	l.tellUnrecorded(connections, time.Now())
	at := l.before(last)
	l.mu.Unlock()
	w := &Watcher{log: l, connections: connections, at: at}
	l.watch(1, w.ofConnections())
	return w
}

// Back moves a watcher back, so that Next first returns earlier records: those from the last n flows on
// that the function selects, or from the oldest record on if there are fewer. It must be called before the
// first Next. The log is not locked while the function runs, so records may be added meanwhile.
func (w *Watcher) Back(n int, selects func(*Entry) bool) {
	some := make([]Entry, 256)
	for n > 0 {
		k := w.log.copyBefore(w.at, some)
		if k == 0 {
			return
		}
		for i := k - 1; i >= 0 && n > 0; i-- {
			w.at--
			if e := &some[i]; e.Kind != LeftOut && e.Kind != Unrecorded && selects(e) {
				n--
			}
		}
	}
}

// copyBefore copies the last records before the one with the number at, and returns how many it has copied.
func (l *Log) copyBefore(at uint64, into []Entry) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	oldest := l.next - l.kept()
	if at > oldest {
		n = int(min(at-oldest, uint64(len(into))))
	}
	for i := range into[:n] {
		into[i] = l.ring[(at-uint64(n-i))%uint64(l.size)]
	}
	return n
}

// tellUnrecorded adds an Unrecorded about the time until now, if the log has earlier records and something
// was not watched in this time: denials or, if connections is true, connections.
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
	l.join(&e)
	l.put(&e)
}

// join lets e replace the last record and cover its time, too. It does so only if the last record is an
// Unrecorded of the same kind as e, and if something watched for at most joinInterval between the two.
// Without join, a command that only reads what the log keeps would fill the log when it is called again
// and again.
func (l *Log) join(e *Entry) {
	p := &l.ring[(l.next-1)%uint64(l.size)]
	if p.Kind != Unrecorded || p.OnlyConnections != e.OnlyConnections || e.Time.Add(-e.Duration).Sub(p.Time) > joinInterval {
		return
	}
	e.Duration = e.Time.Sub(p.Time.Add(-p.Duration))
	l.next--
}

// before returns the number of the first record of the last n flows. Records about missing flows do not
// count as flows.
func (l *Log) before(n int) uint64 {
	at := l.next
	for oldest := l.next - l.kept(); n > 0 && at > oldest; at-- {
		if k := l.ring[(at-1)%uint64(l.size)].Kind; k != LeftOut && k != Unrecorded {
			n--
		}
	}
	return at
}

// watch adds to the number of watchers, and to that of the watchers of connections. If Watched changes,
// it calls onWatch.
func (l *Log) watch(watchers, connections int32) {
	before := l.Watched()
	l.watchers.Add(watchers)
	l.connections.Add(connections)
	now := l.Watched()
	if now == before {
		return
	}
	if l.onWatch != nil {
		l.onWatch(now)
	}
	l.noteEnd(before, now)
}

// noteEnd sets watched and connected, if denials or connections are not watched any more.
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

// Next reads the next records into the slice into, and returns their number. If there are none and wait is
// false, it returns 0. If there are none and wait is true, it waits for a record. It returns 0 if ctx ends
// or the watcher is closed while it waits. If the watcher was too slow and has lost records, the first
// record is a LeftOut with their number.
func (w *Watcher) Next(ctx context.Context, into []Entry, wait bool) int {
	for {
		n, more, untold := w.read(into, wait)
		if n > 0 || more == nil || !wait {
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
			gather(ctx)
		case at := <-later:
			w.log.tellNow(at)
		}
	}
}

// gather waits for gatherTime, so that more records can come.
func gather(ctx context.Context) {
	wait := time.NewTimer(gatherTime)
	defer wait.Stop()
	select {
	case <-ctx.Done():
	case <-wait.C:
	}
}

// tellNow adds a LeftOut with the number of records that were left out since the last one. A watcher calls
// it if no record has been added for gapInterval. If a record is added, Add does the same.
func (l *Log) tellNow(at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left > 0 {
		l.tell(at)
	}
}

// read reads the records that are there, without waiting. untold reports whether records were left out
// since the last LeftOut. more is nil if the watcher is closed.
func (w *Watcher) read(into []Entry, wait bool) (n int, more <-chan struct{}, untold bool) {
	l := w.log
	l.mu.Lock()
	defer l.mu.Unlock()
	if w.closed {
		return 0, nil, false
	}
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

// WatchConnections sets whether the watcher watches connections, too.
func (w *Watcher) WatchConnections(on bool) {
	l := w.log
	l.switching.Lock()
	defer l.switching.Unlock()
	if on && !w.connections {
		l.mu.Lock()
		l.tellUnrecorded(true, time.Now())
		l.mu.Unlock()
	}
	before := w.ofConnections()
	w.connections = on
	l.watch(0, w.ofConnections()-before)
}

// ofConnections returns 1 if the watcher watches connections, and 0 otherwise.
func (w *Watcher) ofConnections() int32 {
	if w.connections {
		return 1
	}
	return 0
}

// Close ends watching, and makes Next return. From then on, Next returns no record.
func (w *Watcher) Close() {
	l := w.log
	l.switching.Lock()
	defer l.switching.Unlock()
	l.watch(-1, -w.ofConnections())
	l.mu.Lock()
	defer l.mu.Unlock()
	w.closed = true
	l.wake()
}
