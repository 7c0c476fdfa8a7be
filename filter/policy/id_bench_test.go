package policy_test

import (
	"net/netip"
	"testing"

	madeup "sluice/bench/testbed/cluster"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// withBlocks returns a store with 100,000 pods, 10,000 policies and 10,000 blocks.
func withBlocks() (*madeup.Cluster, *policy.Store) {
	c, w := madeup.New(1, madeup.Options{Pods: 100_000, Policies: 10_000, Namespaces: 2_000}), policy.NewStore()
	c.Fill(w)
	for _, p := range c.Blocks(1, 10_000) {
		w.SetPolicy(netpol.Read(p))
	}
	return c, w
}

// BenchmarkIdentify measures the look-up of an address among 100,000 pods and 10,000 blocks.
func BenchmarkIdentify(b *testing.B) {
	c, w := withBlocks()
	s, _ := w.Commit()
	r := newChance(2)
	pods, outside := make([]netip.Addr, 1<<16), make([]netip.Addr, 1<<16)
	for i := range pods {
		pods[i] = kubepod.Read(c.Pods[r.IntN(len(c.Pods))]).Addrs[0]
		outside[i] = netip.AddrFrom4([4]byte{byte(20 + r.IntN(2)), byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())})
	}
	for _, of := range []struct {
		name  string
		addrs []netip.Addr
	}{{"pods", pods}, {"outside", outside}, {"one", pods[:1]}, {"one-outside", outside[:1]}} {
		b.Run(of.name, func(b *testing.B) {
			i, found := 0, 0
			for b.Loop() {
				if e, _ := s.Identify(of.addrs[i%len(of.addrs)]); e != nil {
					found++
				}
				i++
			}
		})
	}
}

// BenchmarkCommitBlock sets and deletes a policy with one block, which is new, and commits after each.
func BenchmarkCommitBlock(b *testing.B) {
	c, w := withBlocks()
	w.Commit()
	for _, of := range []struct{ name, cidr string }{
		{"no-pods", "20.77.0.0/17"}, {"256-pods", "10.1.17.0/24"}, {"all-pods", "10.0.0.0/8"},
	} {
		b.Run(of.name, func(b *testing.B) {
			b.ReportAllocs()
			changes := 0
			for b.Loop() {
				w.SetPolicy(netpol.Read(madeup.BlockPolicy(c.Namespaces[0].Name, "lone", of.cidr)))
				_, set := w.Commit()
				w.DeletePolicy(netpol.Ref(c.Namespaces[0].Name, "lone"))
				_, deleted := w.Commit()
				changes += len(set) + len(deleted)
			}
			b.ReportMetric(float64(changes)/float64(b.N), "changes")
		})
	}
}

// BenchmarkCommitPodAmongBlocks deletes a pod, commits, sets it again, and commits.
func BenchmarkCommitPodAmongBlocks(b *testing.B) {
	c, w := withBlocks()
	w.Commit()
	b.ReportAllocs()
	for i := 0; b.Loop(); i += 7 {
		p := c.Pods[i%len(c.Pods)]
		w.DeletePod(p.Namespace, p.Name)
		w.Commit()
		w.SetPod(kubepod.Read(p))
		w.Commit()
	}
}

// BenchmarkMemory measures what 100,000 pods take, and what 10,000 blocks take more.
func BenchmarkMemory(b *testing.B) {
	c := madeup.New(1, madeup.Options{Pods: 100_000, Policies: 10_000, Namespaces: 2_000})
	more := c.Blocks(1, 10_000)
	for b.Loop() {
		pods := heapOf(c, c.Fill)
		all := heapOf(c, func(w *policy.Store) {
			c.Fill(w)
			for _, p := range more {
				w.SetPolicy(netpol.Read(p))
			}
		})
		b.ReportMetric(pods/100_000, "B/pod")
		b.ReportMetric((all-pods)/10_000, "B/block")
	}
}
