package policy

import (
	"hash/maphash"
	"iter"
	"math"
	"slices"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

type label struct{ key, value string }

// labelIndex finds the selectors that match a set of labels. Each selector is filed under
// one of its requirements (see anchor), so that only the few selectors that may match are
// tested.
type labelIndex struct {
	byLabel map[label]bucket[*selector]
	byKey   map[string]bucket[*selector]
	// rest holds the selectors that match by absence: they have only NotIn and DoesNotExist
	// requirements, which an object without labels meets.
	rest bucket[*selector]
	// absence is an index of the selectors in the bucket "rest". add() creates it when
	// rest.list is longer than the bound "few". remove() deletes it when the bucket is empty.
	absence *absence
	few     int
}

// bucket is a list of selectors or identities. When an element is removed, it stays in the
// list, and only the counter "gone" is incremented. When half of the elements have been
// removed, the list is compacted. Searching the list for each removed element would be slow:
// thousands of selectors may have a label in common. Most buckets have one or two elements, for
// which a map would take ten times the memory.
type bucket[T interface{ gone() bool }] struct {
	list []T
	gone int
}

// gone reports whether no policy uses the selector.
func (s *selector) gone() bool { return s.refs == 0 }

// add adds an element that is not gone.
func (b *bucket[T]) add(t T) { b.list = append(b.list, t) }

// drop counts one more element as gone, and compacts the list if half of it is gone.
func (b *bucket[T]) drop() {
	if b.gone++; 2*b.gone >= len(b.list) {
		b.list = slices.DeleteFunc(b.list, T.gone)
		b.gone = 0
	}
}

// all yields the elements that are not gone.
func (b bucket[T]) all() iter.Seq[T] {
	return func(yield func(T) bool) {
		for _, t := range b.list {
			if !t.gone() && !yield(t) {
				return
			}
		}
	}
}

func (b bucket[T]) count() int { return len(b.list) - b.gone }

func (b bucket[T]) empty() bool { return b.count() == 0 }

// absence is an index of selectors that match by absence. A lookup starts with all of these
// selectors and removes the few that a label or a key of the object rules out. Testing each
// of 10,000 selectors would take a millisecond for each pod.
type absence struct {
	all     idBits
	byLabel map[label]bucket[*selector]
	byKey   map[string]bucket[*selector]
}

// anchor returns the requirement under which a selector is filed:
//
//   - anyOf, if the selector has In requirements: the labels of the one with the lowest cost. A
//     matching object has one of these labels.
//   - otherwise key, if the selector has Exists requirements. A matching object has this key.
//   - otherwise neither: the selector matches by absence.
func anchor(s *selector, cost func([]label) int) (anyOf []label, key string) {
	lowest := math.MaxInt
	for _, r := range s.asks {
		if r.Operator() == selection.Exists {
			key = r.Key()
			continue
		}
		found := make([]label, 0, r.Values().Len())
		for v := range r.Values() {
			found = append(found, label{r.Key(), v})
		}
		if c := cost(found); anyOf == nil || c < lowest {
			anyOf, lowest = found, c
		}
	}
	return anyOf, key
}

// mostAsked bounds the number of a selector's requirements that anchor considers. If a selector
// has more requirements of any kind, a matcher (see matcher.go) matches it.
const mostAsked = 8

// asksOf returns the selector's In, Equals and Exists requirements, which an object without the
// key does not meet. If there are more than mostAsked, it returns the first mostAsked.
func asksOf(sel labels.Selector) (asks []labels.Requirement) {
	reqs, _ := sel.Requirements()
	for _, r := range reqs {
		switch r.Operator() {
		case selection.In, selection.Equals, selection.DoubleEquals, selection.Exists:
			if asks = append(asks, r); len(asks) == mostAsked {
				return asks
			}
		}
	}
	return asks
}

// matches reports whether the selector matches an object with these labels.
func (s *selector) matches(set labels.Set) bool {
	if s.many != nil {
		return s.many.matches(set)
	}
	return s.labels.Matches(set)
}

// entries is the cost function that labelIndex passes to anchor. It returns the number of
// buckets to which a selector is added if it is filed under the labels anyOf.
func entries(anyOf []label) int { return len(anyOf) }

func (x *labelIndex) add(s *selector) {
	anyOf, key := anchor(s, entries)
	switch {
	case anyOf != nil:
		for _, l := range anyOf {
			addTo(&x.byLabel, l, s)
		}
	case key != "":
		addTo(&x.byKey, key, s)
	default:
		x.rest.add(s)
		if x.absence != nil {
			x.absence.add(s)
		} else if len(x.rest.list) > x.few {
			x.absence = &absence{}
			for o := range x.rest.all() {
				x.absence.add(o)
			}
		}
	}
}

// remove removes a selector for which gone already returns true.
func (x *labelIndex) remove(s *selector) {
	anyOf, key := anchor(s, entries)
	switch {
	case anyOf != nil:
		for _, l := range anyOf {
			dropFrom(x.byLabel, l)
		}
	case key != "":
		dropFrom(x.byKey, key)
	default:
		x.rest.drop()
		if x.absence != nil {
			x.absence.remove(s)
		}
		if x.rest.empty() {
			x.absence = nil
		}
	}
}

func (x *labelIndex) empty() bool {
	return len(x.byLabel) == 0 && len(x.byKey) == 0 && x.rest.empty()
}

// match calls f for each selector that matches set.
func (x *labelIndex) match(set labels.Set, f func(*selector)) {
	x.present(set, f)
	matchIn(x.rest, set, f)
}

// present calls f for each selector that matches set and is filed under a label or a key of
// set.
func (x *labelIndex) present(set labels.Set, f func(*selector)) {
	if len(x.byLabel) > 0 || len(x.byKey) > 0 {
		for k, v := range set {
			matchIn(x.byLabel[label{k, v}], set, f)
			matchIn(x.byKey[k], set, f)
		}
	}
}

func matchIn(b bucket[*selector], set labels.Set, f func(*selector)) {
	for s := range b.all() {
		if s.matches(set) {
			f(s)
		}
	}
}

// collect adds to ids the ids of the selectors that match set. It overwrites scratch.
func (x *labelIndex) collect(set labels.Set, ids, scratch *idBits) {
	add := func(s *selector) { ids.set(s.id) }
	if x.absence == nil {
		x.match(set, add)
		return
	}
	x.present(set, add)
	x.absence.collect(set, ids, scratch, nil)
}

// collectIn adds to ids the ids of the selectors that match set and whose scope includes ns. It
// is for an index whose selectors have namespace selectors as scopes. The caller must have called
// x.mask(ns, mask) before. collectIn overwrites scratch.
func (x *labelIndex) collectIn(ns *namespace, set labels.Set, ids, scratch, mask *idBits) {
	test := func(b bucket[*selector]) {
		for s := range b.all() {
			if ns.matched.has(s.scope.selector.id) && s.matches(set) {
				ids.set(s.id)
			}
		}
	}
	if len(x.byLabel) > 0 || len(x.byKey) > 0 {
		for k, v := range set {
			test(x.byLabel[label{k, v}])
			test(x.byKey[k])
		}
	}
	if x.absence == nil {
		test(x.rest)
		return
	}
	x.absence.collect(set, ids, scratch, mask)
}

// mask fills mask with the ids of the selectors that match by absence and whose scope
// includes ns. If x.absence is nil, it leaves mask empty.
func (x *labelIndex) mask(ns *namespace, mask *idBits) {
	mask.reset()
	if x.absence == nil {
		return
	}
	for s := range x.rest.all() {
		if ns.matched.has(s.scope.selector.id) {
			mask.set(s.id)
		}
	}
}

func (x *absence) add(s *selector) {
	x.all.set(s.id)
	reqs, _ := s.labels.Requirements()
	for _, r := range reqs {
		if r.Operator() == selection.DoesNotExist {
			addTo(&x.byKey, r.Key(), s)
			continue
		}
		for v := range r.Values() {
			addTo(&x.byLabel, label{r.Key(), v}, s)
		}
	}
}

func (x *absence) remove(s *selector) {
	x.all.unset(s.id)
	reqs, _ := s.labels.Requirements()
	for _, r := range reqs {
		if r.Operator() == selection.DoesNotExist {
			dropFrom(x.byKey, r.Key())
			continue
		}
		for v := range r.Values() {
			dropFrom(x.byLabel, label{r.Key(), v})
		}
	}
}

// collect adds to ids the ids of the selectors that match set. If mask is not nil, collect
// adds only ids in mask. It overwrites scratch.
func (x *absence) collect(set labels.Set, ids, scratch, mask *idBits) {
	if mask == nil {
		mask = &x.all
	}
	scratch.copyOf(mask)
	for k, v := range set {
		for _, b := range [2]bucket[*selector]{x.byLabel[label{k, v}], x.byKey[k]} {
			for s := range b.all() {
				scratch.unset(s.id)
			}
		}
	}
	ids.add(scratch)
}

func addTo[K comparable, T interface{ gone() bool }](m *map[K]bucket[T], k K, t T) {
	if *m == nil {
		*m = make(map[K]bucket[T])
	}
	b := (*m)[k]
	b.add(t)
	(*m)[k] = b
}

func dropFrom[K comparable, T interface{ gone() bool }](m map[K]bucket[T], k K) {
	b := m[k]
	if b.drop(); b.empty() {
		delete(m, k)
		return
	}
	m[k] = b
}

// without removes s from list, in place, and returns the shorter list. It does not keep the
// order.
func without(list []*selector, s *selector) []*selector {
	i := slices.Index(list, s)
	if i < 0 {
		return list
	}
	last := len(list) - 1
	list[i], list[last] = list[last], nil
	return list[:last]
}

// identity is the set of pods of a namespace that have the same labels, such as the pods of
// a Deployment. No selector can tell these pods apart, so selectors are matched once for all
// of them.
type identity struct {
	ns     *namespace
	labels labels.Set
	hash   uint64
	pods   []*pod // pods[i].place is i; without pods, the identity is gone

	subjects []*selector  // subject selectors that match
	peers    idSet        // ids of the peer selectors that match, except empty ones; as of the last Store.match
	sum      [2]uint64    // sumOf(peers)
	stale    bool         // the identity must be matched again with the peer selectors whose scope is a namespace selector
	staleOwn bool         // if "stale" is set: the identity must also be matched with the peer selectors whose scope is a single namespace
	recent   *class       // the class that this Commit last determined for a pod of the identity, or nil
	about    *description // of the pod for which describe was called last
}

// gone reports whether the identity has no pods.
func (k *identity) gone() bool { return len(k.pods) == 0 }

// add adds a pod.
func (k *identity) add(p *pod) {
	p.identity, p.place = k, uint32(len(k.pods))
	k.pods = append(k.pods, p)
	k.describe(p)
}

// describe makes a pod share the description of the last pod that was described, if the two have the
// same workload.
func (k *identity) describe(p *pod) {
	if k.about == nil || k.about.workload != p.about.workload {
		k.about = &description{k.labels, p.about.workload}
	}
	p.about = k.about
}

// remove removes the pod k.pods[place]. It does not change the fields of that pod, which may
// already belong to another identity.
func (k *identity) remove(place uint32) {
	last := uint32(len(k.pods) - 1)
	if place != last {
		k.pods[place] = k.pods[last]
		k.pods[place].place = place
	}
	k.pods[last] = nil
	k.pods = k.pods[:last]
}

// identitySet holds the identities of a namespace, indexed by label. It is the counterpart
// of labelIndex: it finds the existing pods that a new selector matches.
type identitySet struct {
	seed    maphash.Seed
	all     bucket[*identity]
	byHash  map[uint64]*identity // one identity for each hash: the first, if several have the same hash
	byLabel map[uint64]bucket[*identity]
}

// hash returns a hash of a label.
func (x *identitySet) hash(key, value string) uint64 {
	return maphash.Comparable(x.seed, label{key, value})
}

// hashOf returns a hash of a set of labels. It does not depend on the order of the map.
func (x *identitySet) hashOf(set labels.Set) (sum uint64) {
	for k, v := range set {
		sum += x.hash(k, v)
	}
	return sum
}

// add adds an identity, which must have a pod.
func (x *identitySet) add(k *identity) {
	if x.byHash == nil {
		x.byHash = make(map[uint64]*identity)
	}
	x.all.add(k)
	if x.byHash[k.hash] == nil {
		x.byHash[k.hash] = k
	}
	for key, v := range k.labels {
		addTo(&x.byLabel, x.hash(key, v), k)
	}
}

// remove removes an identity that is gone.
func (x *identitySet) remove(k *identity) {
	x.all.drop()
	if x.byHash[k.hash] == k {
		delete(x.byHash, k.hash)
	}
	for key, v := range k.labels {
		dropFrom(x.byLabel, x.hash(key, v))
	}
}

// having returns the number of identities that have one of these labels. The number may be
// too large, because hashes may collide.
func (x *identitySet) having(anyOf []label) int {
	n := 0
	for _, l := range anyOf {
		n += x.byLabel[x.hash(l.key, l.value)].count()
	}
	return n
}

// candidates returns how many identities a call of match() with s would test.
func (x *identitySet) candidates(s *selector) int {
	if anyOf, _ := anchor(s, x.having); anyOf != nil {
		return x.having(anyOf)
	}
	return x.all.count()
}

// match calls f for each identity that s matches. If s requires several labels, match tests
// only the identities that have the rarest of them.
func (x *identitySet) match(s *selector, f func(*identity)) {
	test := func(identities bucket[*identity]) {
		for k := range identities.all() {
			if s.matches(k.labels) {
				f(k)
			}
		}
	}
	anyOf, _ := anchor(s, x.having)
	if anyOf == nil {
		test(x.all)
		return
	}
	for _, l := range anyOf {
		test(x.byLabel[x.hash(l.key, l.value)])
	}
}
