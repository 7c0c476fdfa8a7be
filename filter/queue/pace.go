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
	// overflowBurst replaces maxBurst for the overflow queue, and floodBurst replaces it
	// during a flood. A flood begins after floodBacklog messages without a pause, and ends
	// when the worker has kept up for floodQuiet. A shorter pause does not end it, because a
	// flood has short pauses too.
	//
	// The other workers wait for at most one burst of the overflow queue. During a flood,
	// the 99th percentile of their waits was a quarter longer with bursts of 4 messages
	// instead of 2, and twice as long with 8. Without a flood, bursts of 2 cost a busy
	// client a third of its connections; bursts of 16 cost it none.
	overflowBurst = 16
	floodBurst    = 2
	floodBacklog  = 512
	floodQuiet    = 20 * time.Millisecond
)

// pace decides how many messages the next read takes.
type pace struct {
	burst    int  // bounds the messages of the next read
	overflow bool // the queue is the overflow queue, which yields to all others

	behind     int       // messages since the last read that returned fewer than burst
	floodUntil time.Time // time at which the current flood counts as over

	// Once fullBacklog messages have come without a pause, full is called after each burst
	// until the next pause. Its parameter first is true in the first of these calls. If
	// fullBacklog is 0, full is never called.
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

// adapt sets the size of the overflow queue's next burst, after a burst of n messages.
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

// yield lets all other work run first while the overflow queue is flooded; if there is no
// other work, it returns at once. It needs both calls. Gosched yields to the other workers:
// it also wakes an idle thread of the runtime, which looks for packets in their queues.
// sched_yield yields to the pods: without it the kernel lets a busy thread run on for
// milliseconds, and a thread that has just become runnable waits that long. The 99th
// percentile of another pod's connection times on two cores, compared with no flood, was
// 17 times as long with neither call, 11 or 18 times with one of them, and twice as long
// with both.
//
// Without a flood, yield does nothing. Otherwise every busy program would run first, for
// milliseconds each: on a node that started containers, a client that was merely over its
// limit waited for up to 770 ms, against 50 ms without yielding.
//
// The thread keeps its priority. At a lower priority, the kernel could suspend it for a
// long time in the middle of a burst, and the garbage collector would wait for it.
func (p *pace) yield() {
	if !p.overflow || p.burst != floodBurst {
		return
	}
	runtime.Gosched()
	_, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
}
