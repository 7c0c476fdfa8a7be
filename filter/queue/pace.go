package queue

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxBurst bounds the messages that one system call reads. Their verdicts are sent
	// together, so it also bounds how long a verdict waits for others.
	maxBurst = 64
	// overflowBurst is maxBurst for the overflow queue. During a flood, floodBurst takes
	// its place: from floodBacklog messages without a pause, until the worker has kept up
	// for floodQuiet, because a flood has short pauses too.
	//
	// The other workers wait for one burst at worst: with 4 messages instead of 2, their
	// 99th percentile was a quarter longer, with 8 twice as long. But a burst of 2 cost a
	// busy client a third of its connections, and one of 16 none.
	overflowBurst = 16
	floodBurst    = 2
	floodBacklog  = 512
	floodQuiet    = 20 * time.Millisecond
)

// pace decides how many messages the next read takes.
type pace struct {
	burst    int  // bounds the messages of the next read
	overflow bool // the queue is the overflow queue, which yields to all others

	behind     int       // messages since the last read of fewer than burst
	floodUntil time.Time // when the flood counts as over

	// Once fullBacklog messages have come without a pause, full is called after each burst
	// until the next pause; first is set at the first of these calls. fullBacklog 0
	// disables it.
	fullBacklog int
	unpaused    int // messages since the last pause
	full        func(first bool)
}

func newPace(overflow bool) *pace {
	p := &pace{burst: maxBurst, overflow: overflow}
	if overflow {
		p.burst = overflowBurst
	}
	return p
}

// took records that a read took n messages.
func (p *pace) took(n int) {
	if p.fullBacklog > 0 {
		p.countUnpaused(n)
	}
	if p.overflow {
		p.adapt(n, time.Now())
	}
}

// countUnpaused counts the messages that came without a pause. A read of fewer messages
// than burst is the last one before a pause.
func (p *pace) countUnpaused(n int) {
	before := p.unpaused
	if p.unpaused += n; p.unpaused >= p.fullBacklog {
		p.full(before < p.fullBacklog)
	}
	if n < p.burst {
		p.unpaused = 0
	}
}

// adapt chooses the next burst of the overflow queue, after one of n messages.
func (p *pace) adapt(n int, now time.Time) {
	if p.behind += n; n < p.burst {
		p.behind = 0
	}
	if p.behind >= floodBacklog || p.behind > 0 && p.burst == floodBurst {
		p.floodUntil = now.Add(floodQuiet)
	}
	p.burst = overflowBurst
	if now.Before(p.floodUntil) {
		p.burst = floodBurst
	}
}

// yield lets all other work run first while the overflow queue is flooded, and returns at
// once if there is none. That takes both calls. Gosched is for the other workers: it also
// wakes an idle thread of the runtime, which looks for packets in their queues. sched_yield
// is for the pods: the kernel lets a busy thread run on for milliseconds, and a thread that
// it wakes waits that long. Compared with no flood, the 99th percentile of another pod's
// connections on two cores was 17 times as long with neither call, 11 or 18 times with one
// of them, and twice as long with both.
//
// It yields only during a flood, because every program that computes then goes first, for
// milliseconds each: on a node that started containers, a client that was merely over its
// limit waited for up to 770 ms, against 50 ms without yielding.
//
// The thread keeps its priority. At a lower one, the kernel would let it wait for long in
// the middle of a burst, and the garbage collector would wait for it.
func (p *pace) yield() {
	if !p.overflow || p.burst != floodBurst {
		return
	}
	runtime.Gosched()
	_, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
}
