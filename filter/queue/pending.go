package queue

import (
	"bytes"
	"context"
	"net/netip"
	"sync"
	"time"

	"sluice/filter"
	"sluice/filter/event"
)

const (
	// DefaultHold is how long a packet waits for its pod to become known. Clients
	// repeat a lost request after a second.
	DefaultHold = time.Second
	// DefaultMaxHeld bounds the pending packets of all queues together. It is a quarter of
	// one queue, so that they leave room for packets that need not wait.
	DefaultMaxHeld = DefaultMaxLen / 4
)

// pendingPackets are the packets of one worker that wait for a pod to become known. The
// packets stay in the kernel's queue; their IDs and data are kept here.
//
// They are evaluated again after each publication, by an evaluator of their own, because
// the worker's evaluator is busy with arriving packets. No packet is missed: one that was
// held by an older snapshot was added before Synchronize returned, and Reevaluate is called
// after that.
type pendingPackets struct {
	worker    *worker
	evaluator Evaluator
	wake      chan struct{}
	displaced chan struct{} // signals that a packet has lost its place

	mu      sync.Mutex
	packets []*pendingPacket // the oldest first
}

// pendingPacket is a packet that waits for a pod to become known.
type pendingPacket struct {
	id, mark uint32
	data     []byte
	addr     netip.Addr // the address that should be a pod's
	deadline time.Time

	device    uint32     // see packet
	source    netip.Addr // from the IP header; may be forged
	owner     *pendingPackets
	displaced bool // guarded by shares.mu
}

func newPendingPacket(p *packet, addr netip.Addr, deadline time.Time) *pendingPacket {
	return &pendingPacket{
		id: p.id, mark: p.mark, data: bytes.Clone(p.data), addr: addr, deadline: deadline,
		device: p.device, source: sourceOf(p.data),
	}
}

// sourceOf returns the source address of a packet whose IP header has been decoded.
func sourceOf(data []byte) (a netip.Addr) {
	switch {
	case len(data) >= 20 && data[0]>>4 == 4:
		a, _ = netip.AddrFromSlice(data[12:16])
	case len(data) >= 40 && data[0]>>4 == 6:
		a, _ = netip.AddrFromSlice(data[8:24])
	}
	return a
}

// start begins to answer the pending packets of q. stop ends that and forgets the rest: q
// must be closed before, so that the kernel has dropped them. An error is passed to fail.
func (h *pendingPackets) start(ctx context.Context, q *kernelQueue, fail context.CancelCauseFunc) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() {
		if err := h.run(ctx, q); err != nil {
			fail(err)
		}
	})
	return func() {
		cancel()
		running.Wait()
		h.forget()
	}
}

// add holds a packet, and reports whether there was a place for it.
func (h *pendingPackets) add(p *pendingPacket) bool {
	h.mu.Lock() // until p is in h.packets, where expireDisplaced finds it if it is displaced
	defer h.mu.Unlock()
	p.owner = h
	displaced, ok := h.worker.queues.shares.take(p)
	if !ok {
		return false
	}
	if displaced != nil {
		signal(displaced.owner.displaced)
	}
	h.worker.queues.heldTotal.Add(1)
	h.packets = append(h.packets, p)
	h.worker.queues.log.Debug("packet waits for its pod to become known", event.PacketHeld.Attr(), "address", p.addr)
	if len(h.packets) == 1 {
		h.poke() // to set the timer
	}
	return true
}

// poke makes run evaluate the packets again.
func (h *pendingPackets) poke() { signal(h.wake) }

// signal wakes the receiver of c.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // a signal is pending
	}
}

// run evaluates the packets again when it is woken, and when the oldest has reached its
// deadline, until ctx ends.
func (h *pendingPackets) run(ctx context.Context, q *kernelQueue) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		evaluate := h.reevaluate
		select {
		case <-ctx.Done():
			return nil
		case <-h.displaced:
			evaluate = h.expireDisplaced
		case <-h.wake:
		case <-timer.C:
		}
		h.evaluator.Enter()
		next, err := evaluate(q)
		if err == nil {
			err = q.flush() // returns when the kernel has carried out the verdicts
		}
		h.evaluator.Exit() // quiescent: every verdict of the snapshot has been carried out
		if err != nil {
			return err
		}
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		}
	}
}

// expireDisplaced answers the packets that have lost their place. It does not evaluate the
// others again: a flood would make it do so for each of its packets. The deadline that it
// returns is zero, so that run leaves its timer unchanged.
func (h *pendingPackets) expireDisplaced(q *kernelQueue) (unchanged time.Time, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	kept := h.packets[:0]
	for _, p := range h.packets {
		if err != nil || !h.worker.queues.shares.isDisplaced(p) {
			kept = append(kept, p)
			continue
		}
		h.worker.queues.heldRejected.Add(1)
		err = h.worker.reply(q, p.id, p.mark, h.evaluator.Expire(p.data))
	}
	clear(h.packets[len(kept):])
	h.packets = kept
	return time.Time{}, err
}

// reevaluate evaluates the packets again, answers those that need not wait any longer, and
// returns the deadline of the oldest remaining packet; zero if none remains.
func (h *pendingPackets) reevaluate(q *kernelQueue) (next time.Time, err error) {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	kept := h.packets[:0]
	for _, p := range h.packets {
		if err != nil {
			kept = append(kept, p)
			continue
		}
		action, _ := h.worker.queues.evaluate(h.worker.number, h.evaluator, p.data)
		if action == filter.Hold && now.Before(p.deadline) {
			kept = append(kept, p)
			continue
		}
		if action == filter.Hold {
			h.worker.queues.heldExpired.Add(1)
			action = h.evaluator.Expire(p.data)
		}
		err = h.worker.reply(q, p.id, p.mark, action)
		h.worker.queues.shares.leave(p)
	}
	clear(h.packets[len(kept):])
	h.packets = kept
	if len(kept) > 0 {
		next = kept[0].deadline
	}
	return next, err
}

// forget drops all packets. The queue is closed, so that the kernel has dropped them too.
func (h *pendingPackets) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.packets {
		h.worker.queues.shares.leave(p)
	}
	h.packets = nil
}
