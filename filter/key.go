// Package filter defines the types that all of Sluice shares: the [Key] of a flow, and the
// [Verdict] about it.
//
// A packet passes these packages: iptables keeps the rules that send it to a queue, queue
// reads it, engine evaluates it, packet decodes its bytes into a Key, and policy returns
// the verdict about the Key. This package, packet and policy are pure: they use neither
// the API server nor the kernel, have no clock and do no I/O.
package filter

import (
	"net/netip"
	"strconv"
	"strings"
)

// Protocol is an IP protocol number (IANA "Assigned Internet Protocol Numbers").
type Protocol uint8

// The protocols that NetworkPolicy can name, and ICMP.
const (
	ICMP   Protocol = 1
	TCP    Protocol = 6
	UDP    Protocol = 17
	ICMPv6 Protocol = 58
	SCTP   Protocol = 132
)

// String returns the name that the Kubernetes API uses, or the number.
func (p Protocol) String() string {
	switch p {
	case ICMP:
		return "ICMP"
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case ICMPv6:
		return "ICMPv6"
	case SCTP:
		return "SCTP"
	}
	return strconv.Itoa(int(p))
}

// ParseProtocol returns the protocol with the given name, in upper or lower case. It
// returns false if no protocol has this name.
func ParseProtocol(text string) (Protocol, bool) {
	for _, p := range [...]Protocol{TCP, UDP, SCTP, ICMP, ICMPv6} {
		if strings.EqualFold(text, p.String()) {
			return p, true
		}
	}
	return 0, false
}

// HasPorts reports whether a NetworkPolicy can name ports of this protocol.
func (p Protocol) HasPorts() bool { return p == TCP || p == UDP || p == SCTP }

// Transport states how far the transport header of a packet was decoded. It is separate
// from the port, so that a port that could not be decoded is never taken for port 0.
type Transport uint8

const (
	// Opaque means that the transport header is missing, cut off, encrypted, or behind an
	// extension header that is not understood. Only a rule without ports can allow such a
	// packet. Opaque is the zero value, so that a key that was never decoded allows the
	// least.
	Opaque Transport = iota
	// Portless means that the protocol has no ports, such as ICMP.
	Portless
	// Ported means that the destination port was decoded.
	Ported
	// Any marks the key of a pair of addresses, which covers all packets between them. No
	// packet has this state.
	Any
)

// String returns the name of the state in the verdict log.
func (t Transport) String() string {
	switch t {
	case Portless:
		return "portless"
	case Ported:
		return "ported"
	case Any:
		return "any"
	}
	return "opaque"
}

// Key is all that a verdict depends on, as decoded from a packet after Service translation
// of the destination and before masquerading of the source.
//
// The source port is not part of a Key. No NetworkPolicy can match it, and since it differs
// in each new connection, no new connection would hit the flow cache.
//
// Addresses are 16 bytes, IPv4 in its IPv4-mapped form (RFC 4291, 2.5.5.2), so that both
// families share one code path and the struct hashes as plain bytes. With netip.Addr as the
// type of Src and Dst, a map lookup takes almost twice as long.
type Key struct {
	Src, Dst  [16]byte
	Port      uint16 // destination port; 0 unless Transport is Ported
	Protocol  Protocol
	Transport Transport
}

// NewKey returns the key of a flow. The port is used only for protocols that have
// ports; for any other protocol the key is Portless.
func NewKey(src, dst netip.Addr, proto Protocol, port uint16) Key {
	k := Key{Src: src.As16(), Dst: dst.As16(), Protocol: proto, Transport: Portless}
	if proto.HasPorts() {
		k.Transport, k.Port = Ported, port
	}
	return k
}

// SrcAddr returns the source address; IPv4 addresses are not IPv4-mapped.
func (k Key) SrcAddr() netip.Addr { return netip.AddrFrom16(k.Src).Unmap() }

// DstAddr returns the destination address; IPv4 addresses are not IPv4-mapped.
func (k Key) DstAddr() netip.Addr { return netip.AddrFrom16(k.Dst).Unmap() }

// Reverse returns the key of a packet in the opposite direction. Its destination port is
// srcPort, the source port of this direction.
func (k Key) Reverse(srcPort uint16) Key {
	k.Src, k.Dst = k.Dst, k.Src
	if k.Transport == Ported {
		k.Port = srcPort
	}
	return k
}

// HidesPorts reports whether the packet may have ports, although its transport header could not
// be read: it is cut off, or behind extension headers that are.
func (k Key) HidesPorts() bool {
	if k.Transport != Opaque {
		return false
	}
	switch k.Protocol {
	case TCP, UDP, SCTP, hopByHop, routing, fragment, authentication, destinationOptions:
		return true
	}
	return false
}

// The IPv6 extension headers that may precede a header with ports, as protocol numbers.
const (
	hopByHop           Protocol = 0
	routing            Protocol = 43
	fragment           Protocol = 44
	authentication     Protocol = 51
	destinationOptions Protocol = 60
)

// Pair returns the key for all packets between the two addresses. The verdict about this key
// is Allow only if every packet between the two addresses is allowed.
func (k Key) Pair() Key { return Key{Src: k.Src, Dst: k.Dst, Transport: Any} }

// String returns the key as in logs and tests: "10.0.0.1 > 10.0.0.2 TCP 80".
func (k Key) String() string {
	s := k.SrcAddr().String() + " > " + k.DstAddr().String() + " "
	if k.Transport == Any {
		return s + "any"
	}
	s += k.Protocol.String()
	switch k.Transport {
	case Ported:
		return s + " " + strconv.Itoa(int(k.Port))
	case Opaque:
		return s + " opaque"
	}
	return s
}
