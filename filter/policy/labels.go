package policy

import (
	"hash/maphash"
	"iter"
	"math"
	"slices"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/util/sets"
)

type label struct{ key, value string }

// labelIndex finds those of many selectors that match a set of labels, and
// tests only the few that could: each selector is filed under one requirement
// that a matching object is bound to show.
type labelIndex struct {
	byLabel map[label]bucket[*selector]
	byKey   map[string]bucket[*selector]
	rest    bucket[*selector] // only NotIn and DoesNotExist: they match by absence
	absence *absence          // of the rest, where they are more than few
	few     int
}

// bucket is some selectors, or some of what they match. One that is let go is no
// longer counted, and taken out only when half of a bucket are such: with thousands
// that share a label, each search for one would cost as much as the label has
// selectors. A map takes ten times as much for one or two, which is what most have.
type bucket[T interface{ gone() bool }] struct {
	list []T
	gone int
}

// gone reports whether no policy uses the selector any more.
func (s *selector) gone() bool { return s.refs == 0 }

// add adds one that is not gone.
func (b *bucket[T]) add(t T) { b.list = append(b.list, t) }

// drop is told that one of them is gone.
func (b *bucket[T]) drop() {
	if b.gone++; 2*b.gone >= len(b.list) {
		b.list = slices.DeleteFunc(b.list, T.gone)
		b.gone = 0
	}
}

// all lists those that are not gone.
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

// absence finds those of many selectors that match by absence: all but the few that
// a label or a key of the object rules out. With 10,000 of them, testing each takes
// a millisecond for each pod.
type absence struct {
	all     idBits
	byLabel map[label]bucket[*selector]
	byKey   map[string]bucket[*selector]
}

// anchor is the requirement that a selector is filed under: the labels of which
// an object must have one, at the lowest cost where there are several such
// requirements, or else the key that it must have, or else nothing.
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

// mostAsked bounds among how many requirements of a selector an anchor is looked for.
const mostAsked = 8

// asksOf are the first requirements that an object has to have something for.
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

// matcher is a selector of many requirements, by key: to match costs as much as the
// object has labels, and not as much as there are requirements.
type matcher struct {
	asks   map[string]map[string]bool // the values that a key may have; nil for any
	labels map[label]bool             // that the object must not have
	keys   map[string]bool            // that the object must not have
}

// matcherOf returns a matcher, or nil for a selector of few requirements.
func matcherOf(sel labels.Selector) *matcher {
	reqs, _ := sel.Requirements()
	if len(reqs) <= mostAsked {
		return nil
	}
	m := &matcher{make(map[string]map[string]bool), make(map[label]bool), make(map[string]bool)}
	for _, r := range reqs {
		switch r.Operator() {
		case selection.In, selection.Equals, selection.DoubleEquals:
			m.ask(r.Key(), r.Values())
		case selection.Exists:
			if _, is := m.asks[r.Key()]; !is {
				m.asks[r.Key()] = nil
			}
		case selection.NotIn, selection.NotEquals:
			for v := range r.Values() {
				m.labels[label{r.Key(), v}] = true
			}
		case selection.DoesNotExist:
			m.keys[r.Key()] = true
		default:
			return nil // no label selector of the API has others
		}
	}
	return m
}

// ask leaves of the values that a key may have those that are given.
func (m *matcher) ask(key string, values map[string]sets.Empty) {
	old, both := m.asks[key], make(map[string]bool, len(values))
	for v := range values {
		if old == nil || old[v] {
			both[v] = true
		}
	}
	m.asks[key] = both
}

func (m *matcher) matches(set labels.Set) bool {
	asked := 0
	for k, v := range set {
		if m.keys[k] || m.labels[label{k, v}] {
			return false
		}
		if values, is := m.asks[k]; is {
			if asked++; values != nil && !values[v] {
				return false
			}
		}
	}
	return asked == len(m.asks)
}

// matches reports whether the selector matches an object with these labels.
func (s *selector) matches(set labels.Set) bool {
	if s.many != nil {
		return s.many.matches(set)
	}
	return s.labels.Matches(set)
}

