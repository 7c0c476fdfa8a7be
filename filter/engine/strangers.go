package engine

import (
	"net/netip"
	"sync"
	"time"
)

// Strangers remembers addresses in the pod ranges of other nodes for which a packet has waited,
// and no pod became known. Other nodes themselves use such addresses: with an overlay network,
// the node's own packets have one as their source. Without Strangers, each connection of such a
// node would begin later by the longest wait. The evaluators of an agent share one, and it is
// safe for concurrent use.
type Strangers struct {
	mu   sync.Mutex
	used map[netip.Addr]time.Time // when a packet of the address last passed
}

const (
	// strangerFor is how long an unused address is remembered. It is short, because the address
	// may become a pod's, whose first packets then do not wait.
	strangerFor = time.Minute
	// mostStrangers bounds the memory. A cluster has one such address for each node and family.
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

// has reports whether the address is remembered, and remembers it for longer in this case.
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
