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
	// The overflow queue has smaller bursts: overflowBurst is its bound, and floodBurst is its
	// bound during a flood. A flood begins after floodBacklog messages without a pause. (A read
	// that returns fewer messages than its bound has emptied the queue, so a pause follows.) The
	// flood ends once all reads of the last floodQuiet have emptied the queue. A shorter time
	// does not end it, because a flood has short pauses too.
	//
	// The other workers wait for at most one burst of the overflow queue. During a flood,
	// the 99th percentile of their waits with bursts of 4 messages was 1.25 times that with
	// bursts of 2; with bursts of 8, it was twice as long. Without a flood, bursts of 2 cost a
	// busy client a third of its connections; bursts of 16 cost it none.
	overflowBurst = 16
	floodBurst    = 2
	floodBacklog  = 512
	floodQuiet    = 20 * time.Millisecond
)

// pace decides how many messages the next read takes.
type pace struct {
	burst    int  // largest number of messages that the next read may take
	overflow bool // the queue is the overflow queue, which yields to all others

	// behind is the number of messages that were read since the queue was last empty. The queue
	// is empty after a read of fewer messages than burst.
	behind     int
	floodUntil time.Time // end of the current flood; each read of burst messages during the flood postpones it

	// full() is called after each read as long as at least fullBacklog messages have come
	// without a pause. Its argument is true in the first call of such a series. If fullBacklog
	// is 0, full() is never called.
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

// countUnpaused adds n to the messages that came without a pause, and calls full() if there are
// fullBacklog or more. A read of fewer messages than burst has emptied the queue: a pause
// follows, and the count begins at 0 again.
func (p *pace) countUnpaused(n int) {
	before := p.unpaused
	if p.unpaused += n; p.unpaused >= p.fullBacklog {
		p.full(before < p.fullBacklog)
	}
	if n < p.burst {
		p.unpaused = 0
	}
}

// adapt sets the bound of the overflow queue's next read (floodBurst during a flood, otherwise
// overflowBurst), after a read that took n messages.
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
// sched_yield yields to the processes of pods: without it, the kernel lets this busy thread
// run on for milliseconds, and a pod's thread that has just become runnable waits that long.
// During a flood, the 99th percentile of another pod's connection times on two cores was a
// multiple of that without a flood: 17 times with neither call, 11 or 18 times with one of
// them, and twice with both.
//
// Without a flood, yield does nothing. If it yielded then too, every busy program of the node
// would run first, for milliseconds each: on a node that started containers, a client whose
// packets exceeded its limit waited for up to 770 ms, against 50 ms without yielding.
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
