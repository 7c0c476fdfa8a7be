package policy

import (
	"k8s.io/apimachinery/pkg/labels"
)

// selector is an interned label selector: policies with the same text of a selector share
// it. It selects namespaces, or pods within a scope.
type selector struct {
	id     uint32
	scope  scope
	text   string               // labels as text; identifies the selector within its scope
	labels labels.Selector      // empty: everything in scope
	asks   []labels.Requirement // see asksOf
	many   *matcher             // nil for a selector of few requirements
	refs   int                  // number of uses by policies

	// fresh: only drafts use the selector, and it has not been matched with all pods (or
	// namespaces) yet.
	fresh bool
	// twin is the shared selector that replaces this selector of a draft.
	twin *selector

	// members and subjects are set in a subject selector: the identities that match, and the
	// policies that use the selector. A peer selector has no list of its matches: instead,
	// identities and namespaces list the peer selectors that match them. Lists in both
	// directions took a hundred times the memory of the selectors.
	members  map[*identity]struct{}
	subjects map[*policy]struct{}
	// within and pods are set in a namespace selector: the pod selectors that have it as scope.
	within *scopeSelectors   // the empty pod selector
	pods   bucket[*selector] // the other pod selectors
}

// scope is the namespaces in which a pod selector selects pods: one namespace by name, or
// those that a namespace selector matches.
type scope struct {
	namespace string
	selector  *selector
}

// selectorKey identifies a selector.
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
	wide    labelIndex // non-empty pod selectors whose scope is a namespace selector
	scopes  idBits     // ids of the namespace selectors that are the scope of a selector in wide
	unused  []uint32   // released ids, free for reuse
	few     int        // more selectors with only NotIn and DoesNotExist requirements are indexed; see fewAbsent
}

// scopeSelectors holds the selectors of a scope. If the scope is a namespace selector, it
// holds only the empty pod selector. All other pod selectors of such scopes are in a single
// index, selectors.wide, because ten thousand of these scopes may include the same
// namespace, each with one selector.
type scopeSelectors struct {
	everyone *selector // the empty selector; nil if it is not in use
	some     labelIndex
}

// fewAbsent is the largest number of selectors with only NotIn and DoesNotExist requirements
// that are tested one by one. If there are more, they are indexed.
const fewAbsent = 64

func newSelectors() selectors {
	return selectors{byKey: make(map[selectorKey]*selector), byScope: make(map[scope]*scopeSelectors), few: fewAbsent, wide: labelIndex{few: fewAbsent}}
}

// use returns the shared selector, adds a use to it, and reports whether it is new. The
// caller must end each use with release.
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

// adopt is like use, for a selector that was read for a draft. If there is no equal shared
// selector, s becomes the shared one. Otherwise adopt sets s.twin to the shared one.
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

// file gives a selector an id and its first use, and adds it to the indexes.
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

// newID returns a released id, or the next id if no released one is left. This keeps the
// ids, and thus bitmaps of ids, small. An id may be reused within a Commit, because that
// Commit compiles everything again that had the old selector.
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

// matching appends the selectors of a scope that match set, without the empty selector.
func (x *selectors) matching(in scope, set labels.Set, found []*selector) []*selector {
	if filed := x.byScope[in]; filed != nil {
		filed.some.match(set, func(s *selector) { found = append(found, s) })
	}
	return found
}

// everyone returns the empty selector of a scope, or nil.
func (x *selectors) everyone(in scope) *selector {
	if filed := x.byScope[in]; filed != nil {
		return filed.everyone
	}
	return nil
}
