package watch_test

import (
	"net/netip"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/filter/policy"
	"sluice/watch"
)

// The World learns of the ranges when they change, and nothing when they do not.
func TestLocalRangesReachTheWorld(t *testing.T) {
	var ranges watch.Ranges
	var pub policy.Published
	here := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}
	pods := make(feed)
	k, calls, _ := keep(t, &pub, nil, watch.Local{Ranges: &ranges}, pods)
	old, young := pod("old", "10.0.0.1"), pod("young", "10.0.0.1")
	old.Spec.NodeName, young.CreationTimestamp = "here", metav1.Unix(1, 0)
	pods <- func(w *policy.World) { w.SetLocalNode("here"); w.SetPod(old); w.SetPod(young) }
	await(t, calls)
	counts := func(want string) {
		t.Helper()
		if c := k.Clashes(); len(c) != 1 || c[0].Winner != want {
			t.Errorf("clashes %v; want %s to count", c, want)
		}
	}
	counts("default/young")
	ranges.Set(here, nil)
	await(t, calls)
	counts("default/old")
	ranges.Set(nil, here)
	await(t, calls)
	counts("default/young")
	ranges.Set(nil, nil) // of this node there are none as before
	ranges.Derive(here)
	await(t, calls)
	counts("default/old")
}
