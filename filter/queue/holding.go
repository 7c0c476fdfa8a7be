package queue

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"sluice/filter"
)

const (
	// DefaultHold is how long a packet waits for its pod to become known. Clients
	// repeat a lost request after a second.
	DefaultHold = time.Second
	// DefaultMaxHeld is how many packets wait in all; a quarter of one queue, so
	// that they leave room for those that need not wait.
	DefaultMaxHeld = DefaultMaxLen / 4
)

// holding is the packets of one worker that wait for a pod to become known. They
// wait in the kernel; here are their numbers.
//
// They are judged again after each publish, by a judge of their own, since the
// worker's is busy with packets that arrive meanwhile. None is missed: a packet
// that was held under an older snapshot was held before the publisher had
// settled, and Rejudge comes after that.
type holding struct {
	*worker
	judge Evaluator
	reply func(id uint32, mark uint32, action filter.Action)
	flush func() error
	fail  func(error)
	wake  chan struct{}
	lost  chan struct{} // some packet has lost its place

	mu      sync.Mutex
	packets []*held // the oldest first
}

// held is a packet that waits.
type held struct {
	id, mark uint32
	data     []byte
	awaited  netip.Addr
	until    time.Time

	device    uint32     // the interface that it came in by; 0 if the kernel does not say
	source    netip.Addr // as it claims
	in        *holding
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
func (h *holding) add(p *held) bool {
	h.mu.Lock() // until the packet is among the others, where it is found if it loses its place
	defer h.mu.Unlock()
	p.in = h
	displaced, ok := h.shares.take(p)
	if !ok {
		return false
	}
	if displaced != nil {
		signal(displaced.in.lost)
	}
	h.heldTotal.Add(1)
	h.packets = append(h.packets, p)
	h.log.Debug("packet waits for its pod to become known", "address", p.awaited)
	if len(h.packets) == 1 {
		h.nudge() // so that its time is watched
	}
	return true
}

// nudge has run look at the packets.
func (h *holding) nudge() { signal(h.wake) }

// signal wakes who listens on c.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it will look
	}
}

// run judges what waits, again and again, until ctx ends.
func (h *holding) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.lost:
			h.expireLost()
		case <-h.wake:
			h.look(timer)
		case <-timer.C:
			h.look(timer)
		}
		// What was answered is on its way to the kernel only now.
		err := h.flush()
		h.judge.Answered()
		if err != nil {
			h.fail(err)
			return
		}
	}
}

// look judges all packets again, and sets the timer for when the first of the others
// has waited for too long.
func (h *holding) look(timer *time.Timer) {
	if next, any := h.rejudge(); any {
		timer.Reset(time.Until(next))
	}
}

// expireLost answers the packets that have lost their place. The others are not
// judged again: a flood would have it done for each of its packets.
func (h *holding) expireLost() {
	h.mu.Lock()
	defer h.mu.Unlock()
	kept := h.packets[:0]
	for _, p := range h.packets {
		if !h.shares.lost(p) {
			kept = append(kept, p)
			continue
		}
		h.heldRefused.Add(1)
		h.reply(p.id, p.mark, h.judge.Expire(p.data))
	}
	clear(h.packets[len(kept):])
	h.packets = kept
}

// rejudge answers what need not wait any longer, and returns until when the
// oldest of the others waits.
func (h *holding) rejudge() (next time.Time, any bool) {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	kept := h.packets[:0]
	for _, p := range h.packets {
		action, _ := h.worker.ask(h.judge, p.data)
		if action == filter.Hold && now.Before(p.until) {
			kept = append(kept, p)
			continue
		}
		if action == filter.Hold {
			h.heldExpired.Add(1)
			action = h.judge.Expire(p.data)
		}
		h.reply(p.id, p.mark, action)
		h.shares.leave(p)
	}
	clear(h.packets[len(kept):])
	h.packets = kept
	if len(kept) == 0 {
		return time.Time{}, false
	}
	return kept[0].until, true
}

// forget lets go of everything: the queue has been closed, and the kernel has
// dropped what waited in it.
func (h *holding) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.packets {
		h.shares.leave(p)
	}
	h.packets = nil
}
