package conntrack_test

import (
	"fmt"
	"testing"

	"sluice/bench/testbed/cluster"
	"sluice/cache/conntrack"
	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/netpol"
)

// BenchmarkTrack measures TrackedFlows.Track. Evaluators call it only for keys that no cache had.
func BenchmarkTrack(b *testing.B) {
	s, keys := trackable(b, cluster.Options{Pods: 10_000, Policies: 1_000, Namespaces: 50}, 4096)
	tracked := conntrack.NewTrackedFlows()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		tracked.Track(s, keys[i%len(keys)])
	}
}

// BenchmarkFollow measures how long it takes to find out whether a change of policy concerns live
// connections. The change gives the pods that a policy selects other IDs. No verdict about a key
// differs, so that no sweep follows.
func BenchmarkFollow(b *testing.B) {
	for _, pods := range []int{10_000, 100_000} {
		for _, n := range []int{1_000, 30_000} {
			b.Run(fmt.Sprintf("pods=%d/keys=%d", pods, n), func(b *testing.B) {
				o := cluster.Options{Pods: pods, Policies: pods / 10, Namespaces: pods / 200}
				c, w := cluster.New(1, o), policy.NewStore()
				c.Fill(w)
				tracked := conntrack.NewTrackedFlows()
				f := conntrack.Follow(conntrack.New(new(broken), conntrack.DefaultMarks, nil, nil), tracked, nil)
				s, _ := w.Commit()
				f.Published(s, nil, conntrack.ScopeFlows)
				for _, k := range c.Keys(2, 3*n) {
					if tracked.Keys() < n && s.Decide(k).Action == filter.Allow {
						tracked.Track(s, k)
					}
				}
				added := *c.Policies[0]
				added.Name = "added"
				for on := true; b.Loop(); on = !on {
					b.StopTimer()
					if on {
						w.SetPolicy(netpol.Read(&added))
					} else {
						w.DeletePolicy(netpol.Ref(added.Namespace, added.Name))
					}
					s, changes := w.Commit()
					b.StartTimer()
					f.Published(s, changes, conntrack.ScopeFlows)
					if err := f.Sweep(b.Context()); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// trackable returns a snapshot of a cluster, and random keys.
func trackable(b *testing.B, o cluster.Options, n int) (*policy.Snapshot, []filter.Key) {
	c, w := cluster.New(1, o), policy.NewStore()
	c.Fill(w)
	s, _ := w.Commit()
	b.ResetTimer()
	return s, c.Keys(2, n)
}
