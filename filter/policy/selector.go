package policy

import (
	"k8s.io/apimachinery/pkg/labels"
)

// selector is an interned label selector: policies share a selector if its scope and text are
// the same in all of them. It selects namespaces, or pods within a scope.
type selector struct {
	id     uint32
	scope  scope
	text   string               // labels as text; identifies the selector within its scope
	labels labels.Selector      // an empty one selects everything in scope
	asks   []labels.Requirement // result of asksOf
	many   *matcher             // result of matcherOf; nil unless it has more than mostAsked requirements
	refs   int                  // number of uses: calls of use() and adopt(), minus calls of release()

	// fresh is set while only drafts use the selector and it has not yet been matched with all
	// pods (a namespace selector: with all namespaces).
	fresh bool
	// twin is set if this selector was read for a draft and the store already had an equal
	// selector: it points to that selector, which the draft uses in place of this one.
	twin *selector

	// members and subjects are set in a subject selector: the identities that match, and the
	// policies that use the selector. A peer selector has no list of its matches: instead,
	// identities and namespaces list the peer selectors that match them. Lists in both
	// directions took a hundred times the memory of the selectors.
	members  map[*identity]struct{}
	policies []*policy // policies[i].place is i
	// within and pods are set in a namespace selector. They hold the pod selectors whose scope
	// this selector is.
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
	scopes  idBits     // ids of the namespace selectors that are the scope of a selector in the index "wide"
	unused  []uint32   // released ids, free for reuse
	few     int        // value of labelIndex.few for the indexes in byScope; see fewAbsent
}

// scopeSelectors holds the selectors of a scope. If the scope is a namespace selector, it
// holds only the empty pod selector. The other pod selectors of all such scopes share the index
// selectors.wide, because a namespace may be in ten thousand of these scopes, and each scope may
// have one selector: with an index for each scope, a pod would be looked up ten thousand times.
type scopeSelectors struct {
	everyone *selector // the empty selector; nil if it is not in use
	some     labelIndex
}

// fewAbsent is the value of labelIndex.few. If a labelIndex has at most fewAbsent selectors with
// only NotIn and DoesNotExist requirements, it tests them one by one. For more such selectors, it
// creates an index of the type absence.
const fewAbsent = 64

func newSelectors() selectors {
	return selectors{byKey: make(map[selectorKey]*selector), byScope: make(map[scope]*scopeSelectors), few: fewAbsent, wide: labelIndex{few: fewAbsent}}
}

// use returns the shared selector with the given scope and the labels of sel. It creates this
// selector if necessary, and adds 1 to its refs. The caller must call release() once for each
// call of use().
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

// file sets the id of a selector, sets its refs to 1, and adds it to the indexes.
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

// newID returns a released id or, if there is none, the lowest id that was never used. Reuse
// keeps the ids small, and thus the bitmaps that are indexed by id. An id may pass from one
// selector to another between two Commits: the second Commit compiles again everything that used
// the old selector.
func (x *selectors) newID() uint32 {
	if last := len(x.unused) - 1; last >= 0 {
		id := x.unused[last]
		x.unused = x.unused[:last]
		return id
	}
	return uint32(len(x.byID))
}

// release ends a use and reports whether it was the last. If so, release removes s from the
// indexes, and adds its id to unused.
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
