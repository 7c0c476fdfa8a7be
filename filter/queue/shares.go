package queue

import (
	"net/netip"
	"sync"
)

// shares divides the places for pending packets among their senders. A sender may use every
// free place. If no place is free, a packet of a sender with fewer places displaces the
// newest packet of the sender with the most. So no place need be reserved: even while a pod
// scans unused addresses, starting pods get places for their first few packets.
//
// Places are counted for each input interface, which a pod cannot forge, and within an
// interface for each source address. Packets whose interface the kernel does not report
// count as packets of one interface.
type shares struct {
	most int // the number of places

	mu      sync.Mutex
	taken   int
	devices map[uint32]*sharer
	ranks   ranks // the sharers in devices, ordered by places in use
}

// sharer is an interface, or a source address at an interface.
type sharer struct {
	n       int              // places in use
	packets []*pendingPacket // set only if this sharer is an address: its packets, the oldest first

	addresses map[netip.Addr]*sharer // set only if this sharer is an interface: the sharers of its source addresses
	ranks     ranks                  // set only if this sharer is an interface: the same sharers, ordered by places in use
}

func newShares(most int) *shares {
	return &shares{most: most, devices: make(map[uint32]*sharer)}
}

// take gives p a place, and reports whether there was one. If p takes the place of another
// packet, take returns that packet, marked as displaced.
func (s *shares) take(p *pendingPacket) (displaced *pendingPacket, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken >= s.most {
		if displaced = s.displace(p); displaced == nil {
			return nil, false
		}
		displaced.displaced = true
		s.remove(displaced)
	}
	d := s.devices[p.device]
	if d == nil {
		d = &sharer{addresses: make(map[netip.Addr]*sharer)}
		s.devices[p.device] = d
	}
	a := d.addresses[p.source]
	if a == nil {
		a = &sharer{}
		d.addresses[p.source] = a
	}
	a.packets = append(a.packets, p)
	s.ranks.move(d, 1)
	d.ranks.move(a, 1)
	s.taken++
	return displaced, true
}

// displace returns the packet that p displaces, or nil if p must not displace any.
//
// displace first compares interfaces. If the interface with the most places has at least two
// more than the interface of p, p displaces a packet there. Otherwise displace compares the
// source addresses at the interface of p. If the address with the most places has at least two
// more than the source of p, p displaces a packet of that address. In both cases, the displaced
// packet is the newest one of the address that has the most places at its interface. If a
// difference of one were enough, two senders would displace each other's packets in turn.
func (s *shares) displace(p *pendingPacket) *pendingPacket {
	own, top := s.devices[p.device], s.ranks.top()
	switch {
	case top == nil:
		return nil
	case own == nil && top.n > 1, own != nil && own.n+1 < top.n:
		return top.ranks.top().newest()
	case own == nil:
		return nil
	}
	has := 0
	if a := own.addresses[p.source]; a != nil {
		has = a.n
	}
	if a := own.ranks.top(); has+1 < a.n {
		return a.newest()
	}
	return nil
}

func (a *sharer) newest() *pendingPacket { return a.packets[len(a.packets)-1] }

// leave frees the place of a packet, unless it was displaced.
func (s *shares) leave(p *pendingPacket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !p.displaced {
		s.remove(p)
	}
}

// isDisplaced reports whether another packet has taken the place of p.
func (s *shares) isDisplaced(p *pendingPacket) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return p.displaced
}

func (s *shares) held() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken
}

func (s *shares) remove(p *pendingPacket) {
	d := s.devices[p.device]
	a := d.addresses[p.source]
	// The loop usually takes few steps: the oldest packet is at the front, and expires first.
	for i, o := range a.packets {
		if o == p {
			a.packets = append(a.packets[:i], a.packets[i+1:]...)
			break
		}
	}
	s.ranks.move(d, -1)
	d.ranks.move(a, -1)
	if a.n == 0 {
		delete(d.addresses, p.source)
	}
	if d.n == 0 {
		delete(s.devices, p.device)
	}
	s.taken--
}

// ranks orders sharers by their number of places: ranks[n-1] holds the sharers with n
// places. The calls top() and move() take constant time, so that the packet to displace is
// found quickly even during a flood of forged sources.
type ranks []map[*sharer]struct{}

// move changes the number of places of a sharer by one, up or down.
func (r *ranks) move(a *sharer, by int) {
	if a.n > 0 {
		delete((*r)[a.n-1], a)
	}
	if a.n += by; a.n > 0 {
		for len(*r) < a.n {
			*r = append(*r, make(map[*sharer]struct{}))
		}
		(*r)[a.n-1][a] = struct{}{}
	}
	for len(*r) > 0 && len((*r)[len(*r)-1]) == 0 {
		*r = (*r)[:len(*r)-1]
	}
}

// top returns a sharer with the most places; nil if no sharer has a place.
func (r *ranks) top() *sharer {
	if len(*r) == 0 {
		return nil
	}
	for a := range (*r)[len(*r)-1] {
		return a
	}
	return nil
}
