package policy

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/gaissmai/bart"
)

// podRanges are the addresses that pods have or can get, as one snapshot knows them.
// They never change.
type podRanges struct {
	number     uint64 // of the last change after which all live connections must be judged
	local, all bart.Lite
	here, list []netip.Prefix // of this node, and of all
}

// rangeSources is where the pod ranges of the next snapshot come from.
type rangeSources struct {
	given    []netip.Prefix            // of this node, by its configuration
	nodes    map[string][]netip.Prefix // by Node
	starting []netip.Prefix            // as of the last RenewStartingPods
	live     *StartingPods
	changes  uint64
	stale    bool
	current  *podRanges
}

func newRangeSources() rangeSources {
	return rangeSources{nodes: make(map[string][]netip.Prefix), live: new(StartingPods), current: new(podRanges)}
}

// SetPodRanges sets the ranges in which pods of the node that enforces have their
// addresses, beside those of its Node. Where two live pods claim an address in them, one
// that runs here has it: the node gave it the address, and what another node claims
// cannot take it away.
func (w *Store) SetPodRanges(local []netip.Prefix) {
	if now := masked(local); !slices.Equal(now, w.ranges.given) {
		w.ranges.given = now
		w.changeRanges()
	}
}

// SetNodeRanges sets the ranges in which pods of a Node have their addresses; none
// removes the Node. See SetLocalNode.
func (w *Store) SetNodeRanges(node string, ranges []netip.Prefix) {
	now := masked(ranges)
	switch {
	case slices.Equal(now, w.ranges.nodes[node]):
		return
	case len(now) == 0:
		delete(w.ranges.nodes, node)
	default:
		w.ranges.nodes[node] = now
	}
	w.changeRanges()
}

// StartingPods are the addresses of pods that start on the node that enforces. All
// snapshots share them.
func (w *Store) StartingPods() *StartingPods { return w.ranges.live }

// RenewStartingPods adopts the addresses of StartingPods for all that depends on more than
// whether an address is pending: who has an address that several pods claim, and which
// connections must be judged. An address that is gone concerns no other connections: it
// went with its pod.
func (w *Store) RenewStartingPods() {
	now := w.ranges.live.List()
	if slices.Equal(now, w.ranges.starting) {
		return
	}
	if slices.ContainsFunc(now, func(p netip.Prefix) bool { return !slices.Contains(w.ranges.starting, p) }) {
		w.ranges.changes++
	}
	w.ranges.starting, w.ranges.stale = now, true
	w.adoptRanges()
}

func (w *Store) changeRanges() {
	w.ranges.changes++
	w.ranges.stale = true
	w.adoptRanges()
}

// adoptRanges sets the ranges of this node at once: whether a pod that is set next stays
// unknown behind a large policy depends on them.
func (w *Store) adoptRanges() {
	r := &w.ranges
	w.setLocalRanges(slices.Concat(r.given, r.nodes[w.local.node], r.starting))
}

// commitRanges builds the ranges of the next snapshot, if they have changed.
func (w *Store) commitRanges() *podRanges {
	r := &w.ranges
	if !r.stale {
		return r.current
	}
	r.stale = false
	next := &podRanges{number: r.changes, here: slices.Concat(r.given, r.nodes[w.local.node])}
	next.list = slices.Clone(next.here)
	for _, name := range slices.Sorted(maps.Keys(r.nodes)) {
		if name != w.local.node {
			next.list = append(next.list, r.nodes[name]...)
		}
	}
	for _, p := range next.here {
		next.local.Insert(p)
	}
	for _, p := range next.list {
		next.all.Insert(p)
	}
	r.current = next
	return next
}

func masked(prefixes []netip.Prefix) []netip.Prefix {
	now := make([]netip.Prefix, len(prefixes))
	for i, p := range prefixes {
		now[i] = p.Masked()
	}
	return now
}

// Lookup returns the endpoint that has the address. Without one, it reports whether the
// address should be a pod's.
func (s *Snapshot) Lookup(addr netip.Addr) (*Endpoint, Pending) {
	if e := s.Endpoint(addr); e != nil {
		return e, Known
	}
	return nil, s.Pending(addr)
}

// Pending reports whether an address without an endpoint should be a pod's, of which the
// news is still on its way. It allocates nothing.
func (s *Snapshot) Pending(addr netip.Addr) Pending {
	switch {
	case s.ranges.all.Contains(addr):
		if s.ranges.local.Contains(addr) || s.starting.contains(addr) {
			return PendingLocal
		}
		return PendingRemote
	case s.starting.contains(addr):
		return PendingLocal
	}
	return Known
}

// PodRanges lists the ranges in which pods have their addresses. The list is shared.
func (s *Snapshot) PodRanges() []netip.Prefix { return s.ranges.list }

// LocalRanges lists those of the node that enforces. The list is shared.
func (s *Snapshot) LocalRanges() []netip.Prefix { return s.ranges.here }

// SameRanges reports whether two snapshots hold the same addresses for pods', but for
// pods that have gone.
func (s *Snapshot) SameRanges(o *Snapshot) bool { return s.ranges.number == o.ranges.number }

// StartingPods are the addresses of pods that start on the node that enforces, as follow
// from how the node reaches them. They are pending at once and not with the next
// snapshot: a pod may send before that. Any number of goroutines may use them.
type StartingPods struct {
	current atomic.Pointer[startingPods]

	mu      sync.Mutex
	changed chan struct{} // closed at the next change; nil if no receiver waits
}

type startingPods struct {
	set  bart.Lite
	list []netip.Prefix
}

// Set replaces the addresses.
func (s *StartingPods) Set(addrs []netip.Prefix) {
	now := masked(addrs)
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Equal(now, s.List()) {
		return
	}
	next := &startingPods{list: now}
	for _, p := range now {
		next.set.Insert(p)
	}
	s.current.Store(next)
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// Changed returns a channel that is closed at the next change.
func (s *StartingPods) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.changed
}

// List returns the addresses. The list is shared.
func (s *StartingPods) List() []netip.Prefix {
	if now := s.current.Load(); now != nil {
		return now.list
	}
	return nil
}

func (s *StartingPods) contains(addr netip.Addr) bool {
	now := s.current.Load()
	return now != nil && now.set.Contains(addr)
}
