package engine

import (
	"net/netip"
	"sync"
	"time"
)

// Strangers remembers addresses in the pod ranges of other nodes for which a packet has waited,
// and no pod became known. Other nodes themselves use such addresses: with an overlay network,
// the node's own packets have one as their source. Without Strangers, the first packet of each
// connection from such a node would be held for the longest time. The evaluators of an agent share
// one Strangers, which is safe for concurrent use.
type Strangers struct {
	mu   sync.Mutex
	used map[netip.Addr]time.Time // when a packet of the address last passed
}

const (
	// strangerFor is how long an address is remembered after its last packet. It is short, because
	// a pod may get the address, and the first packets of this pod are then not held.
	strangerFor = time.Minute
	// mostStrangers bounds the number of remembered addresses. A cluster has one such address for
	// each node and family.
	mostStrangers = 16 << 10
)

// add remembers an address.
func (s *Strangers) add(a netip.Addr) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used == nil || len(s.used) >= mostStrangers {
		s.used = make(map[netip.Addr]time.Time)
	}
	s.used[a] = time.Now()
}

// has reports whether the address is remembered. In this case, has extends the time for which it
// is remembered.
func (s *Strangers) has(a netip.Addr) bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	last, is := s.used[a]
	switch now := time.Now(); {
	case !is:
		return false
	case now.Sub(last) > strangerFor:
		delete(s.used, a)
		return false
	default:
		s.used[a] = now
	}
	return true
}
