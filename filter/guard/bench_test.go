package guard

import (
	"net/netip"
	"os"
	"testing"

	"github.com/cilium/ebpf"
)

// What a frame costs in the programs, as the kernel measures it: of a pod that nothing
// is known of, of one without policies, and of one that they isolate.
func BenchmarkPrograms(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root: it loads programs")
	}
	g, err := Open(0x10, nil)
	if err != nil {
		b.Skipf("the kernel does not take the programs: %v", err)
	}
	b.Cleanup(func() { _ = g.Close() })
	const loopback = 1 // where the kernel runs them
	src, dst := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	frame := append(make([]byte, 12), 8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0)
	frame = append(append(append(frame, src.AsSlice()...), dst.AsSlice()...), make([]byte, 20)...)
	for _, bench := range []struct {
		name  string
		flags uint32
	}{{"unknown", 0}, {"open", podPort | primaryPort}, {"isolated", podPort | primaryPort | isolatedEgress | isolatedIngress}} {
		st := newState()
		st.ports[loopback] = bench.flags
		for _, a := range []netip.Addr{src, dst} {
			st.own[place{a.As16(), loopback}], st.known[a.As16()] = listed, ofPod
		}
		if err := g.objs.write(&g.written, st); err != nil {
			b.Fatal(err)
		}
		for name, program := range map[string]*ebpf.Program{"from": g.objs.FromPod, "to": g.objs.ToPod} {
			b.Run(bench.name+"/"+name, func(b *testing.B) {
				verdict, took, err := program.Benchmark(frame, b.N, nil)
				if err != nil {
					b.Fatal(err)
				}
				if int32(verdict) != -1 {
					b.Errorf("the frame gets %d, and should pass", int32(verdict))
				}
				b.ReportMetric(float64(took.Nanoseconds()), "ns/frame")
			})
		}
	}
}
