package watch_test

import (
	"net/netip"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/watch"
)

// When the addresses of starting pods change, the store is updated.
func TestStartingPodsReachTheStore(t *testing.T) {
	store := policy.NewStore()
	starting := store.StartingPods()
	var pub policy.Published
	here := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}
	pods := make(feed)
	c, calls, _ := runWithStore(t, store, &pub, nil, watch.Starting{Pods: starting}, pods)
	old, young := pod("old", "10.0.0.1"), pod("young", "10.0.0.1")
	old.Spec.NodeName, young.CreationTimestamp = "here", metav1.Unix(1, 0)
	pods <- func(w *policy.Store) {
		w.SetLocalNode("here")
		w.SetPod(kubepod.Read(old))
		w.SetPod(kubepod.Read(young))
	}
	await(t, calls)
	counts := func(want string) {
		t.Helper()
		if clashes := c.Clashes(); len(clashes) != 1 || clashes[0].Winner != want {
			t.Errorf("clashes %v; want %s to count", clashes, want)
		}
	}
	counts("default/young")
	starting.Set(here)
	if got := pub.Snapshot().Pending(netip.MustParseAddr("10.0.0.2")); got != policy.PendingLocal {
		t.Errorf("the address of a pod that starts is %d before the next snapshot", got)
	}
	await(t, calls)
	counts("default/old")
	starting.Set(nil)
	await(t, calls)
	counts("default/young")
}
