package kube

import (
	"net/netip"
	"testing"

	"k8s.io/client-go/tools/cache"

	"sluice/filter/policy"
)

func nodeObject(name string, ranges ...string) *node {
	n := &node{ranges: ranges}
	n.Name = name
	return n
}

// The first snapshot after a change of a Node has the new pod ranges. So the publication of this
// snapshot starts the sweep that new ranges require; otherwise, the sweep would wait for another
// change.
func TestRangesComeWithTheirChange(t *testing.T) {
	q := newQueue(1)
	table := newTable(nodeKind, q, newHealth("test", quietSlog))
	table.nodes = &nodes{self: "here", log: quietSlog}
	w := policy.NewStore()
	w.SetLocalNode("here")
	last, _ := w.Commit()
	for _, step := range []struct {
		name string
		do   func() error
		addr string
		want policy.Pending
	}{
		{"list", func() error { return table.Replace([]any{nodeObject("here", "10.1.0.0/24")}, "1") }, "10.1.0.1", policy.PendingLocal},
		{"add", func() error { return table.Add(nodeObject("there", "10.2.0.0/24")) }, "10.2.0.1", policy.PendingRemote},
		{"update", func() error { return table.Update(nodeObject("there", "10.3.0.0/24")) }, "10.2.0.1", policy.Known},
		{"update again", func() error { return table.Update(nodeObject("there", "10.3.0.0/24", "nonsense", "10.4.0.0/24")) }, "10.4.0.1", policy.PendingRemote},
		{"delete", func() error { return table.Delete(nodeObject("there", "10.3.0.0/24")) }, "10.3.0.1", policy.Known},
		{"last known", func() error {
			return table.Delete(cache.DeletedFinalStateUnknown{Obj: nodeObject("here", "10.1.0.0/24")})
		}, "10.1.0.1", policy.Known},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		changes, _ := q.take(false)
		for _, c := range changes {
			c.apply(w)
		}
		now, _ := w.Commit()
		if got := now.Pending(netip.MustParseAddr(step.addr)); got != step.want || now.SameRanges(last) {
			t.Errorf("%s: %s is %d, want %d; the same ranges as before: %t", step.name, step.addr, got, step.want, now.SameRanges(last))
		}
		last = now
	}
}
