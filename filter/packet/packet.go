// Package packet decodes the bytes of an IP packet, as NFQUEUE delivers them, into
// the [filter.Key] that a verdict depends on.
//
// The bytes begin at the IP header and end where the queue's copy range or a hostile
// sender cuts them off. A transport header that is missing or malformed makes the key
// [filter.Opaque], a state of its own, so that it is never taken for port 0.
//
// gopacket decodes the fixed header of each protocol. Header lengths, options and
// chains of extension headers are walked here, because gopacket allocates for each
// hop-by-hop option and for the text of each error: a flood of malformed packets
// would fill the heap with garbage.
package packet

import (
	"errors"

	"github.com/google/gopacket/layers"

	"sluice/filter"
)

// The reasons why a packet has no key. They are created once, so that returning them does
// not allocate.
var (
	// ErrTruncated: the packet ends before its addresses do.
	ErrTruncated = errors.New("packet ends within the IP header")
	// ErrVersion: the version field is neither 4 nor 6.
	ErrVersion = errors.New("packet is neither IPv4 nor IPv6")
	// ErrMappedAddress: an IPv6 header holds an IPv4-mapped address (::ffff:0:0/96). Only
	// sockets may use such addresses, not packets. A filter.Key stores IPv4 addresses in this
	// form, so a key with the mapped address would name an IPv4 endpoint.
	ErrMappedAddress = errors.New("IPv6 header holds an IPv4-mapped address")
)

// Packet is a decoded packet.
type Packet struct {
	Key filter.Key
	// SrcPort is the source port; 0 unless Key.Transport is Ported. No verdict
	// depends on it, but a log line needs it to identify a connection.
	SrcPort uint16
	// MidStream is set for a TCP or SCTP packet that does not open a connection: a TCP
	// segment other than a plain SYN, an SCTP packet other than an INIT, or a packet that
	// cannot be decoded and may be one of these. If conntrack has no entry for the
	// connection, it treats the sender as the end that opened the connection. In fact, the
	// sender may be the end that accepted it.
	MidStream bool
}

// Reverse returns the key of the packets that answer p.
func (p *Packet) Reverse() filter.Key { return p.Key.Reverse(p.SrcPort) }

// Decoder decodes packets and reuses its memory. It is not safe for concurrent use:
// each queue worker has its own.
type Decoder struct {
	ip4  layers.IPv4
	ip6  layers.IPv6
	tcp  layers.TCP
	udp  layers.UDP
	sctp layers.SCTP

	// scratch holds the header that gopacket decodes; see fixed.
	scratch [ipv6HeaderLen]byte
}

// NewDecoder returns a Decoder for one goroutine.
func NewDecoder() *Decoder { return new(Decoder) }

// Decode decodes the packet that begins with the IP header at data[0].
//
// It returns [ErrTruncated], [ErrVersion] or [ErrMappedAddress], and the zero
// Packet, if the addresses cannot be decoded or must not be trusted. Otherwise the
// addresses are valid, Key.Protocol is the number of the upper layer, or of the first
// header that could not be skipped, and Key.Transport states how far the packet was
// decoded:
//
//   - Ported: TCP, UDP or SCTP, with the whole fixed header present. The packet may
//     be a first fragment, and its payload or TCP options may be missing because the
//     copy range cut them off.
//   - Portless: a protocol, assigned by IANA, whose ports no NetworkPolicy can
//     name. The header of the protocol may be missing.
//   - Opaque: all other packets, such as fragments other than the first; headers that
//     are cut off or announce an impossible length; ESP and other encrypted or
//     compressed payload; unknown extension headers, and chains of more than 12.
//
// The first 128 bytes are enough for all headers except long IPv6 extension headers.
// Decode does not change data or keep a reference to it, does not allocate, and takes
// bounded time for any packet.
func (d *Decoder) Decode(data []byte) (p Packet, err error) {
	if len(data) == 0 {
		return p, ErrTruncated
	}
	var upper span
	var found bool
	switch data[0] >> 4 {
	case 4:
		upper, found, err = d.ipv4(data, &p.Key)
	case 6:
		upper, found, err = d.ipv6(data, &p.Key)
	default:
		err = ErrVersion
	}
	if err == nil {
		d.transport(&p, upper, found)
	}
	return p, err
}

// fixed copies a fixed header to d.scratch, and returns the copy, which the caller may edit.
//
// The copy has two purposes. First, gopacket reads as many bytes as the length fields of a
// header announce, and allocates if it finds an error behind the header. So the caller checks
// the length fields itself, and then sets them in the copy to the length of the header alone.
// Second, gopacket keeps slices of its input, but the buffer of the packet is reused for the
// next packet. The copy costs about a nanosecond.
func (d *Decoder) fixed(header []byte) []byte {
	return d.scratch[:copy(d.scratch[:], header)]
}