// entries is how often a selector is filed under these labels.
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

// remove takes out a selector that has no use any more.
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

// match calls f for the selectors that match set.
func (x *labelIndex) match(set labels.Set, f func(*selector)) {
	x.present(set, f)
	matchIn(x.rest, set, f)
}

// present calls f for those that match by a label or key that set has.
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

// collect adds the ids of the selectors that match set.
func (x *labelIndex) collect(set labels.Set, ids, scratch *idBits) {
	add := func(s *selector) { ids.set(s.id) }
	if x.absence == nil {
		x.match(set, add)
		return
	}
	x.present(set, add)
	x.absence.collect(set, ids, scratch, nil)
}

// collectIn is collect for selectors of several scopes: it adds those whose scope has
// the namespace, which has to have been given to mask.
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

// mask sets which of the selectors that match by absence have the namespace in
// their scope.
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

// collect adds those that match set, and are in mask unless that is nil.
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

// without removes s from list, in place; the order does not matter.
func without(list []*selector, s *selector) []*selector {
	i := slices.Index(list, s)
	if i < 0 {
		return list
	}
	last := len(list) - 1
	list[i], list[last] = list[last], nil
	return list[:last]
}

// identity is the pods of a namespace that have the same labels, such as those of a
// Deployment. No selector tells them apart, so that what selectors match is known
// once for all of them.
type identity struct {
	ns     *namespace
	labels labels.Set
	hash   uint64
	pods   []*pod // each knows its place; empty for one that is gone

	subjects []*selector // selectors of policies' subjects that match
	peers    idSet       // selectors of peers that match, as of the last commit
	sum      [2]uint64   // of peers
	stale    bool        // peers may be others now
	staleOwn bool        // also those of policies of its own namespace, of no other
	recent   *class      // what a pod of these was compiled to in this commit
}

// gone reports whether there is no such pod any more.
func (k *identity) gone() bool { return len(k.pods) == 0 }

// add puts a pod among them.
func (k *identity) add(p *pod) {
	p.identity, p.place = k, uint32(len(k.pods))
	k.pods = append(k.pods, p)
}

// remove takes out the pod at a place. It may be among others already.
func (k *identity) remove(place uint32) {
	last := uint32(len(k.pods) - 1)
	if place != last {
		k.pods[place] = k.pods[last]
		k.pods[place].place = place
	}
	k.pods[last] = nil
	k.pods = k.pods[:last]
}

// identitySet is the pods of a namespace, findable by label: the other side of
// labelIndex, for when a selector is new and the pods are old.
type identitySet struct {
	seed    maphash.Seed
	all     bucket[*identity]
	byHash  map[uint64]*identity // but for those whose hash was another's first
	byLabel map[uint64]bucket[*identity]
}

// hash is a number that equal labels share.
func (x *identitySet) hash(key, value string) uint64 {
	return maphash.Comparable(x.seed, label{key, value})
}

// hashOf is a number that equal sets of labels share, in whatever order a map has them.
func (x *identitySet) hashOf(set labels.Set) (sum uint64) {
	for k, v := range set {
		sum += x.hash(k, v)
	}
	return sum
}

// add adds an identity that has a pod.
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

// remove takes out an identity that is gone.
func (x *identitySet) remove(k *identity) {
	x.all.drop()
	if x.byHash[k.hash] == k {
		delete(x.byHash, k.hash)
	}
	for key, v := range k.labels {
		dropFrom(x.byLabel, x.hash(key, v))
	}
}

// having is how many identities have one of these labels, or another of the same hash.
func (x *identitySet) having(anyOf []label) int {
	n := 0
	for _, l := range anyOf {
		n += x.byLabel[x.hash(l.key, l.value)].count()
	}
	return n
}

// candidates is how many identities match tests for a selector.
func (x *identitySet) candidates(s *selector) int {
	if anyOf, _ := anchor(s, x.having); anyOf != nil {
		return x.having(anyOf)
	}
	return x.all.count()
}

// match calls f for each identity that s matches. It tests those that have the rarest
// of the labels that s asks for: of "app" and "tier", the few of the app.
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
