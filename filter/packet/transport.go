package packet

import (
	"encoding/binary"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"sluice/filter"
)

// Lengths of the fixed headers, in bytes (RFC 9293, 3.1; RFC 768; RFC 9260, 3.1).
//
// Four bytes would be enough to read the ports, but a header shorter than these lengths counts
// as cut off. No receiver accepts such a packet, and an attacker can send a first fragment that
// small so that the next fragment overwrites the rest of the header (RFC 1858).
const (
	tcpHeaderLen  = 20
	udpHeaderLen  = 8
	sctpHeaderLen = 12
)

// The flags in byte 13 of a TCP header that show whether it opens a connection (RFC 9293,
// 3.1), and the type of the chunk that opens an SCTP association (RFC 9260, 3.2).
const (
	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpRST = 0x04
	tcpACK = 0x10

	sctpINIT = 1
)

// Protocols without a name in gopacket, from IANA's "Assigned Internet Protocol
// Numbers".
const (
	protocolIPComp   = 108
	protocolMobility = 135
	protocolHIP      = 139
	protocolShim6    = 140
	protocolWESP     = 141
	lastAssigned     = 147
)

// transport sets the ports, Transport and MidStream of a packet whose protocol is known. If
// "found" is true, the span "upper" begins with the packet's transport header.
func (d *Decoder) transport(p *Packet, upper span, found bool) {
	switch {
	case !found || isOpaque(layers.IPProtocol(p.Key.Protocol)):
		p.MidStream = !found && hidesBeginning(layers.IPProtocol(p.Key.Protocol))
	case p.Key.Protocol.HasPorts():
		if src, dst, ok := d.ports(p.Key.Protocol, upper); ok {
			p.SrcPort, p.Key.Port, p.Key.Transport = src, dst, filter.Ported
		}
		p.MidStream = !begins(p.Key.Protocol, upper)
	default:
		p.Key.Transport = filter.Portless
	}
}

// begins reports whether a packet may be the first of a connection. Every UDP datagram may.
func begins(protocol filter.Protocol, s span) bool {
	switch protocol {
	case filter.TCP:
		return len(s.captured) >= tcpHeaderLen && s.captured[13]&(tcpFIN|tcpSYN|tcpRST|tcpACK) == tcpSYN
	case filter.SCTP:
		return len(s.captured) > sctpHeaderLen && s.captured[sctpHeaderLen] == sctpINIT
	}
	return true
}

// hidesBeginning reports whether a packet whose transport header was not found may belong
// to TCP or SCTP, whose connections have an opening packet.
func hidesBeginning(protocol layers.IPProtocol) bool {
	return protocol == layers.IPProtocolTCP || protocol == layers.IPProtocolSCTP || isExtension(protocol)
}

// isOpaque reports whether a header of the given protocol hides the upper layer, or may hide it.
// These are extension headers that the decoder has not skipped, encryption, compression, and
// unassigned numbers, which may become extension headers.
func isOpaque(protocol layers.IPProtocol) bool {
	switch protocol {
	case layers.IPProtocolIPv6HopByHop, layers.IPProtocolIPv6Routing, layers.IPProtocolIPv6Fragment,
		layers.IPProtocolIPv6Destination, layers.IPProtocolNoNextHeader, layers.IPProtocolAH,
		layers.IPProtocolESP, protocolIPComp, protocolMobility, protocolHIP, protocolShim6, protocolWESP:
		return true
	}
	return protocol > lastAssigned
}

// ports decodes source and destination port. ok is false if the header is cut off or
// invalid.
func (d *Decoder) ports(protocol filter.Protocol, s span) (src, dst uint16, ok bool) {
	switch protocol {
	case filter.TCP:
		return d.tcpPorts(s)
	case filter.UDP:
		return d.udpPorts(s)
	case filter.SCTP:
		return d.sctpPorts(s)
	}
	return 0, 0, false
}

// tcpPorts does not decode the TCP options, because receivers ignore malformed ones. The
// options need not be captured, but must fit into the packet as sent.
func (d *Decoder) tcpPorts(s span) (src, dst uint16, ok bool) {
	if len(s.captured) < tcpHeaderLen {
		return 0, 0, false
	}
	headerLen := int(s.captured[12]>>4) * 4
	if headerLen < tcpHeaderLen || headerLen > s.sent {
		return 0, 0, false
	}
	fixed := d.fixed(s.captured[:tcpHeaderLen])
	fixed[12] = tcpHeaderLen / 4 << 4
	if d.tcp.DecodeFromBytes(fixed, gopacket.NilDecodeFeedback) != nil {
		return 0, 0, false
	}
	return uint16(d.tcp.SrcPort), uint16(d.tcp.DstPort), true
}

// udpPorts accepts length 0, which marks a jumbogram (RFC 2675, 4), and a length beyond the
// end of the packet, which is valid in a first fragment.
func (d *Decoder) udpPorts(s span) (src, dst uint16, ok bool) {
	if len(s.captured) < udpHeaderLen {
		return 0, 0, false
	}
	if n := binary.BigEndian.Uint16(s.captured[4:]); n != 0 && n < udpHeaderLen {
		return 0, 0, false
	}
	fixed := d.fixed(s.captured[:udpHeaderLen])
	if d.udp.DecodeFromBytes(fixed, gopacket.NilDecodeFeedback) != nil {
		return 0, 0, false
	}
	return uint16(d.udp.SrcPort), uint16(d.udp.DstPort), true
}

func (d *Decoder) sctpPorts(s span) (src, dst uint16, ok bool) {
	if len(s.captured) < sctpHeaderLen {
		return 0, 0, false
	}
	fixed := d.fixed(s.captured[:sctpHeaderLen])
	if d.sctp.DecodeFromBytes(fixed, gopacket.NilDecodeFeedback) != nil {
		return 0, 0, false
	}
	return uint16(d.sctp.SrcPort), uint16(d.sctp.DstPort), true
}
