package watch

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/gaissmai/bart"

	"sluice/filter/policy"
)

// Ranges are the addresses that pods of the cluster have or can get. An address in
// them that the store does not know is a pod's of which the news is still on its
// way. Any number of goroutines may set them and ask. The zero value is ready to use
// and contains nothing.
type Ranges struct {
	current atomic.Pointer[ranges]
	sets    atomic.Uint64
	// OnSet, if not nil, is told of all ranges before they hold. It is set before the
	// first Set, and called by one goroutine at a time.
	OnSet func(all []netip.Prefix)

	mu                     sync.Mutex
	node, cluster, derived []netip.Prefix
	waiting                chan struct{} // closed when they are stored next; nil if nothing waits
}

type ranges struct{ node, cluster bart.Lite }

// Set replaces the ranges of this node's pods and those of all pods; the first
// need not be among the second too.
func (r *Ranges) Set(node, cluster []netip.Prefix) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.node, r.cluster = slices.Clone(node), slices.Clone(cluster)
	r.store()
	r.sets.Add(1)
}

// Derive replaces the ranges of this node's pods that follow from how the node reaches
// them. They hold beside those of Set.
func (r *Ranges) Derive(node []netip.Prefix) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.Equal(node, r.derived) {
		return
	}
	more := slices.ContainsFunc(node, func(p netip.Prefix) bool { return !slices.Contains(r.derived, p) })
	r.derived = slices.Clone(node)
	r.store()
	if more {
		r.sets.Add(1)
	}
}

// Node lists the ranges of this node's pods, as Set and as Derive gave them.
func (r *Ranges) Node() (set, derived []netip.Prefix) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.node), slices.Clone(r.derived)
}

// store puts the ranges in force.
func (r *Ranges) store() {
	node := slices.Concat(r.node, r.derived)
	if r.OnSet != nil {
		r.OnSet(slices.Concat(node, r.cluster))
	}
	next := new(ranges)
	for _, p := range node {
		next.node.Insert(p.Masked())
		next.cluster.Insert(p.Masked())
	}
	for _, p := range r.cluster {
		next.cluster.Insert(p.Masked())
	}
	r.current.Store(next)
	if r.waiting != nil {
		close(r.waiting)
		r.waiting = nil
	}
}

// next returns a channel that is closed when ranges are stored.
func (r *Ranges) next() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting == nil {
		r.waiting = make(chan struct{})
	}
	return r.waiting
}

// Local is the ranges of this node's pods as a source of a Keeper.
type Local struct{ Ranges *Ranges }

// String says what it is.
func (Local) String() string { return "this node's pod ranges" }

// Run gives the ranges, and gives them again whenever they change, until ctx ends.
func (l Local) Run(ctx context.Context, update func(Update)) error {
	var known []netip.Prefix
	for first := true; ; first = false {
		changed := l.Ranges.next() // before they are read, so that no change is missed
		set, derived := l.Ranges.Node()
		if now := slices.Concat(set, derived); first || !slices.Equal(now, known) {
			known = now
			update(func(w *policy.Store) { w.SetPodRanges(now) })
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// Sets is how many times the ranges were set. A derived range that goes does not count:
// it goes with its pod, and live connections of others are not concerned.
func (r *Ranges) Sets() uint64 { return r.sets.Load() }

// Contains says whether an address is in a range of this node's pods, and whether
// it is in one of the cluster's at all. It allocates nothing.
func (r *Ranges) Contains(addr netip.Addr) (onNode, inCluster bool) {
	now := r.current.Load()
	if now == nil || !now.cluster.Contains(addr) {
		return false, false
	}
	return now.node.Contains(addr), true
}
