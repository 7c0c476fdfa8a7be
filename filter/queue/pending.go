package queue

import (
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
	// DefaultMaxHeld is how many packets wait in all; a quarter of one queue, so
	// that they leave room for those that need not wait.
	DefaultMaxHeld = DefaultMaxLen / 4
)

// pendingPackets is the packets of one worker that wait for a pod to become known. They
// wait in the kernel; here are their numbers.
//
// They are judged again after each publish, by a judge of their own, since the
// worker's is busy with packets that arrive meanwhile. None is missed: a packet
// that was held under an older snapshot was held before the publisher had
// settled, and Rejudge comes after that.
type pendingPackets struct {
	*worker
	evaluator Evaluator
	reply     func(id uint32, mark uint32, action filter.Action)
	flush     func() error
	fail      func(error)
	wake      chan struct{}
	displaced chan struct{} // some packet has lost its place

	mu      sync.Mutex
	packets []*pendingPacket // the oldest first
}

// pendingPacket is a packet that waits.
type pendingPacket struct {
	id, mark uint32
	data     []byte
	addr     netip.Addr
	deadline time.Time

	device    uint32     // the interface that it came in by; 0 if the kernel does not say
	source    netip.Addr // as it claims
	owner     *pendingPackets
	displaced bool // shares' to read and write
}

// sourceOf is the source address of a packet whose IP header has been read.
func sourceOf(data []byte) (a netip.Addr) {
	switch {
	case len(data) >= 20 && data[0]>>4 == 4:
		a, _ = netip.AddrFromSlice(data[12:16])
	case len(data) >= 40 && data[0]>>4 == 6:
		a, _ = netip.AddrFromSlice(data[8:24])
	}
	return a
}

// add keeps a packet; false if there is no place for it.
func (h *pendingPackets) add(p *pendingPacket) bool {
	h.mu.Lock() // until the packet is among the others, where it is found if it loses its place
	defer h.mu.Unlock()
	p.owner = h
	displaced, ok := h.shares.take(p)
	if !ok {
		return false
	}
	if displaced != nil {
		signal(displaced.owner.displaced)
	}
	h.heldTotal.Add(1)
	h.packets = append(h.packets, p)
	h.log.Debug("packet waits for its pod to become known", event.PacketHeld.Attr(), "address", p.addr)
	if len(h.packets) == 1 {
		h.poke() // so that its time is watched
	}
	return true
}

// poke has run look at the packets.
func (h *pendingPackets) poke() { signal(h.wake) }

// signal wakes who listens on c.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it will look
	}
}

// run judges what waits, again and again, until ctx ends.
func (h *pendingPackets) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.displaced:
			h.expireDisplaced()
		case <-h.wake:
			h.reevaluateAndArm(timer)
		case <-timer.C:
			h.reevaluateAndArm(timer)
		}
		// What was answered is on its way to the kernel only now.
		err := h.flush()
		h.evaluator.Answered()
		if err != nil {
			h.fail(err)
			return
		}
	}
}

// reevaluateAndArm judges all packets again, and sets the timer for when the first of the others
// has waited for too long.
func (h *pendingPackets) reevaluateAndArm(timer *time.Timer) {
	if next, any := h.reevaluate(); any {
		timer.Reset(time.Until(next))
	}
}

// expireDisplaced answers the packets that have lost their place. The others are not
// judged again: a flood would have it done for each of its packets.
func (h *pendingPackets) expireDisplaced() {
	h.mu.Lock()
	defer h.mu.Unlock()
	kept := h.packets[:0]
	for _, p := range h.packets {
		if !h.shares.isDisplaced(p) {
			kept = append(kept, p)
			continue
		}
		h.heldRejected.Add(1)
		h.reply(p.id, p.mark, h.evaluator.Expire(p.data))
	}
	clear(h.packets[len(kept):])
	h.packets = kept
}

// reevaluate answers what need not wait any longer, and returns until when the
// oldest of the others waits.
func (h *pendingPackets) reevaluate() (next time.Time, any bool) {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	kept := h.packets[:0]
	for _, p := range h.packets {
		action, _ := h.worker.evaluate(h.evaluator, p.data)
		if action == filter.Hold && now.Before(p.deadline) {
			kept = append(kept, p)
			continue
		}
		if action == filter.Hold {
			h.heldExpired.Add(1)
			action = h.evaluator.Expire(p.data)
		}
		h.reply(p.id, p.mark, action)
		h.shares.leave(p)
	}
	clear(h.packets[len(kept):])
	h.packets = kept
	if len(kept) == 0 {
		return time.Time{}, false
	}
	return kept[0].deadline, true
}

// forget lets go of everything: the queue has been closed, and the kernel has
// dropped what waited in it.
func (h *pendingPackets) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.packets {
		h.shares.leave(p)
	}
	h.packets = nil
}
