package main

import (
	"slices"

	"sluice/watch/manifests"
)

// sidedNotRead is a kind of objects that was not read on one side of a comparison, or on both.
type sidedNotRead struct {
	manifests.NotRead
	Side string `json:"side"` // "old", "new" or "both"
}

// String names the side, unless it is both.
func (n sidedNotRead) String() string { return n.withSide().String() }

func (n sidedNotRead) withSide() manifests.NotRead {
	if side := map[string]string{"old": "in OLD", "new": "in NEW"}[n.Side]; side != "" && n.Reason == "" {
		n.Reason = side
	}
	return n.NotRead
}

// notReadOf returns the kinds that were not read, with the sides of the comparison. If the number of
// objects differs, the kind is listed for each side.
func notReadOf(before, after []manifests.NotRead) (all []sidedNotRead) {
	rest := slices.Clone(after)
	for _, n := range before {
		side := "old"
		if i := slices.IndexFunc(rest, func(o manifests.NotRead) bool { return o.String() == n.String() }); i >= 0 {
			side, rest = "both", slices.Delete(rest, i, i+1)
		}
		all = append(all, sidedNotRead{n, side})
	}
	for _, n := range rest {
		all = append(all, sidedNotRead{n, "new"})
	}
	return all
}
