package policy

// sweep matches pods with all selectors of peers, in pieces, so that the selectors of a
// large policy do not hold up other changes. It is for selectors that no policy in force
// has: those of a draft, and those that are gone. Until its end, what a pod knows of them
// means nothing.
type sweep struct {
	namespaces []*namespace
	identities []*identity
	draft      *Draft // for which it is; nil for none
	retired    limbo
}

// sweptTogether bounds the namespaces that are matched as one piece.
const sweptTogether = 16

// sweptAtOnce bounds the sets of labels of one namespace that are matched as one piece.
const sweptAtOnce = 32

// limbo is the ids of selectors that are gone, while pods may still know them, and where
// these pods are.
type limbo struct {
	peers, namespaces []uint32
	wide              bool
	in                map[string]struct{} // unless it is wide
}

func (l *limbo) empty() bool { return len(l.peers)+len(l.namespaces) == 0 }

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

// releaseDying ends one use of a selector by a large policy that is gone.
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

// beginSweep begins a sweep for a draft, if it needs one, and all that are gone.
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

// sweepNamespace matches a namespace, and has its pods matched later.
func (w *Store) sweepNamespace(ns *namespace) {
	if w.namespaces[ns.name] != ns {
		return // it is gone
	}
	w.dirtyNS[ns] = struct{}{}
	w.matchNamespace(ns)
	for k := range ns.identities.all.all() {
		w.sweep.identities = append(w.sweep.identities, k)
	}
}

// sweepOne does one piece of a sweep.
func (w *Store) sweepOne() {
	s := w.sweep
	if n := len(s.identities); n > 0 {
		some := max(0, n-sweptAtOnce)
		for _, k := range s.identities[some:] {
			w.stale(k)
		}
		s.identities = s.identities[:some]
		w.matchPods()
		return
	}
	if n := len(s.namespaces); n > 0 {
		some := max(0, n-sweptTogether)
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
