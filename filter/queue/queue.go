// Package queue answers the kernel: it evaluates each packet that the rules send to an
// NFQUEUE and sets the verdict.
//
// There are several queues, each with a worker; the kernel keeps the packets between two
// addresses in one queue. Packets of sources over their limit go to the overflow queue. An
// allowed packet returns to the top of its chain (NF_REPEAT) with a bit set in its mark,
// which the rules save as the allowed mark of the connection; a denied packet is dropped. A
// packet whose pod is not known yet is held, within bounds.
//
// go-nfqueue binds and configures the queues and encodes the verdicts; the workers read the
// packets, see worker.answer. A packet that cannot be decoded is denied. A worker that
// fails is restarted; the kernel drops the packets in its queue, so that no packet remains
// without a verdict.
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
	// Enter begins a read section: all packets evaluated before Exit see one snapshot.
	Enter()
	// Evaluate decides the packet that begins with its IP header at data[0] and was
	// queued at the hook. The caller may reuse data after the call.
	//
	// If the action is filter.Hold, the packet is held until the pod with the address
	// pending is known: it is evaluated again after each Reevaluate, until the action
	// changes or the packet has waited for Options.Hold.
	Evaluate(data []byte, hook filter.Hook) (action filter.Action, pending netip.Addr)
	// Expire decides a packet that cannot wait any longer. waited is set if it has waited for
	// Options.Hold; otherwise there is no room for it. Expire never returns filter.Hold.
	Expire(data []byte, hook filter.Hook, waited bool) filter.Action
	// Exit ends the section. It is called when the kernel has carried out every verdict
	// that was returned since Enter.
	Exit()
}

// Options configure the queues.
type Options struct {
	// First is the number of the first balanced queue, and Count is how many there are.
	First uint16
	Count int
	// Overflow adds the overflow queue, with the number First+Count. During a flood, its
	// worker yields to all other work.
	Overflow bool
	// Mark is the bit that is set in the mark of an allowed packet. No other bit changes.
	Mark uint32
	// RejectMark is the bit that is set in the mark of a packet that is to be rejected; 0 drops
	// such packets.
	RejectMark uint32
	// MaxLen bounds the packets in each queue; 0 means DefaultMaxLen.
	MaxLen uint32
	// CopyRange bounds the bytes that are read of each packet; 0 means DefaultCopyRange.
	CopyRange uint32
	// FailOpen makes the kernel let a packet pass if its queue is full, instead of dropping
	// it. So with FailOpen, packets that policies deny may pass during a flood.
	FailOpen bool
	// OnGap, if not nil, is called when packets may have passed without a verdict. There are
	// two causes: with FailOpen, a queue may have been full; and a worker was restarted, and
	// the rules may accept packets while their queue has no reader. OnGap must not block.
	OnGap func()
	// NoGSO makes the kernel segment large packets before it queues them. Some kernels
	// then drop UDP segments and SCTP.
	NoGSO bool
	// Hold bounds how long a packet waits for its pod to become known.
	Hold time.Duration
	// MaxHeld bounds the pending packets of all queues together: each takes one of MaxHeld
	// places. If no place is free, a new packet takes the place of a packet of the sender that
	// has the most places, if the new packet's sender has at least two places fewer. The type
	// shares defines what a sender is, and chooses the packet that loses its place.
	MaxHeld int
	// NetNS is a file descriptor of the network namespace of the queues; 0 means the
	// network namespace of the process.
	NetNS int
}

// span returns the number of queues, including the overflow queue.
func (o Options) span() int {
	if o.Overflow {
		return o.Count + 1
	}
	return o.Count
}

const (
	// DefaultMaxLen is four times the kernel's default of 1024. A worker empties a full queue
	// in 80 ms, at 20 µs a packet. That delay is better than a drop: if a full queue drops the
	// first packet of a TCP connection, the client retransmits it only after a second.
	DefaultMaxLen = 4096
	// DefaultCopyRange covers every header that a decision needs. Only a long chain of IPv6
	// extension headers may exceed it: then the packet's ports are unknown (filter.Opaque).
	DefaultCopyRange = 256
)

