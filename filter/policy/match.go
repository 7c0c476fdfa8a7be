package policy

import (
	"cmp"
	"hash/maphash"
	"slices"
)

// match updates which peer selectors match which pods. It handles all changes since the last
// call together, because a single policy may add ten thousand selectors for the same pods.
func (w *Store) match() {
	w.affect(w.removed) // reads the old ns.matched, which matchNamespaces replaces
	// With wideOnly, an identity keeps the ids of the selectors whose scope is its namespace by
	// name (see keepOwn). If selectors were removed, such an id may belong to a new selector
	// now, so wideOnly must not be set.
	w.wideOnly = len(w.removed) == 0
	w.matchNamespaces()
	w.wideOnly = false
	w.affect(w.added)
	w.added, w.removed = nil, nil
	for _, ns := range w.staleIn {
		if ns.stale {
			w.wideOnly = !ns.staleOwn
			for k := range ns.identities.all.all() {
				w.stale(k)
			}
		}
		ns.stale, ns.staleOwn, ns.tests = false, false, 0
	}
	w.staleIn, w.wideOnly = nil, false
	w.matchPods()
	w.matchWhole()
}

// affect marks the identities and namespaces that must be matched again because the given
// peer selectors were added or removed.
func (w *Store) affect(selectors []*selector) {
	// The sets "whole" and "some" hold ids of namespace selectors: "whole" those that are the
	// scope of an empty peer selector, "some" those that are the scope of another peer
	// selector. The map "within" lists these other peer selectors by the id of their scope.
	var whole, some idBits
	within := make(map[uint32][]*selector)
	for _, s := range selectors {
		switch in := s.scope.selector; {
		case in == nil:
			if ns := w.namespaces[s.scope.namespace]; ns != nil {
				w.affectIn(s, ns)
			}
		case s.labels.Empty():
			whole.set(in.id)
		default:
			some.set(in.id)
			within[in.id] = append(within[in.id], s)
		}
	}
	if whole.words == nil && some.words == nil {
		return
	}
	for _, ns := range w.namespaces {
		ns.matched.common(&whole, func(uint32) bool {
			w.dirtyNS[ns] = struct{}{}
			return false
		})
		ns.matched.common(&some, func(id uint32) bool {
			for _, s := range within[id] {
				w.affectIn(s, ns)
			}
			return !ns.stale
		})
	}
}

// affectIn marks the identities of ns that s matches as stale. If s is empty, affectIn marks ns
// as dirty instead. ns.tests counts the tests of identities of ns with all selectors of this
// call of Store.match. After more than 4 × (identities of ns) + 64 tests, affectIn marks ns as
// stale: then it is cheaper to match all identities of ns again.
func (w *Store) affectIn(s *selector, ns *namespace) {
	switch {
	case s.labels.Empty():
		w.dirtyNS[ns] = struct{}{}
		return
	case ns.stale:
		ns.staleOwn = ns.staleOwn || !w.wideOnly
		return
	case ns.tests == 0:
		w.staleIn = append(w.staleIn, ns)
	}
	if ns.tests += 1 + ns.identities.candidates(s); ns.tests > 4*ns.identities.all.count()+64 {
		ns.stale, ns.staleOwn = true, !w.wideOnly
		return
	}
	ns.identities.match(s, w.stale)
}

// matchNamespaces matches namespaces with the namespace selectors again: all namespaces if a
// selector was added or removed, and otherwise the relabeled ones.
func (w *Store) matchNamespaces() {
	if !w.staleNS {
		for ns := range w.dirtyNS {
			if ns.relabeled {
				w.matchNamespace(ns)
			}
		}
		return
	}
	for _, ns := range w.namespaces {
		w.matchNamespace(ns)
	}
	w.staleNS = false
}

func (w *Store) matchNamespace(ns *namespace) {
	if all := w.nsSelectors.everyone(scope{}); all != nil {
		w.ids.set(all.id)
	}
	if filed := w.nsSelectors.byScope[scope{}]; filed != nil {
		filed.some.collect(ns.labels, &w.ids, &w.spare)
	}
	matched := w.ids.take()
	if ns.relabeled && !matched.equal(&ns.matched) {
		w.affectBy(&matched, &ns.matched, ns)
		w.affectBy(&ns.matched, &matched, ns)
		ns.version = w.newID()
		for k := range ns.identities.all.all() {
			for _, p := range k.pods {
				w.renew(p)
			}
		}
	}
	ns.matched, ns.relabeled = matched, false
}

