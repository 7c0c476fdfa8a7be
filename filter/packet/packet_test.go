package packet_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/google/gopacket/layers"

	"sluice/filter"
	"sluice/filter/packet"
)

// sample is a packet and the expected result of Decode.
type sample struct {
	name string
	data []byte
	want string // the key, as Key.String writes it
	err  error
}

const (
	ends4 = "10.0.0.1 > 10.0.0.2 "
	ends6 = "fd00::1 > fd00::2 "
)

// Byte offsets of header fields that samples change.
const (
	v4Length, v4Proto     = 2, 9
	v6Length, v6Next      = 4, 6
	v4Upper, v6Upper      = 20, 40
	tcpOffset, udpLength  = 12, 4
	extLength             = 1
	protocolMobility      = layers.IPProtocol(135)
	protocolUnassigned    = layers.IPProtocol(200)
	protocolExperimental  = layers.IPProtocol(253)
	firstFragment, v4More = 0, layers.IPv4MoreFragments
)

func repeat(e extension, n int) []extension { return slices.Repeat([]extension{e}, n) }

// samples returns packets of every kind.
func samples() []sample {
	fragmented := func(offset uint16, more bool) func(*layers.IPv4) {
		return func(ip *layers.IPv4) {
			if ip.FragOffset = offset; more {
				ip.Flags = v4More
			}
		}
	}
	mapped := func(at int) []byte {
		p := v6(layers.IPProtocolTCP, tcp())
		copy(p[at:], []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1})
		return p
	}
	return []sample{
		{name: "IPv4 TCP", data: v4(layers.IPProtocolTCP, tcp(), nil), want: ends4 + "TCP 6379"},
		{name: "IPv4 UDP", data: v4(layers.IPProtocolUDP, udp(), nil), want: ends4 + "UDP 6379"},
		{name: "IPv4 SCTP", data: v4(layers.IPProtocolSCTP, sctp(), nil), want: ends4 + "SCTP 6379"},
		{name: "IPv4 ICMP", data: v4(layers.IPProtocolICMPv4, icmp(), nil), want: ends4 + "ICMP"},
		{name: "IPv4 ICMP without a body", data: v4(layers.IPProtocolICMPv4, nil, nil), want: ends4 + "ICMP"},
		{name: "IPv4 GRE", data: v4(layers.IPProtocolGRE, []byte{0, 0, 8, 0}, nil), want: ends4 + "47"},
		{name: "IPv4 options", data: v4(layers.IPProtocolTCP, tcp(), v4Options), want: ends4 + "TCP 6379"},
		{name: "IPv4 options that are garbage", data: with(v4(layers.IPProtocolTCP, tcp(), v4Options), 21, 0), want: ends4 + "TCP 6379"},
		{name: "IPv4 TCP options", data: v4(layers.IPProtocolTCP, tcpWithOptions(), nil), want: ends4 + "TCP 6379"},
		{name: "IPv4 first fragment", data: v4(layers.IPProtocolUDP, udp(), fragmented(firstFragment, true)), want: ends4 + "UDP 6379"},
		{name: "IPv4 first fragment of a long UDP datagram", data: with16(v4(layers.IPProtocolUDP, udp(), fragmented(firstFragment, true)), v4Upper+udpLength, 9000), want: ends4 + "UDP 6379"},
		{name: "IPv4 later fragment", data: v4(layers.IPProtocolUDP, udp(), fragmented(1, true)), want: ends4 + "UDP opaque"},
		{name: "IPv4 last fragment", data: v4(layers.IPProtocolTCP, tcp(), fragmented(8191, false)), want: ends4 + "TCP opaque"},
		{name: "IPv4 later fragment of ICMP", data: v4(layers.IPProtocolICMPv4, icmp(), fragmented(2, false)), want: ends4 + "ICMP opaque"},
		{name: "IPv4 AH is its own protocol", data: v4(layers.IPProtocolAH, append([]byte{6, 4}, append(make([]byte, 22), tcp()...)...), nil), want: ends4 + "51 opaque"},
		{name: "IPv4 ESP", data: v4(layers.IPProtocolESP, make([]byte, 32), nil), want: ends4 + "50 opaque"},
		{name: "IPv4 with an IPv6 extension header's number", data: v4(layers.IPProtocolIPv6Destination, tcp(), nil), want: ends4 + "60 opaque"},
		{name: "IPv4 unassigned protocol", data: v4(protocolUnassigned, tcp(), nil), want: ends4 + "200 opaque"},
		{name: "IPv4 header length of 16", data: with(v4(layers.IPProtocolTCP, tcp(), nil), 0, 0x44), want: ends4 + "TCP opaque"},
		{name: "IPv4 header length beyond the packet", data: with(v4(layers.IPProtocolTCP, tcp(), nil), 0, 0x4f), want: ends4 + "TCP opaque"},
		{name: "IPv4 total length within the header", data: with16(v4(layers.IPProtocolTCP, tcp(), nil), v4Length, 19), want: ends4 + "TCP opaque"},
		{name: "IPv4 total length within the TCP header", data: with16(v4(layers.IPProtocolTCP, tcp(), nil), v4Length, 39), want: ends4 + "TCP opaque"},
		{name: "IPv4 total length 0, BIG TCP", data: with16(v4(layers.IPProtocolTCP, tcp(), nil), v4Length, 0), want: ends4 + "TCP 6379"},
		{name: "IPv4 TCP segment of 8 bytes", data: v4(layers.IPProtocolTCP, tcp()[:8], nil), want: ends4 + "TCP opaque"},
		{name: "IPv4 TCP header length of 16", data: with(v4(layers.IPProtocolTCP, tcp(), nil), v4Upper+tcpOffset, 0x40), want: ends4 + "TCP opaque"},
		{name: "IPv4 TCP header length beyond the packet", data: with(v4(layers.IPProtocolTCP, tcp(), nil), v4Upper+tcpOffset, 0x60), want: ends4 + "TCP opaque"},
		{name: "IPv4 UDP length of 7", data: with16(v4(layers.IPProtocolUDP, udp(), nil), v4Upper+udpLength, 7), want: ends4 + "UDP opaque"},
		{name: "IPv4 UDP length of 0", data: with16(v4(layers.IPProtocolUDP, udp(), nil), v4Upper+udpLength, 0), want: ends4 + "UDP 6379"},
		{name: "IPv4 TCP to port 0", data: with16(v4(layers.IPProtocolTCP, tcp(), nil), v4Upper+2, 0), want: ends4 + "TCP 0"},

		{name: "IPv6 TCP", data: v6(layers.IPProtocolTCP, tcp()), want: ends6 + "TCP 6379"},
		{name: "IPv6 UDP", data: v6(layers.IPProtocolUDP, udp()), want: ends6 + "UDP 6379"},
		{name: "IPv6 SCTP", data: v6(layers.IPProtocolSCTP, sctp()), want: ends6 + "SCTP 6379"},
		{name: "IPv6 ICMPv6", data: v6(layers.IPProtocolICMPv6, icmp6()), want: ends6 + "ICMPv6"},
		{name: "IPv6 payload length 0, BIG TCP", data: with16(v6(layers.IPProtocolTCP, tcp()), v6Length, 0), want: ends6 + "TCP 6379"},
		{name: "IPv6 payload length 0, BIG TCP with its hop-by-hop header", data: with16(chain(layers.IPProtocolTCP, tcp(), hopByHop), v6Length, 0), want: ends6 + "TCP 6379"},
		{name: "IPv6 payload length within the TCP header", data: with16(v6(layers.IPProtocolTCP, tcp()), v6Length, 19), want: ends6 + "TCP opaque"},
		{name: "IPv6 hop-by-hop", data: chain(layers.IPProtocolTCP, tcp(), hopByHop), want: ends6 + "TCP 6379"},
		{name: "IPv6 destination options", data: chain(layers.IPProtocolUDP, udp(), destination), want: ends6 + "UDP 6379"},
		{name: "IPv6 routing", data: chain(layers.IPProtocolTCP, tcp(), routing), want: ends6 + "TCP 6379"},
		{name: "IPv6 AH", data: chain(layers.IPProtocolTCP, tcp(), auth), want: ends6 + "TCP 6379"},
		{name: "IPv6 ESP", data: v6(layers.IPProtocolESP, make([]byte, 32)), want: ends6 + "50 opaque"},
		{name: "IPv6 ESP behind hop-by-hop", data: chain(layers.IPProtocolESP, make([]byte, 32), hopByHop), want: ends6 + "50 opaque"},
		{name: "IPv6 all extension headers", data: chain(layers.IPProtocolSCTP, sctp(), hopByHop, destination, routing, fragment(0, true), auth, destination), want: ends6 + "SCTP 6379"},
		{name: "IPv6 12 extension headers", data: chain(layers.IPProtocolTCP, tcp(), repeat(destination, 12)...), want: ends6 + "TCP 6379"},
		{name: "IPv6 13 extension headers", data: chain(layers.IPProtocolTCP, tcp(), repeat(destination, 13)...), want: ends6 + "60 opaque"},
		{name: "IPv6 first fragment", data: chain(layers.IPProtocolUDP, udp(), fragment(0, true)), want: ends6 + "UDP 6379"},
		{name: "IPv6 atomic fragment", data: chain(layers.IPProtocolTCP, tcp(), fragment(0, false)), want: ends6 + "TCP 6379"},
		{name: "IPv6 later fragment", data: chain(layers.IPProtocolUDP, udp(), fragment(8, true)), want: ends6 + "UDP opaque"},
		{name: "IPv6 last fragment", data: chain(layers.IPProtocolTCP, tcp(), fragment(65528, false)), want: ends6 + "TCP opaque"},
		{name: "IPv6 later fragment that begins like a header", data: chain(layers.IPProtocolIPv6Destination, tcp(), fragment(8, false)), want: ends6 + "60 opaque"},
		{name: "IPv6 later fragment of ICMPv6", data: chain(layers.IPProtocolICMPv6, icmp6(), fragment(8, false)), want: ends6 + "ICMPv6 opaque"},
		{name: "IPv6 extension header beyond the packet", data: with(chain(layers.IPProtocolTCP, tcp(), hopByHop), v6Upper+extLength, 255), want: ends6 + "0 opaque"},
		{name: "IPv6 extension header that ends with the packet", data: with(chain(layers.IPProtocolTCP, tcp()[:8], hopByHop), v6Upper+extLength, 1), want: ends6 + "TCP opaque"},
		{name: "IPv6 no next header", data: chain(layers.IPProtocolNoNextHeader, tcp(), destination), want: ends6 + "59 opaque"},
		{name: "IPv6 mobility", data: v6(protocolMobility, tcp()), want: ends6 + "135 opaque"},
		{name: "IPv6 unknown extension header", data: v6(protocolExperimental, tcp()), want: ends6 + "253 opaque"},
		{name: "IPv6 TCP segment of 8 bytes", data: v6(layers.IPProtocolTCP, tcp()[:8]), want: ends6 + "TCP opaque"},
		{name: "IPv6 TCP header length beyond the packet", data: with(v6(layers.IPProtocolTCP, tcp()), v6Upper+tcpOffset, 0xf0), want: ends6 + "TCP opaque"},

		{name: "nothing", data: nil, err: packet.ErrTruncated},
		{name: "IPv4 header cut off", data: v4(layers.IPProtocolTCP, tcp(), nil)[:19], err: packet.ErrTruncated},
		{name: "IPv6 header cut off", data: v6(layers.IPProtocolTCP, tcp())[:39], err: packet.ErrTruncated},
		{name: "version 0", data: with(v4(layers.IPProtocolTCP, tcp(), nil), 0, 0x05), err: packet.ErrVersion},
		{name: "version 5", data: with(v4(layers.IPProtocolTCP, tcp(), nil), 0, 0x55), err: packet.ErrVersion},
		{name: "version 15", data: []byte{0xff}, err: packet.ErrVersion},
		{name: "IPv6 mapped source", data: mapped(8), err: packet.ErrMappedAddress},
		{name: "IPv6 mapped destination", data: mapped(24), err: packet.ErrMappedAddress},
	}
}

