package kube

import (
	"net/netip"
	"testing"

	"k8s.io/client-go/tools/cache"

	"sluice/watch"
)

func nodeObject(name string, ranges ...string) *node {
	n := &node{ranges: ranges}
	n.Name = name
	return n
}

// The change of a Node is queued when its ranges hold, and not before: it is what makes
// the Keeper commit, and a commit with the ranges from before would not be followed by
// the sweep that the new ones require.
func TestRangesHoldBeforeTheirChangeIsQueued(t *testing.T) {
	var ranges watch.Ranges
	q := newQueue(1)
	table := newTable(nodeKind, q, newHealth("test", quietSlog))
	table.nodes = newNodes("here", &ranges, quietSlog)
	var set []netip.Prefix
	ranges.OnSet = func(all []netip.Prefix) {
		if n := len(q.changes); n > 0 {
			t.Errorf("ranges %v are set with %d changes in the queue", all, n)
		}
		set = all
	}
	for _, step := range []struct {
		name string
		do   func() error
		want int
	}{
		{"list", func() error { return table.Replace([]any{nodeObject("here", "10.1.0.0/24")}, "1") }, 2},
		{"add", func() error { return table.Add(nodeObject("there", "10.2.0.0/24")) }, 3},
		{"update", func() error { return table.Update(nodeObject("there", "10.3.0.0/24")) }, 3},
		{"delete", func() error { return table.Delete(nodeObject("there", "10.3.0.0/24")) }, 2},
		{"last known", func() error {
			return table.Delete(cache.DeletedFinalStateUnknown{Obj: nodeObject("here", "10.1.0.0/24")})
		}, 0},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if len(set) != step.want || len(drain(q)) == 0 {
			t.Errorf("%s: ranges %v, want %d", step.name, set, step.want)
		}
	}
}
