package policy

import (
	"net/netip"
	"slices"

	"sluice/filter"
)

func (p *policy) reach() Reach { return Reach{p.subject.text, p.isolates} }

// widens reports whether a policy may isolate more pods once its draft d is in force. It
// compares d with the version in force and, if an earlier draft of the policy is being prepared,
// with that draft too. If no version is in force, widens returns true.
func (w *Store) widens(d *Draft) bool {
	p := w.policies[d.ref]
	if p == nil || d.reach.widens(p.reach()) {
		return true
	}
	earlier := w.drafts.current
	return earlier != nil && earlier != d && earlier.ref == d.ref && !earlier.dropped && d.reach.widens(earlier.reach)
}

// widens reports whether a policy with the reach r may isolate a pod that a policy with the
// reach "before" does not isolate. It compares selectors only as texts. If the texts differ, it
// assumes that r selects additional pods, unless "before" selects all pods.
func (r Reach) widens(before Reach) bool {
	return before.Subject != "" && before.Subject != r.Subject ||
		r.Isolates[filter.Egress] && !before.Isolates[filter.Egress] ||
		r.Isolates[filter.Ingress] && !before.Isolates[filter.Ingress]
}

// firstWidening returns the number of the oldest draft in a namespace for which Store.widens
// returns true. ok is false if there is no such draft.
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

// deferred holds the deferred addresses by namespace. The store defers an address of a pod
// if the pod starts while a draft exists that may isolate it. For each address, deferred
// holds the number of the newest draft at that time. The address stays unknown, so that its
// packets are held, until Store.widens returns false for all drafts up to this number.
// Drafts with higher numbers do not prolong the wait. Apart from this address, the pod is
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

// deferrable reports whether an address of a pod may be deferred. The address must be in the
// local ranges: outside of them, packets of an unknown address are not held, so no policy would
// apply to them while the address is deferred. If the store knows the name of this node, the
// pod must run on it: a pod of another node is isolated by the agent there.
func (w *Store) deferrable(p *pod, a netip.Addr) bool {
	return (w.local.node == "" || p.local) && w.inLocalRanges(a)
}

// deferNew keeps a new address of a pod unknown if a draft, a policy that is still being
// compiled, may isolate the pod.
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

// undefer ends the deferral of each address whose wait is over (see deferred) or that is no
// longer deferrable. The commit that calls undefer makes these addresses known.
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
