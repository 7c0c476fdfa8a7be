// Package packet reads the bytes of an IP packet, as NFQUEUE hands them over,
// into the [filter.Key] that a verdict depends on.
//
// The bytes begin at the IP header and end wherever the queue's copy range or a
// hostile sender ends them. What cannot be read is [filter.Opaque], a state of
// its own, so that a header that is missing or malformed is never taken for
// port 0.
//
// gopacket reads the fixed header of each protocol. Everything that makes a
// parser walk (header lengths, options, chains of extension headers) is walked
// here, because there gopacket allocates: for each hop-by-hop option, and for
// the text of each error. A flood of malformed packets would then be a flood of
// garbage as well.
package packet

import (
	"errors"

	"github.com/google/gopacket/layers"

	"sluice/filter"
)

// The reasons for which a packet has no key. They are made once, so that a
// packet that earns one costs no allocation.
var (
	// ErrTruncated: the packet ends before its addresses do.
	ErrTruncated = errors.New("packet ends within the IP header")
	// ErrVersion: the version field is neither 4 nor 6.
	ErrVersion = errors.New("packet is neither IPv4 nor IPv6")
	// ErrMappedAddress: an IPv6 header holds an IPv4-mapped address
	// (::ffff:0:0/96). Those are meant for sockets and not for the wire; in a
	// key, which keeps IPv4 in that very form, the packet would pass for traffic
	// of the IPv4 endpoint with this number.
	ErrMappedAddress = errors.New("IPv6 header holds an IPv4-mapped address")
)

// Packet is what is read from a packet.
type Packet struct {
	Key filter.Key
	// SrcPort is the source port; 0 unless Key.Transport is Ported. No verdict
	// depends on it, but a log line does not name a connection without it.
	SrcPort uint16
	// MidStream is set for a packet of a protocol whose connections have a beginning
	// that is not one: a TCP segment other than a plain SYN, an SCTP packet other
	// than an INIT, and what cannot be read but may be either. Connection tracking
	// may take it for the first packet of a connection, though its sender may be the
	// end that was connected to.
	MidStream bool
}

// Reverse is the key of the packets that answer this one.
func (p *Packet) Reverse() filter.Key { return p.Key.Reverse(p.SrcPort) }

// Decoder decodes packets and reuses its memory for each. It is not safe for
// concurrent use: each queue worker has its own.
type Decoder struct {
	ip4  layers.IPv4
	ip6  layers.IPv6
	tcp  layers.TCP
	udp  layers.UDP
	sctp layers.SCTP

	// scratch holds the header that gopacket reads; see fixed.
	scratch [ipv6HeaderLen]byte
}

// NewDecoder returns a Decoder for one goroutine.
func NewDecoder() *Decoder { return new(Decoder) }

// Decode reads the packet that begins with the IP header at data[0].
//
// It returns [ErrTruncated], [ErrVersion] or [ErrMappedAddress], and the zero
// Packet, if the addresses cannot be read or must not be believed. In every
// other packet the addresses are good, Key.Protocol is the number of the upper
// layer, or of the first header that could not be stepped over, and
// Key.Transport says what is known of the ports:
//
//   - Ported: TCP, UDP or SCTP, with the whole fixed header present. First
//     fragments count, and so do packets whose payload or TCP options the copy
//     range cut off.
//   - Portless: a protocol, assigned by IANA, whose ports no NetworkPolicy can
//     name. None of its own header has to be present.
//   - Opaque: all else, among it fragments other than the first; headers that
//     are cut off or announce an impossible length; ESP and other encrypted or
//     compressed payload; extension headers that are unknown, and chains of more
//     than 12 of them.
//
// The first 128 bytes are enough for every header but long IPv6 extension
// headers. Decode neither changes data nor keeps a reference to it, does not
// allocate, and takes bounded time whatever the packet says.
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

// fixed copies a fixed header to where it can be edited, and returns the copy.
//
// gopacket goes on from a fixed header to whatever its length fields announce,
// and allocates if it does not like what it finds there. The caller therefore
// judges those fields itself and overwrites them in the copy, with a length that
// ends with the header. The copy costs about a nanosecond; and because gopacket
// keeps slices of what it read, it also frees the caller's buffer for the next
// packet.
func (d *Decoder) fixed(header []byte) []byte {
	return d.scratch[:copy(d.scratch[:], header)]
}
