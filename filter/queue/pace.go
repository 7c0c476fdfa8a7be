package queue

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxBurst is how many messages one system call reads at most. Their verdicts go
	// back in one call, so that it also bounds how long a verdict is on its way.
	maxBurst = 64
	// overflowBurst is maxBurst for the overflow queue. While the queue is flooded, it
	// is floodBurst: from floodBacklog packets without a pause, until hardly any came
	// for floodQuiet, since a flood has short pauses too. Other workers wait for one
	// burst at worst: with 4 packets instead of 2 their 99th percentile was a quarter
	// longer, with 8 twice as long. But 2 cost a busy client a third of its connections,
	// and 16 none.
	overflowBurst = 16
	floodBurst    = 2
	floodBacklog  = 512
	floodQuiet    = 20 * time.Millisecond
)

// pace decides how many messages the next read takes.
type pace struct {
	burst    int  // of the next read
	overflow bool // the queue is the overflow queue, which yields to all others

	behind     int       // messages since a read last took less than it could have
	floodUntil time.Time // when the flood is over

	// full is called for each burst once fullBacklog messages came without a pause,
	// until the next pause; fullBacklog 0 disables it. first is set for the first of
	// these bursts.
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

// countUnpaused counts the messages that came without a pause. A read that took less
// than it could have was the last before a pause.
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

// yield lets all others go first while the overflow queue is flooded. It returns at
// once if no others can go on. Only both calls together do that. The first is for the
// other workers: it also wakes an idle thread of the runtime, which looks for packets
// in their queues. The second is for the pods: the kernel lets a busy thread run on
// for milliseconds, and a thread that it wakes waits that long. Measured on two cores
// as the 99th percentile of another pod's connections beside a flood, in multiples of
// the time without one: with neither call 17, with one of them 11 or 18, with both 2.
//
// It yields to a flood only, because it yields to every program that computes, for
// milliseconds each: on a node that started containers, a client that was merely over
// its limit waited for up to 770 ms, against 50 ms without yielding.
//
// The thread keeps its priority: the kernel would let a thread of lower priority wait
// for long in the middle of a burst, and the garbage collector would wait for it.
func (p *pace) yield() {
	if !p.overflow || p.burst != floodBurst {
		return
	}
	runtime.Gosched()
	_, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
}
