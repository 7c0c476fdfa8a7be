package guard

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// BenchmarkPrograms measures, in the kernel, the cost of the programs for each frame, at the
// interfaces of an unknown pod, of a pod without policies and of an isolated pod, and at an
// interface that leads to no pod.
func BenchmarkPrograms(b *testing.B) {
	g := openGuard(b)
	src, dst := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	const isolated = podPort | primaryPort | isolatedEgress | isolatedIngress
	for _, bench := range []struct {
		name     string
		flags    uint32
		protocol byte
	}{{"unknown", 0, unix.IPPROTO_TCP}, {"open", podPort | primaryPort, unix.IPPROTO_TCP}, {"isolated", isolated, unix.IPPROTO_TCP},
		{"outside", outsidePort, unix.IPPROTO_TCP}, {"isolated-udp", isolated, unix.IPPROTO_UDP}, {"isolated-icmp", isolated, unix.IPPROTO_ICMP}} {
		frame := append(make([]byte, 12), 8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, bench.protocol, 0, 0)
		frame = append(append(append(frame, src.AsSlice()...), dst.AsSlice()...), make([]byte, 20)...)
		for _, direction := range []struct {
			name    string
			program *ebpf.Program
			pods    netip.Addr
		}{{"from", g.objs.SluiceFromPod, src}, {"to", g.objs.SluiceToPod, dst}} {
			st := newState()
			value := portValue{Flags: bench.flags}
			if bench.flags&primaryPort != 0 {
				value.ordinary([]netip.Addr{direction.pods}, nil)
			}
			st.ports[loopback] = value
			for _, a := range []netip.Addr{src, dst} {
				st.own[place{a.As16(), loopback}], st.known[a.As16()] = listed, ofPod
			}
			if err := g.objs.write(&g.written, st); err != nil {
				b.Fatal(err)
			}
			b.Run(bench.name+"/"+direction.name, func(b *testing.B) {
				verdict, took, err := direction.program.Benchmark(frame, b.N, nil)
				if err != nil {
					b.Fatal(err)
				}
				if int32(verdict) != -1 {
					b.Errorf("verdict %d, want -1: the frame must pass", int32(verdict))
				}
				b.ReportMetric(float64(took.Nanoseconds()), "ns/frame")
			})
		}
	}
}