func TestDecode(t *testing.T) {
	d := packet.NewDecoder() // one for all: no packet may affect the result of the next
	for _, s := range samples() {
		t.Run(s.name, func(t *testing.T) {
			before := bytes.Clone(s.data)
			got, err := d.Decode(s.data)
			if !errors.Is(err, s.err) {
				t.Fatalf("error %v, want %v", err, s.err)
			}
			if !bytes.Equal(s.data, before) {
				t.Error("Decode has changed the packet")
			}
			if err != nil {
				if got != (packet.Packet{}) {
					t.Errorf("%v together with an error, want the zero Packet", got)
				}
				return
			}
			if got.Key.String() != s.want {
				t.Errorf("%s, want %s", got.Key, s.want)
			}
			if ported := got.Key.Transport == filter.Ported; ported != (got.SrcPort == srcPort) || !ported && got.SrcPort != 0 {
				t.Errorf("source port %d in a packet that is %s", got.SrcPort, got.Key.Transport)
			}
			if got.Key.Transport != filter.Ported && got.Key.Port != 0 {
				t.Errorf("port %d in a packet that is %s", got.Key.Port, got.Key.Transport)
			}
		})
	}
}

// NFQUEUE, or the sender, may cut off the end of a packet. Decode may then return an error, or
// an Opaque key with the right addresses. But if it returns a Ported or Portless key, the result
// must be the same as for the whole packet. The test cuts every sample at every length.
func TestDecodeCutOff(t *testing.T) {
	d := packet.NewDecoder()
	for _, s := range samples() {
		whole, wholeErr := d.Decode(s.data)
		for n := range s.data {
			got, err := d.Decode(s.data[:n])
			checkCut(t, s.name, n, got, err, whole, wholeErr)
		}
	}
}

