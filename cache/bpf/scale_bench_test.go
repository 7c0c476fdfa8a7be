package bpf_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	madeup "sluice/bench/testbed/cluster"
	"sluice/cache/bpf"
	"sluice/cache/conntrack"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// large is a cluster with 100,000 pods on 1,000 nodes, 10,000 policies and 10,000 ipBlocks.
type large struct {
	*madeup.Cluster
	*user
	follower *conntrack.Follower
}

func newLarge(b *testing.B) *large {
	b.Helper()
	c := madeup.New(1, madeup.Options{Pods: 100_000, Policies: 10_000, Namespaces: 2_000})
	c.Policies = append(c.Policies, c.Blocks(1, 10_000)...)
	var ranges []netip.Prefix
	for i := range 1000 {
		ranges = append(ranges, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(1 + i>>8), byte(i), 0}), 24))
	}
	for i, p := range c.Pods {
		p.Status.HostIP = fmt.Sprintf("172.16.%d.%d", i%1000>>8, i%1000&255)
		p.Status.HostIPs = []corev1.HostIP{{IP: p.Status.HostIP}}
	}
	l := &large{Cluster: c, user: newUser(b, newCache(b, bpf.Options{}), ranges)}
	l.follower = conntrack.Follow(conntrack.New(nil, conntrack.Marks{}, nil, nil), conntrack.NewTrackedFlows(), nil)
	c.Fill(l.store)
	l.commit(b)
	return l
}

// commit publishes the content of the store, as an agent does, and returns how long each step took.
func (l *large) commit(b *testing.B) (s spent) {
	began := time.Now()
	snapshot, changes := l.store.Commit()
	s.commit, s.changes = time.Since(began), len(changes)
	l.published.Publish(snapshot)
	began = time.Now()
	if err := l.cache.Publish(snapshot, changes); err != nil {
		b.Fatal(err)
	}
	s.publish = time.Since(began)
	stats, err := l.cache.Stats()
	if err != nil {
		b.Fatal(err)
	}
	s.grace = stats.Waited
	began = time.Now()
	l.follower.Published(snapshot, changes, conntrack.ScopeFlows)
	s.follow = time.Since(began)
	return s
}

// spent is the duration of the steps of a publication. publish includes grace, an RCU grace period.
type spent struct {
	commit, publish, grace, follow time.Duration
	changes                        int
}

// report reports the medians of publications in microseconds: on a busy machine, a few of them take
// several times as long. "lone" is all but the grace period.
func report(b *testing.B, all []spent) {
	b.Helper()
	median := func(of func(s spent) float64) float64 {
		var each []float64
		for _, s := range all {
			each = append(each, of(s))
		}
		slices.Sort(each)
		return each[len(each)/2]
	}
	for unit, of := range map[string]func(s spent) time.Duration{
		"commit-µs":  func(s spent) time.Duration { return s.commit },
		"publish-µs": func(s spent) time.Duration { return s.publish - s.grace },
		"grace-µs":   func(s spent) time.Duration { return s.grace },
		"follow-µs":  func(s spent) time.Duration { return s.follow },
		"lone-µs":    func(s spent) time.Duration { return s.commit + s.publish - s.grace + s.follow },
	} {
		b.ReportMetric(median(func(s spent) float64 { return float64(of(s).Nanoseconds()) / 1e3 }), unit)
	}
	b.ReportMetric(median(func(s spent) float64 { return float64(s.changes) }), "changes")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkLoneChange measures what it takes to put one change in force in a large cluster, beside the
// RCU grace period, in which the kernel decides by the new state already.
func BenchmarkLoneChange(b *testing.B) {
	l := newLarge(b)
	pod := func(i int) *corev1.Pod { return l.Pods[(i+1)*7%len(l.Pods)] }
	for _, of := range []struct {
		name   string
		change func(i int) // that is measured
		undo   func(i int)
	}{
		{"new pod",
			func(i int) { l.store.SetPod(kubepod.Read(pod(i))) },
			func(i int) { l.store.DeletePod(pod(i+1).Namespace, pod(i+1).Name) }},
		{"relabeled pod",
			func(i int) { l.store.SetPod(kubepod.Read(relabeled(pod(i)))) },
			func(i int) { l.store.SetPod(kubepod.Read(pod(i))) }},
		{"new CIDR", l.setBlock("20.77.0.0/17"), l.deleteBlock},
		{"new CIDR with 256 pods", l.setBlock("10.1.17.0/24"), l.deleteBlock},
		{"new CIDR with 65536 pods", l.setBlock("10.1.0.0/16"), l.deleteBlock},
		{"new CIDR with all pods", l.setBlock("10.0.0.0/8"), l.deleteBlock},
		{"new CIDR with all addresses", l.setBlock("0.0.0.0/0"), l.deleteBlock},
		{"removed CIDR", l.deleteBlock, l.setBlock("20.77.0.0/17")},
		{"removed CIDR with 256 pods", l.deleteBlock, l.setBlock("10.1.17.0/24")},
	} {
		b.Run(of.name, func(b *testing.B) {
			var all []spent
			of.undo(-1)
			l.commit(b)
			for i := range b.N {
				of.change(i)
				all = append(all, l.commit(b))
				of.undo(i)
				l.commit(b)
			}
			report(b, all)
		})
		l.store.DeletePolicy(netpol.Ref(l.Namespaces[0].Name, "lone"))
		l.Fill(l.store)
		l.commit(b)
	}
}

// relabeled returns a pod with the labels of another app.
func relabeled(p *corev1.Pod) *corev1.Pod {
	p = p.DeepCopy()
	p.Labels = maps.Clone(p.Labels)
	p.Labels["app"], p.Labels["tier"] = "other", "other"
	return p
}

// setBlock returns a function that sets a policy with one CIDR.
func (l *large) setBlock(cidr string) func(int) {
	p := netpol.Read(madeup.BlockPolicy(l.Namespaces[0].Name, "lone", cidr))
	return func(int) { l.store.SetPolicy(p) }
}

func (l *large) deleteBlock(int) { l.store.DeletePolicy(netpol.Ref(l.Namespaces[0].Name, "lone")) }
