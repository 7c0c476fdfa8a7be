package reach_test

import (
	"fmt"
	"testing"

	"sluice/bench/testbed/cluster"
	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
	"sluice/filter/policy/reach"
)

// BenchmarkAllPairs finds who reaches whom among 1,000 pods of 100 workloads.
func BenchmarkAllPairs(b *testing.B) {
	c := cluster.New(1, cluster.Options{Pods: 1000, Policies: 300, Namespaces: 20, DualStack: true})
	pods := kubepod.ReadAll(c.Pods)
	for i, p := range pods {
		p.Owner = policy.Ref{Kind: "StatefulSet", Namespace: p.Namespace, Name: fmt.Sprint("app", i/10)}
	}
	v := inventory.New(inventory.Objects{Namespaces: c.Namespaces, Pods: pods, Policies: netpol.ReadAll(c.Policies)})
	b.ReportAllocs()
	for b.Loop() {
		m := reach.New(v)
		for _, from := range m.Parties {
			for _, to := range m.Parties {
				m.Between(from, to)
			}
		}
		b.ReportMetric(float64(len(m.Parties)), "parties")
	}
}
