// Package queue answers the kernel: for each packet that the rules send to an
// NFQUEUE it asks an [Evaluator] and gives the verdict.
//
// There are several queues, and one worker reads each; the kernel keeps the
// packets between two addresses in one queue. Sources that send more than their
// share may have one more, the crowd's. An allowed packet goes back to the
// top of its chain (NF_REPEAT) with a bit in its mark, by which the rules save
// the verdict to the connection; a denied one is dropped there and then. One
// whose pod is not known yet waits, within bounds, until it is.
//
// go-nfqueue binds and configures the queues and encodes the verdicts; a worker reads
// bursts of packets, see worker.answer. A packet that cannot be decoded is denied. A
// worker that fails is started again; the kernel then drops what waited in its queue. So
// no message goes unanswered.
package queue

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"sluice/filter"
)

// Evaluator decides packets. Its methods are called by one goroutine at a time.
type Evaluator interface {
	// Enter begins a section in which packets are evaluated, all by one snapshot.
	Enter()
	// Evaluate decides the packet that begins with its IP header at data[0]. The
	// data are the caller's again when it returns.
	//
	// With filter.Hold the packet waits for whoever has the address awaited: it is
	// judged again after each Rejudge, until the answer is another or its time is
	// over.
	Evaluate(data []byte) (action filter.Action, awaited netip.Addr)
	// Expire decides a packet that has waited in vain, or for which there is no
	// room to wait. It never says filter.Hold.
	Expire(data []byte) filter.Action
	// Exit ends the section: the kernel has carried out the verdicts about all packets
	// since Enter.
	Exit()
}

// Options say which queues to read, and how.
type Options struct {
	// First is the number of the first of Count queues.
	First uint16
	Count int
	// Overflow has the one behind them read too. Its worker gives way to all others.
	Overflow bool
	// Mark is the bit that an allowed packet gets in its mark. No other bit is
	// changed.
	Mark uint32
	// MaxLen is how many packets may wait in each queue; 0 is DefaultMaxLen.
	MaxLen uint32
	// CopyRange is how many bytes of each packet are read; 0 is
	// DefaultCopyRange.
	CopyRange uint32
	// FailOpen lets packets pass that find their queue full; otherwise they are
	// dropped. A flood would then open what policies close.
	FailOpen bool
	// OnGap, if set, is called after packets may have passed unjudged: their queue may
	// have been full, with FailOpen, or its worker has been started again, during which
	// rules may let packets pass. It is called on a packet's way and must not wait.
	OnGap func()
	// NoGSO has the kernel cut big packets up before they are queued. Some
	// kernels drop UDP segments and SCTP then.
	NoGSO bool
	// Hold is how long a packet waits at most for its pod to become known.
	Hold time.Duration
	// MaxHeld is how many packets wait so at most, in all queues together. When
	// all places are taken, those who have most of them give way to others.
	MaxHeld int
	// NetNS is a file descriptor of the network namespace of the queues; 0 is
	// that of the process.
	NetNS int
}

// span is how many queues are read.
func (o Options) span() int {
	if o.Overflow {
		return o.Count + 1
	}
	return o.Count
}

const (
	// DefaultMaxLen is four times the kernel's own default. At 20 µs a packet a
	// full queue is worked off in 80 ms, so that no client waits a second for
	// its retransmission of a packet that did not fit.
	DefaultMaxLen = 4096
	// DefaultCopyRange holds every header that a decision needs, but for long
	// chains of IPv6 extension headers, which are opaque then.
	DefaultCopyRange = 256
)

// Stats are what the workers have done since the start.
type Stats struct {
	Allowed, Denied uint64 // packets by answer
	Stale           uint64 // answers to packets that the kernel had given up, as when an interface goes away
	Panics          uint64 // packets whose judgement failed, denied
	Restarts        uint64 // of workers
	Dropped         uint64 // by the kernel: the queue or the socket was full
	Overflow        uint64 // packets that were answered in the crowd's queue
	OverflowDropped uint64 // by the kernel, in the crowd's queue; not included in Dropped
	Full            uint64 // times that a queue may have been full and let packets pass

	Pending      int64  // packets that wait for their pod to become known
	Held         uint64 // those that have ever waited
	HoldExpired  uint64 // those whose pod did not become known in time
	HoldRejected uint64 // those that found no place, or lost it to a sender with fewer
}

