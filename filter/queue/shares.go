package queue

import (
	"net/netip"
	"sync"
)

// shares divides the places for pending packets among their senders. A sender may use every
// free place. If none is free, a packet of a sender with fewer places displaces the newest
// packet of the sender with the most. So a pod that scans unused addresses cannot take the
// places that starting pods need for their first packets, which are few; and no place is
// kept empty for them.
//
// Senders are ranked twice: first by the interface that a packet came in by, which a pod
// cannot forge, then by the source address within the interface. If the kernel does not
// report the interface, all addresses count as one interface's.
type shares struct {
	most int // places

	mu      sync.Mutex
	taken   int
	devices map[uint32]*sharer
	ranks   ranks // of devices
}

// sharer is an interface, or a source address of one.
type sharer struct {
	n       int              // places in use
	packets []*pendingPacket // of an address, the oldest first

	addresses map[netip.Addr]*sharer // of an interface
	ranks     ranks                  // of addresses, if this is an interface
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

// displace returns the packet that p displaces; nil if there is none. Afterwards p's sender
// may have at most as many places as the other sender; otherwise the two would displace
// each other in turn.
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
	for i, o := range a.packets { // few steps, because packets expire oldest first
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

// ranks orders sharers by their number of places: ranks[n-1] holds those with n places. A
// step up or down takes constant time, so that a flood of forged sources cannot make the
// choice of a packet expensive.
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

// top returns a sharer with the most places; nil if none has any.
func (r *ranks) top() *sharer {
	if len(*r) == 0 {
		return nil
	}
	for a := range (*r)[len(*r)-1] {
		return a
	}
	return nil
}
