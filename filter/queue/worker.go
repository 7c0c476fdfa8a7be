package queue

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/florianl/go-nfqueue/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sluice/filter"
)

// How long a worker that failed waits before it is started again: short, because
// its queue drops everything meanwhile.
const (
	firstBackoff = 10 * time.Millisecond
	lastBackoff  = time.Second
)

// worker reads one queue.
type worker struct {
	*Queues
	number    uint16
	overflow  bool
	evaluator Evaluator
	pending   *pendingPackets
	began     bool
}

// run keeps the worker going until ctx ends.
func (w *worker) run(ctx context.Context) error {
	backoff := firstBackoff
	for {
		since := time.Now()
		err := w.read(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case !w.began:
			return err
		}
		w.restarts.Add(1)
		if time.Since(since) > time.Minute {
			backoff = firstBackoff
		}
		w.log.Error("queue worker failed; starting it again", "queue", w.number, "err", err, "in", backoff)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, lastBackoff)
	}
}

// read opens the queue and answers its packets until ctx ends or something
// fails. When it returns, no more packets are judged.
func (w *worker) read(ctx context.Context) error {
	failed := make(chan error, 1)
	fail := func(err error) {
		select {
		case failed <- err:
		default: // the first reason is the one
		}
	}
	nf, s, err := w.open(fail)
	if err != nil {
		return fmt.Errorf("open queue %d: %w", w.number, explain(err))
	}
	defer w.evaluator.Answered() // by the kernel: closing the queue drops what waits in it
	// The queue is closed first, which ends the hook: a packet that it held later
	// would be answered in the next queue, where another has its number.
	defer w.startPending(ctx, nf, s, fail)()
	defer nf.Close()
	err = nf.RegisterWithErrorFunc(ctx, w.hook(nf, fail), func(err error) int {
		fail(fmt.Errorf("read queue %d: %w", w.number, err))
		return 1
	})
	if err != nil {
		return fmt.Errorf("bind queue %d: %w", w.number, explain(err))
	}
	if w.began {
		w.gap()
	} else {
		w.began = true
		if w.unready.Add(-1) == 0 {
			close(w.ready)
		}
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

// startPending starts what answers the packets that wait. It ends with the call of done,
// for which the queue has to be closed.
func (w *worker) startPending(ctx context.Context, nf *nfqueue.Nfqueue, s *socket, fail func(error)) (done func()) {
	w.pending.fail, w.pending.flush = fail, s.flush
	w.pending.reply = func(id, mark uint32, action filter.Action) {
		if err := w.reply(nf, id, mark, action); err != nil {
			fail(err)
		}
	}
	inner, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { w.pending.run(inner) })
	return func() {
		stop()
		running.Wait()
		w.pending.forget()
	}
}

// open opens the queue over our own socket.
func (w *worker) open(fail func(error)) (*nfqueue.Nfqueue, *socket, error) {
	var flags uint32
	if !w.opts.NoGSO {
		flags |= nfqueue.NfQaCfgFlagGSO
	}
	if w.opts.FailOpen {
		flags |= nfqueue.NfQaCfgFlagFailOpen
	}
	nf, err := nfqueue.Open(&nfqueue.Config{
		NetNS: w.opts.NetNS, NfQueue: w.number, Copymode: nfqueue.NfQnlCopyPacket, Flags: flags,
		MaxQueueLen: w.opts.MaxLen, MaxPacketLen: w.opts.CopyRange, Logger: libraryLog{w, fail},
	})
	if err != nil {
		return nil, nil, err
	}
	s, err := newSocket(w.opts.NetNS, w.opts.CopyRange, w.overflow, w.evaluator.Answered, func() { w.stale.Add(1) })
	if err != nil {
		_ = nf.Close()
		return nil, nil, err
	}
	if w.opts.FailOpen {
		buffer, err := s.conn.GetsockoptInt(unix.SOL_SOCKET, unix.SO_RCVBUF)
		if err != nil {
			_ = nf.Close()
			_ = s.Close()
			return nil, nil, fmt.Errorf("get the size of the receive buffer: %w", err)
		}
		s.backlog, s.full = w.opts.fullBacklog(buffer), w.queueFull
	}
	_ = nf.Con.Close()
	nf.Con = netlink.NewConn(s, s.port)
	return nf, s, nil
}

// queueFull records that packets may have found the queue full, and passed; first is
// set unless it went on from the last time.
func (w *worker) queueFull(first bool) {
	if first && w.full.Add(1) == 1 {
		w.log.Warn("a queue may have been full and let packets pass unjudged; their connections will be judged. More queues or a longer one may help",
			"queue", w.number, "max_len", w.opts.MaxLen)
	}
	w.gap()
}

// hook answers one packet, or has it wait.
func (w *worker) hook(nf *nfqueue.Nfqueue, fail func(error)) nfqueue.HookFunc {
	return func(a nfqueue.Attribute) int {
		if a.PacketID == nil {
			fail(errors.New("a packet without a number cannot be answered"))
			return 0
		}
		var err error
		if a.Payload == nil {
			// It was queued before the queue was configured. Round again: it
			// comes back with its bytes.
			err = nf.SetVerdict(*a.PacketID, nfqueue.NfRepeat)
		} else if action, wait := w.decide(&a); !wait {
			err = w.reply(nf, *a.PacketID, markOf(&a), action)
		}
		if err != nil {
			fail(err)
		}
		return 0
	}
}

func markOf(a *nfqueue.Attribute) uint32 {
	if a.Mark == nil {
		return 0
	}
	return *a.Mark
}

// deviceOf is the interface by which a packet came in: of a bridge, the port.
func deviceOf(a *nfqueue.Attribute) uint32 {
	switch {
	case a.PhysInDev != nil:
		return *a.PhysInDev
	case a.InDev != nil:
		return *a.InDev
	}
	return 0
}

// decide asks the judge about a packet, and keeps it if it has to wait.
func (w *worker) decide(a *nfqueue.Attribute) (action filter.Action, wait bool) {
	action, awaited := w.evaluate(w.evaluator, *a.Payload)
	if action != filter.Hold {
		return action, false
	}
	p := &pendingPacket{
		id: *a.PacketID, mark: markOf(a), data: *a.Payload, addr: awaited, deadline: time.Now().Add(w.opts.Hold),
		device: deviceOf(a), source: sourceOf(*a.Payload),
	}
	if w.pending.add(p) {
		return filter.Hold, true
	}
	w.heldRejected.Add(1)
	return w.evaluator.Expire(*a.Payload), false
}

// reply gives the kernel the answer.
func (w *worker) reply(nf *nfqueue.Nfqueue, id, mark uint32, action filter.Action) error {
	if w.overflow {
		w.Queues.overflow.Add(1)
	}
	if action == filter.Allow {
		w.allowed.Add(1)
		return nf.SetVerdictWithOption(id, nfqueue.NfRepeat, nfqueue.WithMark(mark|w.opts.Mark))
	}
	w.denied.Add(1)
	return nf.SetVerdict(id, nfqueue.NfDrop)
}

// evaluate asks a judge. One that fails about a packet denies it, and goes on with the
// next.
func (w *worker) evaluate(judge Evaluator, data []byte) (action filter.Action, awaited netip.Addr) {
	defer func() {
		if r := recover(); r != nil {
			action = filter.Deny
			w.panics.Add(1)
			w.log.Error("judging a packet failed; it is denied", "queue", w.number, "panic", r, "stack", string(debug.Stack()))
		}
	}()
	return judge.Evaluate(data)
}

// libraryLog is where go-nfqueue says that it could not parse a message, and
// nowhere else. The packet would wait for its answer for ever: the worker has to
// start again.
type libraryLog struct {
	*worker
	fail func(error)
}

func (l libraryLog) Debugf(string, ...any) {}

func (l libraryLog) Errorf(format string, args ...any) {
	if strings.HasPrefix(format, "Could not parse") {
		l.fail(fmt.Errorf("go-nfqueue: "+format, args...))
	}
}

// explain gives the errors that a user can do something about words of their own.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EPERM) && strings.Contains(err.Error(), "requested queue"):
		// The kernel says EPERM for both; without the privilege, it refuses
		// go-nfqueue's first request and not the one for the queue.
		return fmt.Errorf("%w: another process reads this queue: end it, or choose other numbers with --queue-first", err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: run as root, or with the capability NET_ADMIN", err)
	}
	return err
}