// checkCut compares the result for the first n bytes of a packet with the result for all of
// it.
func checkCut(t *testing.T, name string, n int, got packet.Packet, err error, whole packet.Packet, wholeErr error) {
	t.Helper()
	switch {
	case wholeErr != nil && err == nil:
		t.Fatalf("%s, cut at %d: %v, but whole: %v", name, n, got, wholeErr)
	case err != nil:
		return
	case got.Key.Src != whole.Key.Src || got.Key.Dst != whole.Key.Dst:
		t.Fatalf("%s, cut at %d: %s, but whole: %s", name, n, got.Key, whole.Key)
	case got.Key.Transport != filter.Opaque && got != whole:
		t.Fatalf("%s, cut at %d: %v, but whole: %v", name, n, got, whole)
	}
}

// A packet that is cut off is Ported only if its fixed transport header is complete.
func TestDecodeNeedsTheFixedHeader(t *testing.T) {
	tests := []struct {
		name   string
		data   []byte
		ported int
	}{
		{"IPv4 TCP", v4(layers.IPProtocolTCP, tcpWithOptions(), nil), 20 + 20},
		{"IPv4 options TCP", v4(layers.IPProtocolTCP, tcp(), v4Options), 28 + 20},
		{"IPv4 UDP", v4(layers.IPProtocolUDP, udp(), nil), 20 + 8},
		{"IPv4 SCTP", v4(layers.IPProtocolSCTP, sctp(), nil), 20 + 12},
		{"IPv6 TCP", v6(layers.IPProtocolTCP, tcpWithOptions()), 40 + 20},
		{"IPv6 UDP", v6(layers.IPProtocolUDP, udp()), 40 + 8},
		{"IPv6 SCTP", v6(layers.IPProtocolSCTP, sctp()), 40 + 12},
		{"IPv6 chain", chain(layers.IPProtocolTCP, tcp(), hopByHop, routing, destination, fragment(0, true), auth), 40 + 8 + 8 + 16 + 8 + 24 + 20},
	}
	d := packet.NewDecoder()
	for _, test := range tests {
		for n := range len(test.data) + 1 {
			got, err := d.Decode(test.data[:n])
			if ported := err == nil && got.Key.Transport == filter.Ported; ported != (n >= test.ported) {
				t.Errorf("%s: with %d bytes ported is %t, want from %d bytes on", test.name, n, ported, test.ported)
			}
		}
	}
}

