package packet

import (
	"encoding/binary"
	"math"
	"net/netip"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"sluice/filter"
)

// Lengths of the fixed headers, in bytes (RFC 791, 3.1; RFC 8200, 3).
const (
	ipv4HeaderLen = 20
	ipv6HeaderLen = 40
)

// span is the part of a packet from some header to the end.
type span struct {
	captured []byte // the bytes that NFQUEUE has copied: the kernel may cut off the end of the packet
	sent     int    // length of the span on the wire, in bytes: at least len(captured)
}

// newSpan returns the span that begins with data; "announced" is its length in bytes according
// to the IP header. If data is longer, newSpan removes the bytes after that length: they are
// padding of the link layer.
//
// Offloading leaves length 0 in the header if the packet is too long for the field (IPv4
// and IPv6 "BIG TCP", IPv6 jumbograms of RFC 2675). In that case the length is unknown. A
// sender cannot use this to smuggle bytes, because the kernel cuts any other packet of
// length 0 down to its header, or drops it, before netfilter.
func newSpan(data []byte, announced int) span {
	if announced == 0 {
		return span{captured: data, sent: math.MaxInt}
	}
	return span{captured: data[:min(announced, len(data))], sent: announced}
}

// skip returns the span after the next n bytes, and whether all of these bytes were captured.
func (s span) skip(n int) (span, bool) {
	if len(s.captured) < n {
		return s, false
	}
	return span{captured: s.captured[n:], sent: s.sent - n}, true
}

// ipv4 decodes an IPv4 header (RFC 791) into the addresses and the protocol of a key. It
// returns the packet from the upper layer's header on; "found" is false if that header is not
// in this packet or cannot be found. Options are skipped: no verdict depends on them.
//
// An Authentication Header is not skipped, unlike IPv6 extension headers. The kernel's
// connection tracking takes it for the protocol of the flow, so that all AH packets between
// two addresses are one connection. A verdict about the port behind one AH header would
// apply to all ports of that connection.
func (d *Decoder) ipv4(data []byte, k *filter.Key) (upper span, found bool, err error) {
	if len(data) < ipv4HeaderLen {
		return upper, false, ErrTruncated
	}
	fixed := d.fixed(data[:ipv4HeaderLen])
	fixed[0] = 4<<4 | ipv4HeaderLen/4
	binary.BigEndian.PutUint16(fixed[2:], ipv4HeaderLen)
	if d.ip4.DecodeFromBytes(fixed, gopacket.NilDecodeFeedback) != nil {
		return upper, false, ErrTruncated
	}
	k.Src = netip.AddrFrom4([4]byte(d.ip4.SrcIP)).As16()
	k.Dst = netip.AddrFrom4([4]byte(d.ip4.DstIP)).As16()
	k.Protocol = filter.Protocol(d.ip4.Protocol)

	headerLen := int(data[0]&0x0f) * 4
	totalLen := int(binary.BigEndian.Uint16(data[2:]))
	upper, whole := newSpan(data, totalLen).skip(headerLen)
	return upper, whole && headerLen >= ipv4HeaderLen && d.ip4.FragOffset == 0, nil
}

// ipv6 decodes an IPv6 header and its extension headers (RFC 8200), with the same results
// as ipv4.
//
// gopacket decodes only the addresses of the fixed header. It would also decode a
// hop-by-hop header, option by option, and it takes length 0 for an error. ipv6 therefore
// decodes the next header and the length itself, and overwrites both fields in the copy
// that gopacket gets. The destination is the one in the fixed header, even if a routing
// header lists others, because a policy applies to the packet on its way to the next node.
func (d *Decoder) ipv6(data []byte, k *filter.Key) (upper span, found bool, err error) {
	if len(data) < ipv6HeaderLen {
		return upper, false, ErrTruncated
	}
	fixed := d.fixed(data[:ipv6HeaderLen])
	binary.BigEndian.PutUint16(fixed[4:], 1) // not 0, which gopacket takes for an error
	fixed[6] = byte(layers.IPProtocolNoNextHeader)
	if d.ip6.DecodeFromBytes(fixed, gopacket.NilDecodeFeedback) != nil {
		return upper, false, ErrTruncated
	}

	src, dst := [16]byte(d.ip6.SrcIP), [16]byte(d.ip6.DstIP)
	if netip.AddrFrom16(src).Is4In6() || netip.AddrFrom16(dst).Is4In6() {
		return upper, false, ErrMappedAddress
	}
	payloadLen := int(binary.BigEndian.Uint16(data[4:]))
	body := newSpan(data[ipv6HeaderLen:], payloadLen)
	next, upper, found := skipExtensions(layers.IPProtocol(data[6]), body)
	k.Src, k.Dst, k.Protocol = src, dst, filter.Protocol(next)
	return upper, found, nil
}
