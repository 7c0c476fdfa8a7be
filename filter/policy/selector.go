package policy

import (
	"k8s.io/apimachinery/pkg/labels"
)

// selector is one label selector as policies use it, shared by all that write it
// the same way. It selects namespaces, or pods within a scope.
type selector struct {
	id     uint32
	scope  scope
	text   string          // of labels, by which it is known
	labels labels.Selector // empty: everything in scope
	asks   []labels.Requirement
	many   *matcher
	refs   int // how often policies use it

	// fresh: only drafts use it so far, and not all pods (or namespaces) that match it
	// know it.
	fresh bool
	// twin is the shared selector that took the place of this one of a draft.
	twin *selector

	// For a policy's subject: the pods that match, and the policies. Who matches a
	// peer's selector is known the other way round alone, by each pod and namespace:
	// kept with the selector too, it took a hundred times the selectors' size.
	members  map[*identity]struct{}
	subjects map[*policy]struct{}
	// For a selector of namespaces: the selectors of pods in those it matches.
	within *scopeSelectors
	pods   bucket[*selector] // the others: selectors of some pods in those it matches
}

// scope says in which namespaces a selector of pods looks: in one, by name, or
// in those that a selector of namespaces matches.
type scope struct {
	namespace string
	selector  *selector
}

// selectorKey is what makes two selectors the same.
type selectorKey struct {
	scope scope
	text  string
}

func (s *selector) key() selectorKey { return selectorKey{s.scope, s.text} }

func newSelector(key selectorKey, sel labels.Selector) *selector {
	return &selector{scope: key.scope, text: key.text, labels: sel, asks: asksOf(sel), many: matcherOf(sel)}
}

// selectors is a set of interned selectors, filed by scope.
type selectors struct {
	byKey   map[selectorKey]*selector
	byID    []*selector
	byScope map[scope]*scopeSelectors
	wide    labelIndex // those that are not empty, of all scopes that are selectors
	scopes  idBits     // the scopes of these
	unused  []uint32   // released ids, free for reuse
	few     int        // how many selectors that match by absence are tested one by one
}

// scopeSelectors is the selectors of one scope; of one that is a selector, only the
// empty one. The others of those are together in one index: there may be ten thousand
// scopes that have a namespace, and one selector in each.
type scopeSelectors struct {
	everyone *selector // the one that is empty, if it is in use
	some     labelIndex
}

// fewAbsent is up to how many selectors that match by absence are tested one by one.
const fewAbsent = 64

func newSelectors() selectors {
	return selectors{byKey: make(map[selectorKey]*selector), byScope: make(map[scope]*scopeSelectors), few: fewAbsent, wide: labelIndex{few: fewAbsent}}
}

// use returns the shared selector and whether it is new. Every use must be
// matched by a release.
func (x *selectors) use(in scope, sel labels.Selector) (s *selector, isNew bool) {
	key := selectorKey{in, sel.String()}
	if s = x.byKey[key]; s != nil {
		s.refs++
		return s, false
	}
	s = newSelector(key, sel)
	x.file(s)
	return s, true
}

// adopt is use for a selector that was read for a draft. It becomes the shared one, or
// refers to the one that there is.
func (x *selectors) adopt(s *selector) (shared *selector, isNew bool) {
	if s.twin != nil {
		s = s.twin
	}
	if s.refs > 0 {
		s.refs++
		return s, false
	}
	if shared = x.byKey[s.key()]; shared != nil {
		s.twin = shared
		shared.refs++
		return shared, false
	}
	x.file(s)
	return s, true
}

// file gives a selector an id and its first use, and makes it findable.
func (x *selectors) file(s *selector) {
	in := s.scope
	s.id, s.refs = x.newID(), 1
	x.byKey[s.key()] = s
	if int(s.id) == len(x.byID) {
		x.byID = append(x.byID, nil)
	}
	x.byID[s.id] = s
	if in.selector != nil && !s.labels.Empty() {
		x.wide.add(s)
		in.selector.pods.add(s)
		x.scopes.set(in.selector.id)
		return
	}
	filed := x.byScope[in]
	if filed == nil {
		filed = &scopeSelectors{some: labelIndex{few: x.few}}
		x.byScope[in] = filed
		if in.selector != nil {
			in.selector.within = filed
		}
	}
	if s.labels.Empty() {
		filed.everyone = s
	} else {
		filed.some.add(s)
	}
}

// newID hands out the lowest numbers that do, so that they never run out. An id
// may be given again within one commit: all that knew the old holder of it are
// compiled again in that commit.
func (x *selectors) newID() uint32 {
	if last := len(x.unused) - 1; last >= 0 {
		id := x.unused[last]
		x.unused = x.unused[:last]
		return id
	}
	return uint32(len(x.byID))
}

// release ends a use and reports whether it was the last. If so, it adds the id to unused.
func (x *selectors) release(s *selector, unused *[]uint32) (gone bool) {
	if s.refs--; s.refs > 0 {
		return false
	}
	delete(x.byKey, s.key())
	*unused = append(*unused, s.id)
	x.byID[s.id] = nil
	if s.scope.selector != nil && !s.labels.Empty() {
		x.wide.remove(s)
		if s.scope.selector.pods.drop(); s.scope.selector.pods.empty() {
			x.scopes.unset(s.scope.selector.id)
		}
		return true
	}
	filed := x.byScope[s.scope]
	if s == filed.everyone {
		filed.everyone = nil
	} else {
		filed.some.remove(s)
	}
	if filed.everyone == nil && filed.some.empty() {
		delete(x.byScope, s.scope)
		if s.scope.selector != nil {
			s.scope.selector.within = nil
		}
	}
	return true
}

// matching appends the selectors of a scope that match set and are not empty.
func (x *selectors) matching(in scope, set labels.Set, found []*selector) []*selector {
	if filed := x.byScope[in]; filed != nil {
		filed.some.match(set, func(s *selector) { found = append(found, s) })
	}
	return found
}

// everyone is the empty selector of a scope, or nil.
func (x *selectors) everyone(in scope) *selector {
	if filed := x.byScope[in]; filed != nil {
		return filed.everyone
	}
	return nil
}