// affectBy marks the identities of ns that must be matched again because a namespace selector
// is in a and not in b. It considers only namespace selectors that are scopes of peer
// selectors. If an id in a or b now belongs to another selector, affectBy may mark more
// identities than necessary.
func (w *Store) affectBy(a, b *idSet, ns *namespace) {
	a.common(&w.peers.scopes, func(id uint32) bool {
		if b.has(id) {
			return true
		}
		for o := range w.nsSelectors.byID[id].pods.all() {
			if !ns.stale {
				w.affectIn(o, ns)
			}
		}
		return !ns.stale
	})
}

// matchPods matches the stale identities with the peer selectors that are not empty. Empty
// selectors match whole namespaces, and are stored once for each namespace (see matchWhole).
func (w *Store) matchPods() {
	slices.SortFunc(w.staleIdentities, func(a, b *identity) int { return cmp.Compare(a.ns.id, b.ns.id) })
	var in *namespace
	var own *scopeSelectors
	for _, k := range w.staleIdentities {
		if k.stale = false; k.gone() {
			continue
		}
		if k.ns != in {
			in, own = k.ns, w.peers.byScope[scope{namespace: k.ns.name}]
			w.peers.wide.mask(in, &w.mask)
		}
		if !k.staleOwn {
			k.peers.all(w.keepOwn)
		} else if own != nil {
			own.some.collect(k.labels, &w.ids, &w.spare)
		}
		k.staleOwn = false
		w.peers.wide.collectIn(in, k.labels, &w.ids, &w.spare, &w.mask)
		if peers := w.ids.take(); !peers.equal(&k.peers) || k.sum == [2]uint64{} {
			k.peers, k.sum = peers, w.sumOf(&peers)
			for _, p := range k.pods {
				w.dirty(p)
			}
		}
	}
	w.staleIdentities = nil
}

// keepOwn adds the id of a peer selector to w.ids if the scope of the selector is a namespace by
// name. matchPods calls keepOwn for each id that an identity already has, so that namespace is
// the identity's own.
func (w *Store) keepOwn(id uint32) {
	if s := w.peers.byID[id]; s != nil && s.scope.selector == nil {
		w.ids.set(id)
	}
}

// sumOf returns a hash that identifies a set. It has 128 bits and unpredictable seeds, so
// two different sets practically never have the same sum.
func (w *Store) sumOf(ids *idSet) (sum [2]uint64) {
	for i := range sum {
		var h maphash.Hash
		h.SetSeed(w.seeds[i])
		ids.sum(&h)
		sum[i] = h.Sum64()
	}
	return sum
}

// matchWhole updates w.everyone, the selectors that match whole namespaces. It writes to a
// copy, because snapshots share the slice.
func (w *Store) matchWhole() {
	if len(w.dirtyNS) == 0 {
		return
	}
	everyone := make([]idSet, max(len(w.everyone), len(w.namespaces)+len(w.unusedNS)))
	copy(everyone, w.everyone)
	// The slice "of" is indexed by the ids of namespace selectors. An element is 1 plus the id
	// of the empty peer selector whose scope is that namespace selector, or 0 if there is no
	// such peer selector.
	of := make([]uint32, len(w.nsSelectors.byID))
	for i, s := range w.nsSelectors.byID {
		if s != nil && s.within != nil && s.within.everyone != nil {
			of[i] = s.within.everyone.id + 1
		}
	}
	for ns := range w.dirtyNS {
		if w.namespaces[ns.name] == ns {
			everyone[ns.id] = w.wholeSelectors(ns, of)
		}
	}
	w.everyone = everyone
	w.dirtyNS = make(map[*namespace]struct{})
}

// wholeSelectors returns the ids of the peer selectors that match all pods of ns. matchWhole
// describes of.
func (w *Store) wholeSelectors(ns *namespace, of []uint32) idSet {
	if s := w.peers.everyone(scope{namespace: ns.name}); s != nil {
		w.ids.set(s.id)
	}
	ns.matched.all(func(id uint32) {
		if of[id] > 0 {
			w.ids.set(of[id] - 1)
		}
	})
	return w.ids.take()
}
