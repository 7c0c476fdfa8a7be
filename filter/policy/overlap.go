package policy

import (
	"cmp"
	"fmt"
	"slices"

	"sluice/filter"
)

// overlap is two policies of a tier with equal priority and rules of different actions, which
// select the same pod. The API leaves open which one is evaluated first. Here, it is the one whose
// name sorts first.
type overlap struct{ first, second Ref }

// overlapsOf returns the overlaps of policies of one tier that select the same pod. The
// policies are in the order of their evaluation. Each is compared only with the next one, so
// that n policies have at most n-1 overlaps.
func overlapsOf(d filter.Direction, policies []*policy) (found []overlap) {
	if policies[0].tier == NetworkPolicy {
		return nil
	}
	for i, second := range policies[1:] {
		// A negative priority means that the place in the order is not known, which is reported
		// elsewhere.
		if first := policies[i]; first.priority == second.priority && first.priority >= 0 && differ(first.rules[d], second.rules[d]) {
			found = append(found, overlap{first.ref, second.ref})
		}
	}
	return found
}

// differ reports whether rules of the two lists have different actions.
func differ(a, b []rule) bool {
	for i := range a {
		if slices.ContainsFunc(b, func(r rule) bool { return r.is.Action != a[i].is.Action }) {
			return true
		}
	}
	return false
}

// countOverlaps adds n to the number of policy sets that have each of the overlaps. It forgets an
// overlap that no policy set has any more.
func (w *Store) countOverlaps(of []overlap, n int) {
	for _, o := range of {
		if w.overlaps[o] += n; w.overlaps[o] == 0 {
			delete(w.overlaps, o)
		}
	}
}

// Overlaps returns a problem for each policy that shares its priority with another policy of its
// tier, if both select an existing pod and their order matters. Both stay in force, ordered by
// name.
func (w *Store) Overlaps() []Problem {
	var all []Problem
	for o := range w.overlaps {
		p := w.policies[o.second]
		if p == nil {
			continue // it was deleted after the last Commit
		}
		all = append(all, Problem{
			Policy: o.second, Field: "spec.priority",
			Detail: fmt.Sprintf("%s has the same priority %d in the tier %s and selects the same pods, and the API leaves their order open", o.first.Object(), p.priority, p.tier),
			Hint:   "give one of them another priority",
		})
	}
	slices.SortFunc(all, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Policy.String(), b.Policy.String()), cmp.Compare(a.Detail, b.Detail))
	})
	return all
}
