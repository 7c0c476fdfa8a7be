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
	// maxHeldFor is how many packets wait for one address: a scan of a range that
	// nobody has must not take the room of all others.
	maxHeldFor = 64
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
	judge Judge
	reply func(id uint32, mark uint32, action filter.Action)
	flush func() error
	fail  func(error)
	wake  chan struct{}

	mu      sync.Mutex
	packets []held // the oldest first
	waiting map[netip.Addr]int
}

// held is a packet that waits.
type held struct {
	id, mark uint32
	data     []byte
	awaited  netip.Addr
	until    time.Time
}

// add keeps a packet; false if there is no room.
func (h *holding) add(p held) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiting[p.awaited] >= maxHeldFor {
		return false
	}
	if h.holding.Add(1) > int64(h.opts.MaxHeld) {
		h.holding.Add(-1)
		return false
	}
	h.heldTotal.Add(1)
	h.waiting[p.awaited]++
	h.packets = append(h.packets, p)
	h.log.Debug("packet waits for its pod to become known", "address", p.awaited)
	if len(h.packets) == 1 {
		h.nudge() // so that its time is watched
	}
	return true
}

// nudge has run look at the packets.
func (h *holding) nudge() {
	select {
	case h.wake <- struct{}{}:
	default: // it will
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
		case <-h.wake:
		case <-timer.C:
		}
		if next, any := h.rejudge(); any {
			timer.Reset(time.Until(next))
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
			action = h.judge.GiveUp(p.data)
		}
		h.reply(p.id, p.mark, action)
		h.drop(p.awaited)
	}
	clear(h.packets[len(kept):])
	h.packets = kept
	if len(kept) == 0 {
		return time.Time{}, false
	}
	return kept[0].until, true
}

// drop counts a packet that waits no longer.
func (h *holding) drop(awaited netip.Addr) {
	h.holding.Add(-1)
	if h.waiting[awaited]--; h.waiting[awaited] == 0 {
		delete(h.waiting, awaited)
	}
}

// forget lets go of everything: the queue has been closed, and the kernel has
// dropped what waited in it.
func (h *holding) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.packets {
		h.drop(p.awaited)
	}
	h.packets = nil
}