// Queues are the workers of all queues.
type Queues struct {
	opts    Options
	log     *slog.Logger
	workers []*worker
	ready   chan struct{}
	unready atomic.Int32 // workers that have not started yet

	allowed, denied, stale, panics, restarts, dropped atomic.Uint64
	overflow, overflowDropped, full                   atomic.Uint64
	heldTotal, heldExpired, heldRejected              atomic.Uint64
	shares                                            *shares // of packets that wait
}

// New returns the workers of the queues. Each gets two evaluators from newEvaluator, one
// for packets that arrive and one for packets that wait. A nil logger discards
// what there is to say.
func New(opts Options, newEvaluator func() Evaluator, logger *slog.Logger) (*Queues, error) {
	if opts.Count < 1 || int(opts.First)+opts.span() > 1<<16 {
		return nil, fmt.Errorf("%d queues from number %d on: there must be one, and numbers end at 65535", opts.span(), opts.First)
	}
	if opts.MaxLen == 0 {
		opts.MaxLen = DefaultMaxLen
	}
	if opts.CopyRange == 0 {
		opts.CopyRange = DefaultCopyRange
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	q := &Queues{opts: opts, log: logger, ready: make(chan struct{}), shares: newShares(opts.MaxHeld)}
	q.unready.Store(int32(opts.span()))
	for i := range opts.span() {
		w := &worker{queues: q, number: opts.First + uint16(i), overflow: i == opts.Count, evaluator: newEvaluator()}
		w.pending = &pendingPackets{worker: w, evaluator: newEvaluator(), wake: make(chan struct{}, 1), displaced: make(chan struct{}, 1)}
		q.workers = append(q.workers, w)
	}
	return q, nil
}

// fullBacklog is how many packets must have come without a pause if one found a full
// queue, or a full socket with a buffer of so many bytes. The kernel does not count
// packets that it lets pass then. But when it did, many were waiting for their
// answer: those that wait for their pod, at most a burst that was being answered, and
// the rest unread.
func (o Options) fullBacklog(buffer int) int {
	most := 2*(int(o.CopyRange)+overhead) + 1024 // what the kernel accounts for a packet
	return max(1, min(int(o.MaxLen)-o.MaxHeld-maxBurst, buffer/most))
}

// gap says that packets may have passed unjudged.
func (q *Queues) gap() {
	if q.opts.OnGap != nil {
		q.opts.OnGap()
	}
}

// Ready is closed when every queue has been bound.
func (q *Queues) Ready() <-chan struct{} { return q.ready }

// Run reads the queues until ctx ends, which is no error. A queue that cannot be
// opened at the start is one: another process may hold it, or the privilege may
// be missing. One that fails later is opened again, and again.
func (q *Queues) Run(ctx context.Context) error {
	group, inner := errgroup.WithContext(ctx)
	for _, w := range q.workers {
		group.Go(func() error { return w.run(inner) })
	}
	group.Go(func() error {
		q.watch(inner)
		return nil
	})
	return group.Wait()
}

// Reevaluate has the packets that wait judged again. It is to be called after every
// publish, when no verdict of an older snapshot is on its way.
func (q *Queues) Reevaluate() {
	for _, w := range q.workers {
		w.pending.poke()
	}
}

// Stats are what has been done so far.
func (q *Queues) Stats() Stats {
	return Stats{
		Allowed: q.allowed.Load(), Denied: q.denied.Load(), Stale: q.stale.Load(),
		Panics: q.panics.Load(), Restarts: q.restarts.Load(), Dropped: q.dropped.Load(),
		Overflow: q.overflow.Load(), OverflowDropped: q.overflowDropped.Load(), Full: q.full.Load(),
		Pending: int64(q.shares.held()), Held: q.heldTotal.Load(), HoldExpired: q.heldExpired.Load(), HoldRejected: q.heldRejected.Load(),
	}
}
