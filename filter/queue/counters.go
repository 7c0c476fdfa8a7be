package queue

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sluice/filter/event"
)

const (
	// countersInterval is the time between two readings of the kernel's counters.
	countersInterval = time.Second
	// drainInterval is the time between two readings while Drain waits.
	drainInterval = time.Millisecond
)

// counter is a line of /proc/net/netfilter/nfnetlink_queue (nfnetlink_queue.c,
// seq_show).
type counter struct {
	waiting uint64 // packets in the queue
	dropped uint64 // packets dropped because the queue or the socket was full
}

// counters returns the counters of the workers' queues, by queue number.
func (q *Queues) counters() (map[uint16]counter, error) {
	return counters(q.opts.NetNS, q.opts.First, q.opts.span())
}

// Bound reports whether a process reads one of the queues in [first, first+count). netNS is
// a file descriptor of the queues' network namespace; 0 means the current namespace.
func Bound(netNS int, first uint16, count int) (bool, error) {
	found, err := counters(netNS, first, count)
	return len(found) > 0, err
}

// counters returns the kernel's counters for the bound queues in [first, first+count).
func counters(netNS int, first uint16, count int) (map[uint16]counter, error) {
	var text []byte
	err := inNetNS(netNS, func() (err error) {
		// thread-self, because a network namespace belongs to a thread.
		text, err = os.ReadFile("/proc/thread-self/net/netfilter/nfnetlink_queue")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the queues' counters: %w", err)
	}
	found := make(map[uint16]counter)
	for line := range strings.Lines(string(text)) {
		// queue, port, waiting, copy mode, copy range, dropped by the queue,
		// dropped by the socket, sequence, 1
		fields := strings.Fields(line)
		if len(fields) < 7 {
			continue
		}
		var numbers [7]uint64
		for i := range numbers {
			numbers[i], _ = strconv.ParseUint(fields[i], 10, 64) // fails for a negative netlink port, which is not needed
		}
		if n := numbers[0]; n >= uint64(first) && n < uint64(first)+uint64(count) {
			found[uint16(n)] = counter{waiting: numbers[2], dropped: numbers[5] + numbers[6]}
		}
	}
	return found, nil
}

// Waiting returns the number of packets without a verdict in the workers' queues.
func (q *Queues) Waiting() (int, error) {
	return Waiting(q.opts.NetNS, q.opts.First, q.opts.span())
}

// Waiting returns the number of packets without a verdict in the queues in [first,
// first+count), whichever process reads them. netNS is as for Bound.
func Waiting(netNS int, first uint16, count int) (int, error) {
	found, err := counters(netNS, first, count)
	sum := 0
	for _, c := range found {
		sum += int(c.waiting)
	}
	return sum, err
}

// Drain waits until every packet in the queues has its verdict. The caller must keep new
// packets out of the queues meanwhile. It returns an error if ctx ends first or the
// kernel's counters cannot be read.
func (q *Queues) Drain(ctx context.Context) error {
	tick := time.NewTicker(drainInterval)
	defer tick.Stop()
	for {
		n, err := q.Waiting()
		if err != nil || n == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d packets wait in the queues: %w", n, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// watch counts and logs the packets that the kernel drops, until ctx ends.
func (q *Queues) watch(ctx context.Context) {
	tick := time.NewTicker(countersInterval)
	defer tick.Stop()
	last := make(map[uint16]counter)
	failed := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now, err := q.counters()
		if err != nil {
			if err.Error() != failed {
				q.log.Warn("packets that the kernel drops cannot be counted", "err", err)
			}
			failed = err.Error()
			continue
		}
		failed = ""
		q.count(last, now)
		last = now
	}
}

// count adds the packets that were dropped between the last reading and this one to the
// statistics, and logs them. The counters of a queue start at 0 when it is bound again.
func (q *Queues) count(last, now map[uint16]counter) {
	for number, c := range now {
		before := last[number].dropped
		if c.dropped < before {
			before = 0
		}
		lost := c.dropped - before
		switch {
		case lost == 0:
			continue
		case q.opts.Overflow && int(number) == int(q.opts.First)+q.opts.Count:
			q.overflowDropped.Add(lost)
			q.log.Warn("the kernel dropped packets of sources over their limit", event.PacketsDropped.Attr(),
				"queue", number, "dropped", lost, "waiting", c.waiting, "max_len", q.opts.MaxLen)
		default:
			q.dropped.Add(lost)
			q.log.Warn("the kernel dropped packets because their queue was full; more or longer queues may help", event.PacketsDropped.Attr(),
				"queue", number, "dropped", lost, "waiting", c.waiting, "max_len", q.opts.MaxLen)
		}
	}
}

// inNetNS runs f in the network namespace with the given file descriptor; 0 means the current
// namespace.
func inNetNS(fd int, f func() error) error {
	if fd == 0 {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, so that the thread ends with the goroutine
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter the network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}
