package policy_test

import (
	"fmt"
	"runtime"
	"syscall"
	"testing"

	"sluice/bench/testbed/worstcase"
	"sluice/filter/policy"
	"sluice/filter/policy/netpol"
)

// cpuTime returns the CPU time of the process in seconds. On a busy machine, wall-clock time
// measures other processes too.
func cpuTime(b *testing.B) float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// BenchmarkWorst compiles the worst known policies at several sizes.
func BenchmarkWorst(b *testing.B) {
	for _, m := range worstcase.Known() {
		for _, size := range []int{96 << 10, 384 << 10, worstcase.Largest} {
			b.Run(fmt.Sprintf("%s/%dK", m.Name, size>>10), func(b *testing.B) {
				pods, p := m.Pods(), m.OfSize("worst", size)
				if len(pods) == 0 {
					b.Fatal("no pod is selected")
				}
				var last usage
				began := cpuTime(b)
				for b.Loop() {
					t, w, s := measure(pods, p)
					runtime.KeepAlive(w)
					runtime.KeepAlive(s)
					last = t
				}
				b.ReportMetric((cpuTime(b)-began)/float64(b.N)*1000, "cpu-ms/op")
				b.ReportMetric(float64(last.kept)/(1<<20), "kept-MiB")
				b.ReportMetric(float64(last.allocated)/(1<<20), "allocated-MiB")
				b.ReportMetric(float64(policy.CostOf(netpol.Read(p)))/(1<<20), "estimated-MiB")
				b.ReportMetric(float64(p.Size())/(1<<10), "KiB")
			})
		}
	}
}
