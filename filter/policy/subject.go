package policy

import (
	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
)

// A subject is the selector of the pods that a policy is for. It selects pods of one namespace,
// or of all namespaces that a namespace selector, its scope selector, matches. The store finds
// these pods in three ways, so that neither time nor memory grows with policies × pods:
//
//   - A subject of one namespace has a list of the identities that it matches. Each of these
//     identities also lists the subject.
//   - A subject with a scope selector and a non-empty pod selector has no list. The identities
//     that it matches list the subject. The store finds them by the label index of each
//     namespace.
//   - A subject with a scope selector and an empty pod selector is not in the list of any
//     identity. Instead, each namespace lists the scope selectors that match it.

// subjectOf returns the selector of the pods that a policy is for.
func subjectOf(form *Policy) *selector {
	in := scope{namespace: form.Subject.Namespace}
	if sel := form.Subject.Namespaces; sel != nil {
		in = scope{selector: newSelector(selectorKey{scope{}, sel.String()}, sel)}
	}
	return newSelector(selectorKey{in, form.Subject.Pods.String()}, form.Subject.Pods)
}

// useSubject interns the selector of a subject. If the selector is new, useSubject finds
// the pods that it matches.
func (w *Store) useSubject(s *selector) *selector {
	if in := s.scope.selector; in != nil {
		s.scope.selector = w.useScope(in)
	}
	s, isNew := w.subjects.adopt(s)
	if !isNew {
		return s
	}
	if s.scope.selector == nil {
		s.members = make(map[*identity]struct{})
	}
	if s.listed() {
		w.matching(s, func(k *identity) {
			k.subjects = append(k.subjects, s)
			if s.members != nil {
				s.members[k] = struct{}{}
			}
		})
	}
	return s
}

func (w *Store) releaseSubject(s *selector) {
	if w.subjects.release(s, &w.subjects.unused) && s.listed() {
		w.selected(s, func(k *identity) { k.subjects = without(k.subjects, s) })
	}
	if in := s.scope.selector; in != nil {
		w.releaseScope(in)
	}
}

// useScope interns the namespace selector of a subject. If it is new, useScope finds the
// namespaces that it matches.
func (w *Store) useScope(s *selector) *selector {
	s, isNew := w.scopes.adopt(s)
	if isNew {
		for _, ns := range w.namespaces {
			if s.matches(ns.labels) {
				ns.scopes.set(s.id)
			}
		}
	}
	return s
}

func (w *Store) releaseScope(s *selector) {
	if w.scopes.release(s, &w.scopes.unused) {
		for _, ns := range w.namespaces {
			ns.scopes.unset(s.id)
		}
	}
}

// listed reports whether the identities that the subject matches list it (see above).
func (s *selector) listed() bool { return s.scope.selector == nil || !s.labels.Empty() }

// selected calls f for each identity that the subject s selects.
func (w *Store) selected(s *selector, f func(*identity)) {
	if s.scope.selector != nil {
		w.matching(s, f)
		return
	}
	for k := range s.members {
		f(k)
	}
}

// matching calls f for each identity whose labels match a subject. It searches the label indexes
// of the namespaces in the subject's scope.
func (w *Store) matching(s *selector, f func(*identity)) {
	in := s.scope.selector
	if in == nil {
		if ns := w.namespaces[s.scope.namespace]; ns != nil {
			ns.identities.match(s, f)
		}
		return
	}
	for _, ns := range w.namespaces {
		if ns.scopes.has(in.id) {
			ns.identities.match(s, f)
		}
	}
}

// matchSubjects sets the list of an identity to the subjects that match it and for which
// selector.listed returns true. It also updates the lists of members of these subjects.
func (w *Store) matchSubjects(k *identity) {
	in := scope{namespace: k.ns.name}
	found := w.subjects.matching(in, k.labels, nil)
	if all := w.subjects.everyone(in); all != nil {
		found = append(found, all)
	}
	if !w.subjects.wide.empty() {
		w.subjects.wide.match(k.labels, func(s *selector) {
			if k.ns.scopes.has(s.scope.selector.id) {
				found = append(found, s)
			}
		})
	}
	k.subjects = enroll(k, k.subjects, found)
}

