package policy

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/gaissmai/bart"
)

// podRanges is the address ranges of pods in a snapshot. It never changes.
type podRanges struct {
	number     uint64         // rangeSources.changes when the ranges were built
	local, all bart.Lite      // ranges of this node's pods; ranges of all pods
	here, list []netip.Prefix // the ranges in the fields "local" and "all", as lists
}

// rangeSources holds the sources of the pod ranges of the next snapshot.
type rangeSources struct {
	given    []netip.Prefix            // ranges of this node's pods that were passed to SetPodRanges
	nodes    map[string][]netip.Prefix // the ranges of each Node, by its name
	starting []netip.Prefix            // copy of the addresses in the field "live", made by RenewStartingPods
	live     *StartingPods
	changes  uint64 // number of changes so far that required all live connections to be evaluated again
	stale    bool   // the sources have changed since the current ranges were built
	current  *podRanges
}

func newRangeSources() rangeSources {
	return rangeSources{nodes: make(map[string][]netip.Prefix), live: new(StartingPods), current: new(podRanges)}
}

// SetPodRanges sets the configured address ranges of this node's pods, in addition to those
// of its Node object. If two live pods claim an address in these ranges, the pod on this
// node owns the address: this node has assigned it, and a pod of another node cannot take it.
func (w *Store) SetPodRanges(local []netip.Prefix) {
	if now := masked(local); !slices.Equal(now, w.ranges.given) {
		w.ranges.given = now
		w.changeRanges()
	}
}

// SetNodeRanges sets the address ranges of the pods of a Node. An empty list removes the
// Node. The ranges of the Node that SetLocalNode names are those of this node's pods.
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

// StartingPods returns the addresses of pods that are starting on this node. All snapshots
// of the store share them.
func (w *Store) StartingPods() *StartingPods { return w.ranges.live }

// RenewStartingPods copies the addresses in StartingPods. By the copy, the next Commit determines
// which of several pods owns an address. To see whether an address is pending, snapshots read
// StartingPods itself. If the copy has a new address, SameRanges returns false, and live
// connections must be evaluated again. A removed address does not require this, because its pod
// is gone.
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

// adoptRanges updates the store's local ranges at once, without waiting for the next Commit.
// SetPod needs the new ranges already: it may defer an address of a pod only if the address is
// in the local ranges (see deferrable).
func (w *Store) adoptRanges() {
	r := &w.ranges
	w.setLocalRanges(slices.Concat(r.given, r.nodes[w.local.node], r.starting))
}

// commitRanges returns the ranges of the next snapshot, and builds them if they have
// changed.
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

// Lookup returns the owner of an address. If the address has no owner, Lookup also reports
// whether it is pending.
func (s *Snapshot) Lookup(addr netip.Addr) (*Endpoint, Pending) {
	if e := s.Endpoint(addr); e != nil {
		return e, Known
	}
	return nil, s.Pending(addr)
}

// Pending reports whether an address without an owner is in the pod ranges, or is an address of
// a starting pod. If so, the API server will probably report its pod soon. Pending does not
// allocate.
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

// PodRanges returns the address ranges of all pods. The list is shared and must not be
// changed.
func (s *Snapshot) PodRanges() []netip.Prefix { return s.ranges.list }

// LocalRanges returns the address ranges of this node's pods. The list is shared and must
// not be changed.
func (s *Snapshot) LocalRanges() []netip.Prefix { return s.ranges.here }

// SameRanges reports whether the two snapshots have the same pod ranges, including the addresses
// of starting pods. It returns true even if some of these addresses were removed.
func (s *Snapshot) SameRanges(o *Snapshot) bool { return s.ranges.number == o.ranges.number }

// StartingPods holds the addresses of pods that are starting on this node, derived from the
// node's routes. Such an address is pending at once, even in existing snapshots, because a
// pod may send packets before the next snapshot. StartingPods is safe for concurrent use.
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

// List returns the addresses. The list is shared and must not be changed.
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
