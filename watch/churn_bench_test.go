package watch_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"sluice/bench/worst"
	"sluice/filter/policy"
	"sluice/watch"
)

// BenchmarkBesideChurn is how long a change of one tenant's policy takes until it is in
// force, while another tenant's policy of 180 KB of JSON changes three times a second.
func BenchmarkBesideChurn(b *testing.B) {
	for _, recipe := range worst.Known() {
		b.Run(recipe.Name, func(b *testing.B) {
			world := policy.NewWorld()
			for _, p := range recipe.Pods() {
				world.SetPod(p)
			}
			published := make(chan uint64, 1000)
			k := watch.New(world, new(policy.Published), watch.Options{OnPublish: func(_ context.Context, s *policy.Snapshot, _ policy.Changes, _ bool) {
				published <- s.Number()
			}})
			feed := make(feed)
			ctx, stop := context.WithCancel(b.Context())
			defer stop()
			go func() { _ = k.Run(ctx, feed) }()
			churn := [2]watch.Update{}
			for i := range churn {
				p := recipe.OfSize("churn", 80<<10-1000*i)
				churn[i] = func(w *policy.World) { w.SetPolicy(p) }
			}
			var delays []time.Duration
			for i := 0; b.Loop(); i++ {
				other := worst.Recipe{Layout: worst.Apart, Ports: 1, Blocks: 1}.Policy("other", 1+i%5)
				other.Namespace = "other"
				feed <- churn[i%2] // the worst moment: right before
				began := time.Now()
				done := make(chan struct{})
				feed <- func(w *policy.World) { w.SetPolicy(other); close(done) }
				<-done
				for len(published) > 0 {
					<-published
				}
				<-published
				delays = append(delays, time.Since(began))
				time.Sleep(time.Second/3 - time.Since(began))
			}
			slices.Sort(delays)
			b.ReportMetric(float64(delays[len(delays)/2])/1e6, "median-ms")
			b.ReportMetric(float64(delays[len(delays)-1])/1e6, "most-ms")
			b.ReportMetric(0, "ns/op")
		})
	}
}