// enroll removes k from the members of the subjects in old, and adds it to those of the
// subjects in found. Subjects without a list of members stay as they are. It returns found.
func enroll(k *identity, old, found []*selector) []*selector {
	for _, s := range old {
		delete(s.members, k)
	}
	for _, s := range found {
		if s.members != nil {
			s.members[k] = struct{}{}
		}
	}
	return found
}

// rescope finds the scopes that match a namespace, after its labels have changed.
func (w *Store) rescope(ns *namespace) {
	if len(w.scopes.byKey) == 0 {
		return
	}
	var now idBits
	if all := w.scopes.everyone(scope{}); all != nil {
		now.set(all.id)
	}
	for _, s := range w.scopes.matching(scope{}, ns.labels, nil) {
		now.set(s.id)
	}
	was := ns.scopes
	ns.scopes = now
	now.all(func(id uint32) {
		if !was.has(id) {
			w.changeScope(ns, w.scopes.byID[id], true)
		}
	})
	was.all(func(id uint32) {
		if !now.has(id) {
			w.changeScope(ns, w.scopes.byID[id], false)
		}
	})
}

// changeScope is called when the scope selector in begins to match a namespace (matches is set)
// or ceases to match it. The identities of the namespace then list, or no longer list, the
// subjects with this scope selector that match them.
func (w *Store) changeScope(ns *namespace, in *selector, matches bool) {
	if in.within != nil && in.within.everyone != nil {
		for k := range ns.identities.all.all() {
			w.reselect(k)
		}
	}
	for s := range in.pods.all() {
		ns.identities.match(s, func(k *identity) {
			if matches {
				k.subjects = append(k.subjects, s)
			} else {
				k.subjects = without(k.subjects, s)
			}
			w.reselect(k)
		})
	}
}

// touch marks the pods that a subject selects, so that their policies are found and compiled
// again.
func (w *Store) touch(s *selector) { w.selected(s, w.reselect) }

func (w *Store) reselect(k *identity) {
	for _, p := range k.pods {
		p.due |= reselected
		w.dirty(p)
	}
}

// selecting returns the policies that select a pod and can decide in a direction, by tier.
// The lists are valid until the next call.
func (w *Store) selecting(p *pod, d filter.Direction) *[numTiers][]*policy {
	found := &w.selectedBy
	for t := range found {
		found[t] = found[t][:0]
	}
	add := func(s *selector) {
		for _, pol := range s.policies {
			if pol.decides(d) {
				found[pol.tier] = append(found[pol.tier], pol)
			}
		}
	}
	for _, s := range p.identity.subjects {
		add(s)
	}
	p.identity.ns.scopes.all(func(id uint32) {
		if in := w.scopes.byID[id].within; in != nil && in.everyone != nil {
			add(in.everyone)
		}
	})
	return found
}

// attach adds p to the policies that have the selector as their subject.
func (s *selector) attach(p *policy) {
	p.place = len(s.policies)
	s.policies = append(s.policies, p)
}

func (s *selector) detach(p *policy) {
	last := len(s.policies) - 1
	s.policies[p.place] = s.policies[last]
	s.policies[p.place].place = p.place
	s.policies[last] = nil
	s.policies = s.policies[:last]
}

// everySubject returns a subject that selects every pod that a policy of this kind may select:
// all pods of its namespace, or of the cluster.
func everySubject(ref Ref) Subject {
	s := Subject{Namespace: ref.Namespace, Pods: labels.Everything(), Malformed: true}
	if ref.clusterWide() {
		s.Namespaces = labels.Everything()
	}
	return s
}
