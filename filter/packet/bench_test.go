package packet_test

import (
	"testing"

	"github.com/google/gopacket/layers"

	"sluice/filter/packet"
)

func BenchmarkDecode(b *testing.B) {
	for _, bench := range []struct {
		name string
		data []byte
	}{
		{"v4", v4(layers.IPProtocolTCP, tcpWithOptions(), nil)},
		{"v4-options", v4(layers.IPProtocolTCP, tcpWithOptions(), v4Options)},
		{"v4-udp", v4(layers.IPProtocolUDP, udp(), nil)},
		{"v6", v6(layers.IPProtocolTCP, tcpWithOptions())},
		{"v6-hop-by-hop", chain(layers.IPProtocolTCP, tcpWithOptions(), hopByHop)},
		{"v6-12-extensions", chain(layers.IPProtocolTCP, tcpWithOptions(), repeat(destination, 12)...)},
		{"cut-off", v4(layers.IPProtocolTCP, tcp()[:8], nil)},
	} {
		b.Run(bench.name, func(b *testing.B) {
			d := packet.NewDecoder()
			b.ReportAllocs()
			for b.Loop() {
				_, _ = d.Decode(bench.data)
			}
		})
	}
}