// Decode does not allocate, even for malformed and cut off packets: a flood of them must
// not fill the heap with garbage. Each is decoded ten times, so that a single allocation by
// the runtime in that time is rounded down to 0.
func TestDecodeAllocatesNothing(t *testing.T) {
	d := packet.NewDecoder()
	for _, s := range samples() {
		for n := range len(s.data) + 1 {
			cut := s.data[:n]
			if got := testing.AllocsPerRun(10, func() { _, _ = d.Decode(cut) }); got != 0 {
				t.Fatalf("%s, cut at %d: %v allocations", s.name, n, got)
			}
		}
	}
}

// NewKey and Decode return the same key for a flow.
func TestNewKeyEqualsDecodedKey(t *testing.T) {
	d := packet.NewDecoder()
	for _, test := range []struct {
		data []byte
		key  filter.Key
	}{
		{v4(layers.IPProtocolTCP, tcp(), nil), filter.NewKey(srcV4, dstV4, filter.TCP, dstPort)},
		{v6(layers.IPProtocolUDP, udp()), filter.NewKey(srcV6, dstV6, filter.UDP, dstPort)},
		{v4(layers.IPProtocolICMPv4, icmp(), nil), filter.NewKey(srcV4, dstV4, filter.ICMP, dstPort)},
		{v6(layers.IPProtocolICMPv6, icmp6()), filter.NewKey(srcV6, dstV6, filter.ICMPv6, 0)},
	} {
		if got, err := d.Decode(test.data); err != nil || got.Key != test.key {
			t.Errorf("%v, %v, want %v", got.Key, err, test.key)
		}
	}
}

