package conntrack_test

import (
	"net/netip"
	"testing"

	"sluice/cache/conntrack"
	"sluice/filter"
)

// BenchmarkParseEvents measures an event with counts and times, without the system call that reads it.
func BenchmarkParseEvents(b *testing.B) {
	for name, addrs := range map[string][2]string{"IPv4": {"10.0.0.1", "10.0.0.2"}, "IPv6": {"2001:db8::1", "2001:db8::2"}} {
		src, dst := netip.MustParseAddr(addrs[0]), netip.MustParseAddr(addrs[1])
		want := filter.NewKey(src, dst, filter.TCP, 80)
		b.Run(name, func(b *testing.B) {
			event := new(conntrack.Event)
			datagram := conntrack.AppendEvent(nil, src, dst, 40000, 80)
			b.ReportAllocs()
			for b.Loop() {
				if err := conntrack.ReadEvents(datagram, event, func(e *conntrack.Event) {
					if e.Key != want || e.SrcPort != 40000 || !e.Counted || e.Began.IsZero() || e.Received.Bytes != 4 {
						b.Fatalf("%+v", e)
					}
				}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
