package watch_test

import (
	"net/netip"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/watch"
)

// The store learns of the ranges when they change, and nothing when they do not.
func TestLocalRangesReachTheWorld(t *testing.T) {
	var ranges watch.Ranges
	var pub policy.Published
	here := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}
	pods := make(feed)
	k, calls, _ := keep(t, &pub, nil, watch.Local{Ranges: &ranges}, pods)
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

// Derived ranges hold beside those that are set, and count as set when one is added.
func TestDerivedRanges(t *testing.T) {
	var ranges watch.Ranges
	prefixes := func(texts ...string) (list []netip.Prefix) {
		for _, text := range texts {
			list = append(list, netip.MustParsePrefix(text))
		}
		return list
	}
	var told int
	ranges.OnSet = func(all []netip.Prefix) { told = len(all) }
	check := func(what string, sets uint64, all int, in map[string]bool) {
		t.Helper()
		if got := ranges.Sets(); got != sets || told != all {
			t.Errorf("%s: set %d times, %d ranges told; want %d and %d", what, got, told, sets, all)
		}
		for addr, want := range in {
			if local, cluster := ranges.Contains(netip.MustParseAddr(addr)); local != want || cluster != want {
				t.Errorf("%s: %s is in the node's ranges %v, in the cluster's %v; want %v", what, addr, local, cluster, want)
			}
		}
	}
	ranges.Set(prefixes("10.1.0.0/24"), nil)
	ranges.Derive(prefixes("10.9.0.1/32", "fd00::1/128"))
	check("derived", 2, 3, map[string]bool{"10.1.0.5": true, "10.9.0.1": true, "fd00::1": true, "10.9.0.2": false})
	ranges.Derive(prefixes("10.9.0.1/32", "fd00::1/128"))
	check("the same", 2, 3, nil)
	ranges.Derive(prefixes("10.9.0.1/32"))
	check("one goes", 2, 2, map[string]bool{"10.9.0.1": true, "fd00::1": false})
	ranges.Derive(prefixes("10.9.0.1/32", "10.9.0.2/32"))
	check("one comes", 3, 3, map[string]bool{"10.9.0.2": true})
	ranges.Set(nil, nil)
	check("none is set", 4, 2, map[string]bool{"10.1.0.5": false, "10.9.0.1": true})
}
