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
	// the length of one queue. Even if all pending packets are in the same queue, three
	// quarters of it remain for packets that need not wait.
	DefaultMaxHeld = DefaultMaxLen / 4
)

// pendingPackets are the packets of one worker that wait for a pod to become known. The
// packets stay in the kernel's queue; their IDs and data are kept here.
//
// The packets are evaluated again after each publication, by a separate evaluator, because
// the worker's evaluator is busy with arriving packets. No packet is missed: a packet that
// was held by an older snapshot was added before Synchronize returned, and Reevaluate is
// called after that.
type pendingPackets struct {
	worker    *worker
	evaluator Evaluator
	wake      chan struct{}
	displaced chan struct{} // signals that a packet was displaced, see shares

	mu      sync.Mutex
	packets []*pendingPacket // pending packets, oldest first
}

// pendingPacket is a packet that waits for a pod to become known.
type pendingPacket struct {
	id, mark uint32
	data     []byte
	addr     netip.Addr // the address whose pod is not known yet
	deadline time.Time

	device    uint32      // see packet
	hook      filter.Hook // see packet
	source    netip.Addr  // from the IP header; may be forged
	owner     *pendingPackets
	displaced bool // another packet has taken its place (see shares); guarded by shares.mu
}

func newPendingPacket(p *packet, addr netip.Addr, deadline time.Time) *pendingPacket {
	return &pendingPacket{
		id: p.id, mark: p.mark, data: bytes.Clone(p.data), addr: addr, deadline: deadline,
		device: p.device, hook: p.hook, source: sourceOf(p.data),
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

// start starts a goroutine that answers the pending packets of q, and passes its error to
// fail(). The result is a function that ends the goroutine and forgets the remaining packets.
// Close q before calling this function, so that the kernel has dropped these packets.
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

// add holds a packet, and reports whether there was a place for it (see shares.take).
func (h *pendingPackets) add(p *pendingPacket) bool {
	// Lock before p takes a place: if another worker's packet displaces p at once,
	// expireDisplaced waits for the lock, and then finds p in h.packets.
	h.mu.Lock()
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
		h.poke() // so that run() sets its timer
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

// run evaluates the packets again whenever it is woken or the oldest packet has reached its
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
		// All verdicts have been carried out, so from here on this goroutine uses no snapshot.
		h.evaluator.Exit()
		if err != nil {
			return err
		}
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		}
	}
}

// expireDisplaced answers the displaced packets, which have not waited until their deadline. It
// does not evaluate the other packets: in a flood, each arriving packet may displace another,
// and each time, all pending packets would be evaluated. expireDisplaced returns the zero time,
// so that run does not change its timer.
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
		err = h.worker.reply(q, p.id, p.mark, h.evaluator.Expire(p.data, p.hook, false))
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
		action, _ := h.worker.queues.evaluate(h.worker.number, h.evaluator, p.data, p.hook)
		if action == filter.Hold && now.Before(p.deadline) {
			kept = append(kept, p)
			continue
		}
		if action == filter.Hold {
			h.worker.queues.heldExpired.Add(1)
			action = h.evaluator.Expire(p.data, p.hook, true)
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

// forget removes all packets and frees their places. The queue must be closed: then the
// kernel has dropped the packets.
func (h *pendingPackets) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.packets {
		h.worker.queues.shares.leave(p)
	}
	h.packets = nil
}