// Stats are the statistics of the workers since the start.
type Stats struct {
	Allowed, Denied uint64 // packets by verdict
	Stale           uint64 // verdicts about packets that were already gone, for instance because an interface was removed
	Panics          uint64 // packets whose evaluation panicked; denied
	Restarts        uint64 // restarts of workers that failed
	Dropped         uint64 // packets that the kernel dropped because the queue or the socket was full
	Overflow        uint64 // packets of the overflow queue; included in Allowed and Denied
	OverflowDropped uint64 // packets of the overflow queue that the kernel dropped; not included in Dropped
	Full            uint64 // with FailOpen: how often a queue may have let packets pass because it was full

	Pending      int64  // packets that wait for their pod now
	Held         uint64 // packets that have been held since the start
	HoldExpired  uint64 // packets whose pod did not become known in time
	HoldRejected uint64 // packets that were not held, or no longer held, because all places were taken
}

// Queues are the workers of all queues.
type Queues struct {
	opts    Options
	log     *slog.Logger
	workers []*worker
	ready   chan struct{}
	unready atomic.Int32 // workers that have not bound their queue yet

	allowed, denied, stale, panics, restarts, dropped atomic.Uint64
	overflow, overflowDropped, full                   atomic.Uint64
	heldTotal, heldExpired, heldRejected              atomic.Uint64
	shares                                            *shares // places for pending packets
}

// New returns the workers of the queues, which Run starts. Each worker gets two evaluators,
// one for arriving packets and one for pending packets. logger may be nil. It is an error
// if Count is less than 1 or a queue's number exceeds 65535.
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

// fullBacklog returns the smallest possible number of unread packets in a full queue or in a
// full receive buffer of buffer bytes. If a worker reads at least that many without a pause, its
// queue may have been full. The type pace relies on this, because with FailOpen the kernel does
// not count the packets that find a queue full. Of the MaxLen packets in a full queue, at most
// MaxHeld are pending, at most maxBurst are being evaluated, and all others are unread.
func (o Options) fullBacklog(buffer int) int {
	most := 2*(int(o.CopyRange)+overhead) + 1024 // upper bound of the buffer space that the kernel charges for a packet
	return max(1, min(int(o.MaxLen)-o.MaxHeld-maxBurst, buffer/most))
}

// gap reports that packets may have passed without a verdict.
func (q *Queues) gap() {
	if q.opts.OnGap != nil {
		q.opts.OnGap()
	}
}

// Ready returns a channel that is closed when every queue has been bound.
func (q *Queues) Ready() <-chan struct{} { return q.ready }

// Run reads the queues until ctx ends, and then returns nil. A queue that cannot be opened at
// the start is an error: another process may read it, or the privilege may be missing. A
// queue that fails later is opened again.
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

// Reevaluate makes the workers evaluate their pending packets again; it does not wait for
// them. It is called after every publication, when every verdict of older snapshots has
// been carried out.
func (q *Queues) Reevaluate() {
	for _, w := range q.workers {
		w.pending.poke()
	}
}

// Stats returns the statistics since New.
func (q *Queues) Stats() Stats {
	return Stats{
		Allowed: q.allowed.Load(), Denied: q.denied.Load(), Stale: q.stale.Load(),
		Panics: q.panics.Load(), Restarts: q.restarts.Load(), Dropped: q.dropped.Load(),
		Overflow: q.overflow.Load(), OverflowDropped: q.overflowDropped.Load(), Full: q.full.Load(),
		Pending: int64(q.shares.held()), Held: q.heldTotal.Load(), HoldExpired: q.heldExpired.Load(), HoldRejected: q.heldRejected.Load(),
	}
}
