package policy_test

import (
	"fmt"
	"runtime"
	"testing"

	corev1 "k8s.io/api/core/v1"

	madeup "sluice/bench/testbed/cluster"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// sizes returns the clusters to measure: 100 to 100,000 pods, in one namespace and spread
// over many.
func sizes() []madeup.Options {
	var all []madeup.Options
	for _, pods := range []int{100, 1_000, 10_000, 100_000} {
		for _, namespaces := range []int{1, pods / 50} {
			all = append(all, madeup.Options{Pods: pods, Policies: pods / 10, Namespaces: namespaces})
		}
	}
	return all
}

func sizeName(o madeup.Options) string {
	spread := "one"
	if o.Namespaces > 1 {
		spread = "spread"
	}
	return fmt.Sprintf("%d/%d/%s", o.Pods, o.Policies, spread)
}

// bySize runs a benchmark at each size, on a store with the cluster.
func bySize(b *testing.B, run func(b *testing.B, c *madeup.Cluster, w *policy.Store, s *policy.Snapshot)) {
	for _, o := range sizes() {
		b.Run(sizeName(o), func(b *testing.B) {
			c, w := madeup.New(1, o), policy.NewStore()
			c.Fill(w)
			s, _ := w.Commit()
			b.ReportAllocs()
			run(b, c, w, s)
		})
	}
}

// BenchmarkDecide measures a decision without a flow cache. The flows are between random
// pods, so that the processor's caches do not help either.
func BenchmarkDecide(b *testing.B) {
	bySize(b, func(b *testing.B, c *madeup.Cluster, _ *policy.Store, s *policy.Snapshot) {
		keys := c.Keys(1, 1<<16)
		i, allowed := 0, 0
		for b.Loop() {
			allowed += int(s.Decide(keys[i%len(keys)]).Action)
			i++
		}
		b.ReportMetric(100*float64(allowed)/float64(b.N), "%allowed")
	})
}

// BenchmarkCompile measures the start of an agent: all objects are set in a new store, and
// the first snapshot is compiled. heap-bytes is the memory that the store and the snapshot
// keep.
func BenchmarkCompile(b *testing.B) {
	for _, o := range sizes() {
		b.Run(sizeName(o), func(b *testing.B) {
			c := madeup.New(1, o)
			b.ReportAllocs()
			for b.Loop() {
				w := policy.NewStore()
				c.Fill(w)
				w.Commit()
			}
			b.StopTimer()
			b.ReportMetric(retained(c), "heap-bytes")
		})
	}
}

// retained returns by how many bytes the heap grows when a cluster is compiled. It does not
// count the API objects.
func retained(c *madeup.Cluster) float64 { return heapOf(c, c.Fill) }

// heapOf returns by how many bytes the heap grows when fill sets objects in a store and the
// store commits. It does not count c, to which these objects may refer.
func heapOf(c *madeup.Cluster, fill func(*policy.Store)) float64 {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	w := policy.NewStore()
	fill(w)
	s, _ := w.Commit()
	runtime.GC()
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(w)
	runtime.KeepAlive(s)
	runtime.KeepAlive(c)
	return float64(after.HeapAlloc) - float64(before.HeapAlloc)
}

// BenchmarkCommitPod deletes a pod, commits, sets it again, and commits.
func BenchmarkCommitPod(b *testing.B) {
	bySize(b, func(b *testing.B, c *madeup.Cluster, w *policy.Store, _ *policy.Snapshot) {
		i := 0
		for b.Loop() {
			p := c.Pods[i%len(c.Pods)]
			w.DeletePod(p.Namespace, p.Name)
			w.Commit()
			w.SetPod(kubepod.Read(p))
			w.Commit()
			i += 7
		}
	})
}

// BenchmarkCommitPolicy deletes a policy, commits, sets it again, and commits.
func BenchmarkCommitPolicy(b *testing.B) {
	bySize(b, func(b *testing.B, c *madeup.Cluster, w *policy.Store, _ *policy.Snapshot) {
		i := 0
		for b.Loop() {
			p := c.Policies[i%len(c.Policies)]
			w.DeletePolicy(netpol.Ref(p.Namespace, p.Name))
			w.Commit()
			w.SetPolicy(netpol.Read(p))
			w.Commit()
			i += 7
		}
	})
}

// BenchmarkCommitNamespace removes a namespace's labels, commits, restores them, and
// commits. Each change touches all pods of the namespace.
func BenchmarkCommitNamespace(b *testing.B) {
	bySize(b, func(b *testing.B, c *madeup.Cluster, w *policy.Store, _ *policy.Snapshot) {
		without := make([]*corev1.Namespace, len(c.Namespaces))
		for i, ns := range c.Namespaces {
			without[i] = ns.DeepCopy()
			without[i].Labels = nil
		}
		i := 0
		for b.Loop() {
			w.SetNamespace(without[i%len(without)].Name, without[i%len(without)].Labels)
			w.Commit()
			w.SetNamespace(c.Namespaces[i%len(without)].Name, c.Namespaces[i%len(without)].Labels)
			w.Commit()
			i += 7
		}
	})
}
