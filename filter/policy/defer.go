package policy

import (
	"net/netip"
	"slices"

	"sluice/filter"
)

func (p *policy) reach() Reach { return Reach{p.subject.text, p.isolates} }

// widens reports whether a draft may isolate a pod that the version in force, or an earlier
// draft of the policy, does not isolate.
func (w *Store) widens(d *Draft) bool {
	p := w.policies[d.ref]
	if p == nil || d.reach.widens(p.reach()) {
		return true
	}
	earlier := w.drafts.current
	return earlier != nil && earlier != d && earlier.ref == d.ref && !earlier.dropped && d.reach.widens(earlier.reach)
}

// widens reports whether a version of a policy may isolate a pod that the version before
// does not isolate. It assumes that different selectors select different pods, unless the
// version before selects all pods.
func (r Reach) widens(before Reach) bool {
	return before.Subject != "" && before.Subject != r.Subject ||
		r.Isolates[filter.Egress] && !before.Isolates[filter.Egress] ||
		r.Isolates[filter.Ingress] && !before.Isolates[filter.Ingress]
}

// firstWidening returns the lowest number of a namespace's drafts for which widens is true.
func (w *Store) firstWidening(namespace string) (number uint64, ok bool) {
	if d := w.drafts.current; d != nil && d.ref.Namespace == namespace && !d.dropped && w.widens(d) {
		return d.number, true
	}
	for _, key := range w.drafts.of[namespace] { // sorted by number
		if d := w.drafts.waiting[key]; w.widens(d) {
			return d.number, true
		}
	}
	return 0, false
}

// claim is an address of a pod.
type claim struct {
	pod  *pod
	addr netip.Addr
}

// deferred holds, by namespace, the addresses of pods that started while there was a draft
// that may isolate them, each with the number of the last draft at that time. Such an
// address stays unknown, so that its packets are held, until widens is false for all drafts
// up to this number: later drafts do not prolong the wait. In all other respects the pod is
// known.
type deferred map[string]map[claim]uint64

func (x deferred) has(p *pod, a netip.Addr) bool {
	_, is := x[p.namespace][claim{p, a}]
	return is
}

func (x deferred) remove(p *pod, a netip.Addr) {
	delete(x[p.namespace], claim{p, a})
	if len(x[p.namespace]) == 0 {
		delete(x, p.namespace)
	}
}

// deferrable reports whether an address of a pod may be deferred. Packets of unknown
// addresses are held only in the local ranges. An unknown address elsewhere is not isolated,
// so there the policies in force must apply at once. A pod of another node is isolated by
// its own node, and need not be deferred here.
func (w *Store) deferrable(p *pod, a netip.Addr) bool {
	return (w.local.node == "" || p.local) && w.inLocalRanges(a)
}

// deferNew defers a new address of a pod if a draft may isolate the pod.
func (w *Store) deferNew(p *pod, a netip.Addr) {
	if !w.deferrable(p, a) {
		return
	}
	if _, widens := w.firstWidening(p.namespace); !widens {
		return
	}
	if w.deferred[p.namespace] == nil {
		w.deferred[p.namespace] = make(map[claim]uint64)
	}
	w.deferred[p.namespace][claim{p, a}] = w.drafts.last
}

// undefer makes the addresses known that no draft defers any longer.
func (w *Store) undefer() {
	for namespace, claims := range w.deferred {
		first, widens := w.firstWidening(namespace)
		for c, number := range claims {
			if !widens || first > number || !w.deferrable(c.pod, c.addr) {
				w.deferred.remove(c.pod, c.addr)
				w.dirtyAddrs[c.addr] = struct{}{}
			}
		}
	}
}

// known returns the addresses of a pod that are not deferred.
func (w *Store) known(p *pod) []netip.Addr {
	if len(w.deferred[p.namespace]) == 0 {
		return p.addrs
	}
	return slices.DeleteFunc(slices.Clone(p.addrs), func(a netip.Addr) bool { return w.deferred.has(p, a) })
}
