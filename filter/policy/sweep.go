package policy

// sweep matches pods with the peer selectors again, in small pieces, so that the many
// selectors of a large policy do not delay other changes. It serves only selectors that no
// policy in force uses: the selectors of a draft, and those of removed policies. Until the sweep
// ends, a pod may lack the ids of draft selectors that match it, and may still have the ids of
// removed selectors.
type sweep struct {
	namespaces []*namespace // namespaces that must still be matched
	identities []*identity  // identities that must still be matched
	draft      *Draft       // the draft with the selectors to match; may be nil
	retired    limbo        // ids that can be reused after the sweep
}

// namespacesPerPiece bounds the namespaces that one call of sweepOne matches.
const namespacesPerPiece = 16

// identitiesPerPiece bounds the identities that one call of sweepOne matches.
const identitiesPerPiece = 32

// limbo holds the ids of released selectors. Such an id must not be given to another selector
// yet, because pods may still have the id. It also holds the namespaces whose pods a sweep must
// match again before the ids can be reused.
type limbo struct {
	peers, namespaces []uint32            // ids of peer selectors and of namespace selectors
	wide              bool                // set if a sweep must match all namespaces
	in                map[string]struct{} // names of the namespaces to match; not used if the flag "wide" is set
}

func (l *limbo) empty() bool { return len(l.peers)+len(l.namespaces) == 0 }

// touch adds to l the namespaces whose pods s may match.
func (l *limbo) touch(s *selector) {
	if s.scope.selector != nil {
		l.wide = true
		return
	}
	if l.in == nil {
		l.in = make(map[string]struct{})
	}
	l.in[s.scope.namespace] = struct{}{}
}

// releaseDying removes the last selector from w.dying and releases it once.
func (w *Store) releaseDying() {
	last := len(w.dying) - 1
	s := w.dying[last]
	if w.dying = w.dying[:last]; last == 0 {
		w.dying = nil
	}
	if w.peers.release(s, &w.limbo.peers) {
		w.limbo.touch(s)
	}
	if in := s.scope.selector; in != nil {
		w.nsSelectors.release(in, &w.limbo.namespaces)
		w.limbo.wide = true
	}
}

// beginSweep begins a sweep for all ids in limbo and, if d is not nil, for the fresh selectors of
// the draft d.
func (w *Store) beginSweep(d *Draft) {
	s := &sweep{retired: w.limbo}
	w.limbo = limbo{}
	if d != nil {
		s.draft = d
		for _, f := range d.fresh {
			if f.scope != (scope{}) {
				s.retired.touch(f)
			}
		}
	}
	for _, ns := range w.namespaces {
		if _, in := s.retired.in[ns.name]; in || s.retired.wide {
			s.namespaces = append(s.namespaces, ns)
		}
	}
	w.sweep = s
}

// sweepNamespace matches a namespace with the namespace selectors, and adds its identities
// to w.sweep, so that sweepOne matches them later.
func (w *Store) sweepNamespace(ns *namespace) {
	if w.namespaces[ns.name] != ns {
		return // the namespace is gone
	}
	w.dirtyNS[ns] = struct{}{}
	w.matchNamespace(ns)
	for k := range ns.identities.all.all() {
		w.sweep.identities = append(w.sweep.identities, k)
	}
}

// sweepOne does the next piece of the sweep.
func (w *Store) sweepOne() {
	s := w.sweep
	if n := len(s.identities); n > 0 {
		some := max(0, n-identitiesPerPiece)
		for _, k := range s.identities[some:] {
			w.stale(k)
		}
		s.identities = s.identities[:some]
		w.matchPods()
		return
	}
	if n := len(s.namespaces); n > 0 {
		some := max(0, n-namespacesPerPiece)
		for _, ns := range s.namespaces[some:] {
			w.sweepNamespace(ns)
		}
		s.namespaces = s.namespaces[:some]
		w.matchWhole()
		return
	}
	if d := s.draft; d != nil {
		d.known = true
		for _, f := range d.fresh {
			f.fresh = false
		}
	}
	w.peers.unused = append(w.peers.unused, s.retired.peers...)
	w.nsSelectors.unused = append(w.nsSelectors.unused, s.retired.namespaces...)
	w.sweep = nil
}
