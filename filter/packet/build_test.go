package packet_test

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// The addresses of all packets that the tests build; their ports are srcPort and dstPort.
var (
	srcV4 = netip.MustParseAddr("10.0.0.1")
	dstV4 = netip.MustParseAddr("10.0.0.2")
	srcV6 = netip.MustParseAddr("fd00::1")
	dstV6 = netip.MustParseAddr("fd00::2")
)

const (
	srcPort = 40000
	dstPort = 6379
)

// serialize returns the bytes of the layers, laid out by gopacket, which fills in the
// lengths.
func serialize(parts ...gopacket.SerializableLayer) []byte {
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true}, parts...); err != nil {
		panic(err) // a test builds an impossible packet
	}
	return b.Bytes()
}

func tcp() []byte {
	return serialize(&layers.TCP{SrcPort: srcPort, DstPort: dstPort, SYN: true, Window: 1024})
}

// tcpWithOptions returns a TCP header with 8 bytes of options.
func tcpWithOptions() []byte {
	return serialize(&layers.TCP{SrcPort: srcPort, DstPort: dstPort, SYN: true, Options: []layers.TCPOption{
		{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 0xb4}},
		{OptionType: layers.TCPOptionKindSACKPermitted, OptionLength: 2},
	}})
}

func udp() []byte {
	return serialize(&layers.UDP{SrcPort: srcPort, DstPort: dstPort}, gopacket.Payload("abcd"))
}

func sctp() []byte {
	return serialize(&layers.SCTP{SrcPort: srcPort, DstPort: dstPort, VerificationTag: 7}, gopacket.Payload("abcd"))
}

func icmp() []byte {
	return serialize(&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0), Id: 1, Seq: 1})
}

func icmp6() []byte {
	return serialize(&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeEchoRequest, 0)}, gopacket.Payload("abcd"))
}

// v4 returns an IPv4 packet. If edit is not nil, it changes the header before the packet is
// serialized.
func v4(protocol layers.IPProtocol, body []byte, edit func(*layers.IPv4)) []byte {
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: protocol, SrcIP: srcV4.AsSlice(), DstIP: dstV4.AsSlice()}
	if edit != nil {
		edit(ip)
	}
	return serialize(ip, gopacket.Payload(body))
}

// v4Options gives the header 8 bytes of options.
func v4Options(ip *layers.IPv4) {
	ip.Options = []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}, {OptionType: 1}}
	ip.Options = append(ip.Options, layers.IPv4Option{OptionType: 1}, layers.IPv4Option{OptionType: 1}, layers.IPv4Option{OptionType: 0})
}

// v6 returns an IPv6 packet with the given body; "next" is the type of the header with which
// the body begins.
func v6(next layers.IPProtocol, body []byte) []byte {
	return serialize(
		&layers.IPv6{Version: 6, HopLimit: 64, NextHeader: next, SrcIP: srcV6.AsSlice(), DstIP: dstV6.AsSlice()},
		gopacket.Payload(body))
}

// extension is an IPv6 extension header without the type of the next header.
type extension struct {
	protocol layers.IPProtocol
	rest     []byte // all that follows the next-header byte
}

// Extension headers are laid out by hand, because gopacket writes only two kinds.
var (
	hopByHop    = extension{layers.IPProtocolIPv6HopByHop, []byte{0, 1, 4, 0, 0, 0, 0}}               // RFC 8200, 4.3: one PadN
	destination = extension{layers.IPProtocolIPv6Destination, append([]byte{1}, make([]byte, 14)...)} // RFC 8200, 4.6: 16 bytes, with 14 Pad1 options
	routing     = extension{layers.IPProtocolIPv6Routing, []byte{0, 4, 0, 0, 0, 0, 0}}                // RFC 8200, 4.4: no segments left
	// RFC 4302, 2.2: 24 bytes. The length field counts units of 4 bytes, minus 2.
	auth = extension{layers.IPProtocolAH, append([]byte{4}, make([]byte, 22)...)}
)

// fragment returns a fragment header (RFC 8200, 4.5); offset is in bytes.
func fragment(offset uint16, more bool) extension {
	rest := make([]byte, 7)
	if more {
		offset |= 1
	}
	binary.BigEndian.PutUint16(rest[1:], offset)
	return extension{layers.IPProtocolIPv6Fragment, rest}
}

// chain returns an IPv6 packet with extension headers before the upper-layer header.
func chain(protocol layers.IPProtocol, body []byte, headers ...extension) []byte {
	next := protocol
	for i := len(headers) - 1; i >= 0; i-- {
		body = append(append([]byte{byte(next)}, headers[i].rest...), body...)
		next = headers[i].protocol
	}
	return v6(next, body)
}

// with returns a copy of a packet with one byte changed.
func with(packet []byte, at int, value byte) []byte {
	c := append([]byte(nil), packet...)
	c[at] = value
	return c
}

// with16 returns a copy of a packet with one 16-bit field changed.
func with16(packet []byte, at int, value uint16) []byte {
	c := append([]byte(nil), packet...)
	binary.BigEndian.PutUint16(c[at:], value)
	return c
}
