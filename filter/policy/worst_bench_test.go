package policy_test

import (
	"fmt"
	"runtime"
	"testing"

	"sluice/bench/worst"
	"sluice/filter/policy"
)

// monsters are the recipes of the curve: those that were worst, by what makes them
// large.
var monsters = []struct {
	name string
	worst.Recipe
}{
	{"nested-ports", worst.Recipe{Layout: worst.Nested, Ports: 1, Blocks: 5, Identities: 1}},
	{"nested-ports-1-block", worst.Recipe{Layout: worst.Nested, Ports: 1, Blocks: 1, Identities: 1}},
	{"overlapping-ports-products", worst.Recipe{Layout: worst.Overlapping, Ports: 12, Blocks: 12, Identities: 1}},
	{"names-products", worst.Recipe{Names: 12, Blocks: 12, Identities: 1}},
	{"NotIn", worst.Recipe{Layout: worst.Alike, Ports: 1, NotIn: 100, Values: 1, Identities: 3000}},
	{"Exists", worst.Recipe{Layout: worst.Alike, Ports: 1, Exists: 100, Absent: 100, Identities: 3000}},
	{"namespaces", worst.Recipe{Layout: worst.Alike, Ports: 1, Namespaces: 100, Identities: 1000, PodNamespaces: 1000}},
	{"namespaces-and-pods", worst.Recipe{Layout: worst.Alike, Ports: 1, Both: 100, Identities: 1000, PodNamespaces: 1000}},
	{"excepts", worst.Recipe{Layout: worst.Nested, Ports: 1, Blocks: 1, Excepts: 50, Identities: 1}},
}

// BenchmarkWorst is what the worst policies take to compile, by their size.
func BenchmarkWorst(b *testing.B) {
	for _, m := range monsters {
		for _, size := range []int{96 << 10, 384 << 10, worst.Largest} {
			b.Run(fmt.Sprintf("%s/%dK", m.name, size>>10), func(b *testing.B) {
				pods, p := m.Pods(), m.OfSize("worst", size)
				if len(pods) == 0 {
					b.Fatal("no pod is selected")
				}
				var last taken
				for b.Loop() {
					t, w, s := take(pods, p)
					runtime.KeepAlive(w)
					runtime.KeepAlive(s)
					last = t
				}
				b.ReportMetric(float64(last.kept)/(1<<20), "kept-MiB")
				b.ReportMetric(float64(last.allocated)/(1<<20), "allocated-MiB")
				b.ReportMetric(float64(policy.CostOf(&p.Spec))/(1<<20), "estimated-MiB")
				b.ReportMetric(float64(p.Size())/(1<<10), "KiB")
			})
		}
	}
}