// MidStream is set for packets that cannot be the first of a TCP or SCTP connection.
func TestMidStream(t *testing.T) {
	segment := func(flags byte) []byte { return with(tcp(), 13, flags) }
	chunk := func(kind byte) []byte { return with(sctp(), 12, kind) }
	d := packet.NewDecoder()
	for _, tt := range []struct {
		name string
		data []byte
		want bool
	}{
		{"SYN", v4(layers.IPProtocolTCP, segment(0x02), nil), false},
		{"SYN with ECN bits, PSH and URG", v6(layers.IPProtocolTCP, segment(0xea)), false},
		{"SYN+ACK", v4(layers.IPProtocolTCP, segment(0x12), nil), true},
		{"SYN+RST", v4(layers.IPProtocolTCP, segment(0x06), nil), true},
		{"SYN+FIN", v4(layers.IPProtocolTCP, segment(0x03), nil), true},
		{"ACK", v6(layers.IPProtocolTCP, segment(0x10)), true},
		{"RST", v4(layers.IPProtocolTCP, segment(0x04), nil), true},
		{"FIN", v4(layers.IPProtocolTCP, segment(0x01), nil), true},
		{"no flags", v6(layers.IPProtocolTCP, segment(0)), true},
		{"SYN behind extension headers", chain(layers.IPProtocolTCP, segment(0x02), hopByHop, destination), false},
		{"ACK behind extension headers", chain(layers.IPProtocolTCP, segment(0x10), hopByHop, destination), true},
		{"too many extension headers", chain(layers.IPProtocolTCP, segment(0x02), repeat(destination, 13)...), true},
		{"TCP header cut off", v4(layers.IPProtocolTCP, segment(0x02)[:16], nil), true},
		{"later fragment of TCP", v4(layers.IPProtocolTCP, segment(0x02), func(ip *layers.IPv4) { ip.FragOffset = 1 }), true},
		{"INIT", v4(layers.IPProtocolSCTP, chunk(1), nil), false},
		{"HEARTBEAT", v6(layers.IPProtocolSCTP, chunk(4)), true},
		{"SCTP without a chunk", v4(layers.IPProtocolSCTP, chunk(1)[:12], nil), true},
		{"UDP", v4(layers.IPProtocolUDP, udp(), nil), false},
		{"later fragment of UDP", v4(layers.IPProtocolUDP, udp(), func(ip *layers.IPv4) { ip.FragOffset = 1 }), false},
		{"ICMP", v4(layers.IPProtocolICMPv4, icmp(), nil), false},
		{"ESP", v6(layers.IPProtocolESP, make([]byte, 32)), false},
		{"IPv4 AH", v4(layers.IPProtocolAH, make([]byte, 32), nil), false},
	} {
		p, err := d.Decode(tt.data)
		if err != nil || p.MidStream != tt.want {
			t.Errorf("%s: %v, %v, want %v", tt.name, p.MidStream, err, tt.want)
		}
		if r := p.Reverse(); r.Src != p.Key.Dst || r.Dst != p.Key.Src || r.Transport != p.Key.Transport || r.Transport == filter.Ported && r.Port != p.SrcPort {
			t.Errorf("%s: the reverse of %v from %d is %v", tt.name, p.Key, p.SrcPort, r)
		}
	}
}
