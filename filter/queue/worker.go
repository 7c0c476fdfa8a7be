package queue

import (
	"context"
	"fmt"
	"net/netip"
	"runtime/debug"
	"time"

	"sluice/filter"
)

// A worker that failed is restarted after a backoff. The backoff is firstBackoff at first, and
// doubles with each failure up to lastBackoff. Both are short, because the kernel drops the
// packets of the worker's queue during the backoff or, with --fail open, lets them pass.
const (
	firstBackoff = 10 * time.Millisecond
	lastBackoff  = time.Second
)

// worker reads one queue.
type worker struct {
	queues    *Queues
	number    uint16
	overflow  bool // this is the worker of the overflow queue
	evaluator Evaluator
	pending   *pendingPackets
	began     bool                    // the queue has been bound at least once
	fail      context.CancelCauseFunc // ends the current session with an error
}

// run restarts the worker when it fails, until ctx ends. It returns an error only if the
// queue cannot be bound at the start.
func (w *worker) run(ctx context.Context) error {
	backoff := firstBackoff
	for {
		since := time.Now()
		err := w.session(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case !w.began:
			return err
		}
		w.queues.restarts.Add(1)
		if time.Since(since) > time.Minute {
			backoff = firstBackoff
		}
		w.queues.log.Error("queue worker failed; restarting it", "queue", w.number, "err", err, "in", backoff)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, lastBackoff)
	}
}

// session opens the queue and answers its packets until ctx ends or something fails.
// When it returns, the queue is closed and no more packets are evaluated.
func (w *worker) session(ctx context.Context) error {
	ctx, w.fail = context.WithCancelCause(ctx)
	defer w.fail(nil)
	q, err := openQueue(w.queues.opts, w.number, func() { w.queues.stale.Add(1) })
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, q.close)()
	// The deferred calls close the queue first and then end w.pending. In the other order, a
	// packet could stay pending until the next session, which would answer it by its ID. In
	// the queue of that session, the ID belongs to another packet.
	defer w.pending.start(ctx, q, w.fail)()
	defer q.close()
	p, err := w.newPace(q)
	if err != nil {
		return err
	}
	w.started()
	if err := w.answer(q, p); ctx.Err() == nil {
		return fmt.Errorf("read queue %d: %w", w.number, err)
	}
	return context.Cause(ctx)
}

// newPace returns the pace at which the worker reads.
func (w *worker) newPace(q *kernelQueue) (*pace, error) {
	p := newPace(w.overflow)
	if !w.queues.opts.FailOpen {
		return p, nil
	}
	buffer, err := q.socket.bufferSize()
	if err != nil {
		return nil, err
	}
	p.fullBacklog, p.full = w.queues.opts.fullBacklog(buffer), w.queueFull
	return p, nil
}

// started records that the worker's queue is bound. The first time, it counts the worker as
// ready. After a restart, it calls OnGap, because packets may have passed meanwhile.
func (w *worker) started() {
	if w.began {
		w.queues.gap()
		return
	}
	w.began = true
	if w.queues.unready.Add(-1) == 0 {
		close(w.queues.ready)
	}
}

// queueFull records that the queue may have been full, and that packets may therefore have passed
// without a verdict. A series of calls ends when the worker has read the queue empty. The
// parameter is true in the first call of a series; see pace.full.
func (w *worker) queueFull(first bool) {
	if first && w.queues.full.Add(1) == 1 {
		w.queues.log.Warn("a queue may have been full and let packets pass without a verdict; their connections will be judged. More or longer queues may help",
			"queue", w.number, "max_len", w.queues.opts.MaxLen)
	}
	w.queues.gap()
}

// answer reads bursts of packets and answers them, until the queue is closed or
// something fails.
func (w *worker) answer(q *kernelQueue, p *pace) error {
	for {
		burst, messages, err := q.read(p.burst)
		if err != nil {
			return err
		}
		p.took(messages)
		w.evaluator.Enter()
		for i := range burst {
			if err = w.answerOne(q, &burst[i]); err != nil {
				break
			}
		}
		if err == nil {
			err = q.flush() // returns when the kernel has carried out the verdicts
		}
		w.evaluator.Exit() // every verdict since Enter has been carried out, as Exit requires
		if err != nil {
			return err
		}
		p.yield()
	}
}

// answerOne answers a packet, or holds it.
func (w *worker) answerOne(q *kernelQueue, p *packet) error {
	if p.data == nil {
		// The packet arrived before the queue was configured to copy data. requeue makes the
		// kernel queue it once more, with its data.
		return q.requeue(p.id)
	}
	action, pending := w.queues.evaluate(w.number, w.evaluator, p.data, p.hook)
	if action == filter.Hold {
		if w.pending.add(newPendingPacket(p, pending, time.Now().Add(w.queues.opts.Hold))) {
			return nil
		}
		w.queues.heldRejected.Add(1)
		action = w.evaluator.Expire(p.data, p.hook, false)
	}
	return w.reply(q, p.id, p.mark, action)
}

// reply buffers the verdict about a packet until the next flush.
func (w *worker) reply(q *kernelQueue, id, mark uint32, action filter.Action) error {
	if w.overflow {
		w.queues.overflow.Add(1)
	}
	switch action {
	case filter.Allow:
		w.queues.allowed.Add(1)
		return q.allow(id, mark|w.queues.opts.Mark)
	case filter.Skip:
		w.queues.allowed.Add(1)
		return q.skip(id)
	}
	w.queues.denied.Add(1)
	// A packet that comes with the mark was to be rejected before, but the rules have queued it
	// again.
	if reject := w.queues.opts.RejectMark; action == filter.Reject && reject != 0 && mark&reject == 0 {
		return q.reject(id, mark|reject)
	}
	return q.deny(id)
}

// evaluate calls e.Evaluate. If it panics, the packet is denied and the worker continues.
func (q *Queues) evaluate(number uint16, e Evaluator, data []byte, hook filter.Hook) (action filter.Action, pending netip.Addr) {
	defer func() {
		if r := recover(); r != nil {
			action = filter.Deny
			q.panics.Add(1)
			q.log.Error("evaluating a packet failed; it is denied", "queue", number, "panic", r, "stack", string(debug.Stack()))
		}
	}()
	return e.Evaluate(data, hook)
}
