package policy

import (
	"hash/maphash"
	"math"
	"slices"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

type label struct{ key, value string }

// labelIndex finds those of many selectors that match a set of labels, and
// tests only the few that could: each selector is filed under one requirement
// that a matching object is bound to show.
type labelIndex struct {
	byLabel map[label][]*selector
	byKey   map[string][]*selector
	rest    []*selector // only NotIn and DoesNotExist: they match by absence
}

// anchor is the requirement that a selector is filed under: the labels of which
// an object must have one, at the lowest cost where there are several such
// requirements, or else the key that it must have, or else nothing.
func anchor(sel labels.Selector, cost func([]label) int) (anyOf []label, key string) {
	reqs, _ := sel.Requirements()
	lowest := math.MaxInt
	for _, r := range reqs {
		switch r.Operator() {
		case selection.In, selection.Equals, selection.DoubleEquals:
			found := make([]label, 0, r.Values().Len())
			for v := range r.Values() {
				found = append(found, label{r.Key(), v})
			}
			if c := cost(found); anyOf == nil || c < lowest {
				anyOf, lowest = found, c
			}
		case selection.Exists:
			key = r.Key()
		}
	}
	return anyOf, key
}

// entries is how often a selector is filed under these labels.
func entries(anyOf []label) int { return len(anyOf) }

func (x *labelIndex) add(s *selector) {
	anyOf, key := anchor(s.labels, entries)
	switch {
	case anyOf != nil:
		if x.byLabel == nil {
			x.byLabel = make(map[label][]*selector)
		}
		for _, l := range anyOf {
			x.byLabel[l] = append(x.byLabel[l], s)
		}
	case key != "":
		if x.byKey == nil {
			x.byKey = make(map[string][]*selector)
		}
		x.byKey[key] = append(x.byKey[key], s)
	default:
		x.rest = append(x.rest, s)
	}
}

func (x *labelIndex) remove(s *selector) {
	anyOf, key := anchor(s.labels, entries)
	switch {
	case anyOf != nil:
		for _, l := range anyOf {
			dropFrom(x.byLabel, l, s)
		}
	case key != "":
		dropFrom(x.byKey, key, s)
	default:
		x.rest = without(x.rest, s)
	}
}

// match appends the selectors that match set.
func (x *labelIndex) match(set labels.Set, found []*selector) []*selector {
	test := func(candidates []*selector) {
		for _, s := range candidates {
			if s.labels.Matches(set) {
				found = append(found, s)
			}
		}
	}
	if len(x.byLabel) > 0 || len(x.byKey) > 0 {
		for k, v := range set {
			test(x.byLabel[label{k, v}])
			test(x.byKey[k])
		}
	}
	test(x.rest)
	return found
}

func dropFrom[K comparable](m map[K][]*selector, k K, s *selector) {
	if left := without(m[k], s); len(left) > 0 {
		m[k] = left
	} else {
		delete(m, k)
	}
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

// kin is the pods of a namespace that have the same labels, such as those of a
// Deployment. No selector tells them apart, so that what selectors match is known
// once for all of them.
type kin struct {
	ns     *namespace
	labels labels.Set
	hash   uint64
	pods   map[*pod]struct{} // never empty

	subjects []*selector // selectors of policies' subjects that match
	peers    []*selector // selectors of peers that match
}

// hashOf is a number that equal labels share, in whatever order a map has them.
func (w *World) hashOf(set labels.Set) (sum uint64) {
	for k, v := range set {
		sum += maphash.Comparable(w.seed, label{k, v})
	}
	return sum
}

// kinSet is the pods of a namespace, findable by label: the other side of
// labelIndex, for when a selector is new and the pods are old.
type kinSet struct {
	all     map[*kin]struct{}
	byHash  map[uint64]*kin // but for those whose hash was another's first
	byLabel map[label]map[*kin]struct{}
}

func (x *kinSet) add(k *kin) {
	if x.all == nil {
		x.all = make(map[*kin]struct{})
		x.byHash = make(map[uint64]*kin)
		x.byLabel = make(map[label]map[*kin]struct{})
	}
	x.all[k] = struct{}{}
	if x.byHash[k.hash] == nil {
		x.byHash[k.hash] = k
	}
	for key, v := range k.labels {
		set := x.byLabel[label{key, v}]
		if set == nil {
			set = make(map[*kin]struct{}, 1)
			x.byLabel[label{key, v}] = set
		}
		set[k] = struct{}{}
	}
}

func (x *kinSet) remove(k *kin) {
	delete(x.all, k)
	if x.byHash[k.hash] == k {
		delete(x.byHash, k.hash)
	}
	for key, v := range k.labels {
		l := label{key, v}
		delete(x.byLabel[l], k)
		if len(x.byLabel[l]) == 0 {
			delete(x.byLabel, l)
		}
	}
}

// having is how many kins have one of these labels.
func (x *kinSet) having(anyOf []label) int {
	n := 0
	for _, l := range anyOf {
		n += len(x.byLabel[l])
	}
	return n
}

// match calls f for each kin that sel matches. It tests those that have the rarest
// of the labels that sel asks for: of "app" and "tier", the few of the app.
func (x *kinSet) match(sel labels.Selector, f func(*kin)) {
	test := func(kins map[*kin]struct{}) {
		for k := range kins {
			if sel.Matches(k.labels) {
				f(k)
			}
		}
	}
	anyOf, _ := anchor(sel, x.having)
	if anyOf == nil {
		test(x.all)
		return
	}
	for _, l := range anyOf {
		test(x.byLabel[l])
	}
}
