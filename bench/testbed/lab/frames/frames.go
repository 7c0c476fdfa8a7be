// Package frames generates random frames like those of a hostile pod: valid frames, and
// frames with wrong addresses, tags, headers and lengths. The payload of each frame
// contains a number, so that a captured frame, or a part of one, identifies the frame and its
// sender.
//
// The same seed gives the same frames.
package frames

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
)

// magic is the beginning of a frame's mark. Payloads repeat the mark.
const magic = "\xf5\xaa\x5c\x17"

// markLen is the length of a mark: magic, the number and its complement. The complement
// shows whether the number has been changed.
const markLen = 12

// Find returns the number of the frame that data is a part of.
func Find(data []byte) (id uint32, found bool) {
	for i := 0; i+markLen <= len(data); i++ {
		if id := binary.BigEndian.Uint32(data[i+4:]); string(data[i:i+4]) == magic && ^id == binary.BigEndian.Uint32(data[i+8:]) {
			return id, true
		}
	}
	return 0, false
}

// Fill returns a payload of at least n bytes that repeats the mark of a number.
func Fill(id uint32, n int) []byte {
	one := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32([]byte(magic), id), ^id)
	return slices.Repeat(one, max(2, (n+markLen-1)/markLen))
}

// End is a source or a destination of frames.
type End struct {
	MAC   net.HardwareAddr
	Addrs []netip.Addr
}

// Options are the addresses and ports of the frames.
type Options struct {
	Sender End
	// Frames go to the Targets and to the router, which is the first of Others. The other
	// elements of Others receive no frames: if the sender had a connection with one of them,
	// a frame could be an answer on it and pass. Their addresses appear in frames, for
	// example as sources.
	Targets, Others []End
	Ports           []uint16
	// Tunnels maps the UDP port of a tunnel to the link address at its inner end.
	Tunnels map[uint16]net.HardwareAddr
}

// Source generates frames. Only one goroutine at a time may use a Source.
type Source struct {
	Options
	random       *rand.Rand
	all          []netip.Addr
	destinations []netip.Addr // addresses of the targets and the router
}

// New returns a source of frames.
func New(seed uint64, opts Options) *Source {
	s := &Source{Options: opts, random: rand.New(rand.NewPCG(seed, 1))}
	for _, e := range slices.Concat([]End{opts.Sender}, opts.Targets, opts.Others) {
		s.all = append(s.all, e.Addrs...)
	}
	for _, e := range append(slices.Clone(opts.Targets), opts.Others[0]) {
		s.destinations = append(s.destinations, e.Addrs...)
	}
	return s
}

// unusual are addresses that a pod should not use as a source and rarely uses as a
// destination.
var unusual = []netip.Addr{
	netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("255.255.255.255"),
	netip.MustParseAddr("224.0.0.1"), netip.MustParseAddr("224.0.0.251"), netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("169.254.172.9"), netip.MustParseAddr("10.77.0.255"),
	netip.MustParseAddr("::"), netip.MustParseAddr("::1"), netip.MustParseAddr("ff02::1"), netip.MustParseAddr("ff02::2"),
	netip.MustParseAddr("ff02::fb"), netip.MustParseAddr("ff05::1:3"), netip.MustParseAddr("ff02::1:2"), netip.MustParseAddr("2001:db8:7::7"), netip.MustParseAddr("fe80::7"),
	netip.MustParseAddr("::ffff:10.77.0.2"), netip.MustParseAddr("::10.77.0.2"), netip.MustParseAddr("64:ff9b::a4d:2"), netip.MustParseAddr("2002:a4d:2::1"),
}

// pick returns a random element of a list.
func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

// oneIn returns true with a probability of 1/n.
func (s *Source) oneIn(n int) bool { return s.random.IntN(n) == 0 }

// Next returns the next frame, with the given number.
func (s *Source) Next(id uint32) []byte {
	v6 := s.oneIn(2)
	target := pick(s.random, s.Targets)
	src, dst := s.source(v6), s.destination(target, v6)
	packet := s.ip(src, dst, id, 0)
	frame := s.frame(target, dst, packet)
	if s.oneIn(6) { // flip bits of the headers
		for range 1 + s.random.IntN(3) {
			frame[12+s.random.IntN(min(len(frame)-12, 60))] ^= 1 << s.random.IntN(8)
		}
	}
	if s.oneIn(40) {
		frame = frame[:max(14, len(frame)-s.random.IntN(60))]
	}
	return frame
}

// family returns a random address among those that are IPv6 (if v6 is set) or IPv4.
func (s *Source) family(among []netip.Addr, v6 bool) netip.Addr {
	var fit []netip.Addr
	for _, a := range among {
		if a.Is6() == v6 {
			fit = append(fit, a)
		}
	}
	return pick(s.random, fit)
}

func (s *Source) source(v6 bool) netip.Addr {
	switch s.random.IntN(5) {
	case 0:
		return s.family(s.all, v6)
	case 1:
		return s.family(unusual, v6)
	}
	return s.family(s.Sender.Addrs, v6)
}

func (s *Source) destination(target End, v6 bool) netip.Addr {
	switch s.random.IntN(8) {
	case 0:
		return s.family(s.destinations, v6)
	case 1:
		return s.family(unusual, v6)
	}
	return s.family(target.Addrs, v6)
}

// ip returns an IP packet. depth is the number of packets around it.
func (s *Source) ip(src, dst netip.Addr, id uint32, depth int) []byte {
	protocol, upper := s.upper(src, dst, id, depth)
	if !src.Is6() {
		return s.ipv4(src, dst, protocol, upper)
	}
	first, chain := protocol, []byte(nil)
	for s.oneIn(3) && len(chain) < 200 {
		first, chain = s.extension(first, chain)
	}
	length := len(chain) + len(upper)
	if s.oneIn(40) {
		length = s.random.IntN(length + 20)
	}
	hops := pick(s.random, []byte{255, 64, 1})
	p := []byte{0x60, 0, 0, 0, byte(length >> 8), byte(length), first, hops}
	return slices.Concat(p, src.AsSlice(), dst.AsSlice(), chain, upper)
}

// extension puts an IPv6 extension header before a chain of headers.
func (s *Source) extension(next byte, chain []byte) (byte, []byte) {
	h := make([]byte, 8)
	kind := pick(s.random, []byte{0, 60, 43, 44, 51, 135, 59, 139})
	switch kind {
	case 44:
		offset := 0
		if s.oneIn(3) {
			offset = s.random.IntN(40) << 3
		}
		binary.BigEndian.PutUint16(h[2:], uint16(offset|s.random.IntN(2)))
		h[7] = byte(s.random.IntN(4))
	case 0, 60:
		h[2], h[3] = 1, 4 // the option PadN
		if s.oneIn(4) {
			h[2], h[3] = 5, 2 // the option Router Alert
		}
	case 51:
		h[1] = 0
	case 43:
		h[2], h[3] = byte(s.random.IntN(5)), byte(s.random.IntN(2))
	}
	h[0] = next
	if kind == 51 {
		h[1] = 1
		h = append(h, 0, 0, 0, 0)
	}
	return kind, append(h, chain...)
}

func (s *Source) ipv4(src, dst netip.Addr, protocol byte, upper []byte) []byte {
	var options []byte
	if s.oneIn(8) {
		options = pick(s.random, [][]byte{{1, 1, 1, 0}, {148, 4, 0, 0}, append([]byte{131, 7, 4}, append(dst.AsSlice(), 0)...), {7, 7, 4, 0, 0, 0, 0, 0}})
	}
	length := 20 + len(options) + len(upper)
	if s.oneIn(40) {
		length = s.random.IntN(length + 20)
	}
	fragment := uint16(0)
	if s.oneIn(8) {
		fragment = uint16(s.random.IntN(2))<<13 | uint16(pick(s.random, []int{0, 0, 1, 2, 3, 100, 8191}))
	}
	p := []byte{0x45 + byte(len(options)/4), 0, byte(length >> 8), byte(length), 0, byte(s.random.IntN(4)), byte(fragment >> 8), byte(fragment), pick(s.random, []byte{64, 255, 1, 2}), protocol, 0, 0}
	p = slices.Concat(p, src.AsSlice(), dst.AsSlice(), options)
	binary.BigEndian.PutUint16(p[10:], checksum(p))
	return append(p, upper...)
}

// upper returns the payload of an IP packet.
func (s *Source) upper(src, dst netip.Addr, id uint32, depth int) (protocol byte, payload []byte) {
	fill := Fill(id, s.random.IntN(80))
	icmp := byte(1)
	if src.Is6() {
		icmp = 58
	}
	switch n := s.random.IntN(20); {
	case n < 6:
		protocol, payload = 17, s.udp(fill)
	case n < 12:
		protocol, payload = 6, s.tcp(fill)
	case n < 15:
		protocol, payload = icmp, s.icmp(icmp, src, dst, fill, id, depth)
	case n == 15 && depth < 2:
		return pick(s.random, []byte{4, 41, 47}), s.inner(id, depth)
	case n == 16 && len(s.Tunnels) > 0 && depth < 2:
		protocol, payload = 17, s.tunnel(id, depth)
	case n == 17:
		protocol, payload = 132, slices.Concat(s.pair(), []byte{0, 0, 0, 0, 0, 0, 0, 0, pick(s.random, []byte{0, 1, 14}), 0, 0, 20}, fill)
	default:
		return pick(s.random, []byte{2, 50, 51, 59, 103, 115, 136, 200, 255}), fill
	}
	if at, has := map[byte]int{17: 6, 6: 16, 58: 2, 1: 2}[protocol]; has && !s.oneIn(20) {
		s.setChecksum(src, dst, protocol, payload, at)
	}
	return protocol, payload
}

// pair returns a source port and a destination port. The source port is one without a server,
// because two echo servers would answer each other forever.
func (s *Source) pair() []byte {
	b := binary.BigEndian.AppendUint16(nil, pick(s.random, []uint16{67, 68, 546, 547, 5353, uint16(10000 + s.random.IntN(50000)), 20000, 20001}))
	return binary.BigEndian.AppendUint16(b, pick(s.random, s.Ports))
}

func (s *Source) udp(data []byte) []byte {
	length := 8 + len(data)
	if s.oneIn(30) {
		length = s.random.IntN(length + 20)
	}
	return slices.Concat(s.pair(), []byte{byte(length >> 8), byte(length), 0, 0}, data)
}

func (s *Source) tcp(data []byte) []byte {
	flags := pick(s.random, []byte{2, 2, 16, 18, 4, 20, 17, 24, 0, 1, 41, 63, 194})
	h := slices.Concat(s.pair(), []byte{0, 0, 0, byte(s.random.IntN(4)), 0, 0, 0, byte(s.random.IntN(4)), 0x50, flags, 0xff, 0xff, 0, 0, 0, 0})
	if s.oneIn(30) {
		h[12] = byte(s.random.IntN(16)) << 4
	}
	return append(h, data...)
}

// icmp returns an ICMP message. Some messages quote a packet from dst to src, as an ICMP error
// quotes the packet that it is about.
func (s *Source) icmp(protocol byte, src, dst netip.Addr, data []byte, id uint32, depth int) []byte {
	types := []byte{8, 0, 3, 4, 5, 9, 10, 11, 12, 13, 17}
	if protocol == 58 {
		types = []byte{128, 129, 1, 2, 3, 4, 133, 134, 135, 136, 137, 130, 131, 132, 143, 151, 200}
	}
	h := []byte{pick(s.random, types), byte(s.random.IntN(5)), 0, 0, 0, 0, 0, 0}
	switch {
	case protocol == 58 && h[0] >= 133 && h[0] <= 137:
		h[1] = 0
		if h[0] != 133 && h[0] != 134 {
			h = append(h, s.family(s.all, true).AsSlice()...)
		} else if h[0] == 134 {
			h = append(h, 0, 0, 0, 0, 0, 0, 0, 0)
		}
		h = append(h, 200, byte(1+len(data)/8), 0, 0, 0, 0, 0, 0) // an option of an unassigned type
	case s.oneIn(2) && depth < 2:
		if src.Is6() != dst.Is6() {
			break
		}
		return append(h, s.ip(dst, src, id, depth+1)...)
	}
	return append(h, data...)
}

// inner returns a packet to be nested in another packet.
func (s *Source) inner(id uint32, depth int) []byte {
	v6 := s.oneIn(2)
	return s.ip(s.family(s.all, v6), s.destination(pick(s.random, s.Targets), v6), id, depth+1)
}

// tunnel returns a UDP datagram that contains a VXLAN frame.
func (s *Source) tunnel(id uint32, depth int) []byte {
	inner := s.inner(id, depth)
	for port, mac := range s.Tunnels {
		kind := []byte{8, 0}
		if inner[0]>>4 == 6 {
			kind = []byte{0x86, 0xdd}
		}
		frame := slices.Concat([]byte{8, 0, 0, 0, 0, 0, 9, 0}, mac, s.Sender.MAC, kind, inner)
		b := binary.BigEndian.AppendUint16(nil, uint16(1024+s.random.IntN(60000)))
		b = binary.BigEndian.AppendUint16(b, port)
		b = binary.BigEndian.AppendUint16(b, uint16(8+len(frame)))
		return slices.Concat(b, []byte{0, 0}, frame)
	}
	return nil
}

// setChecksum writes the checksum of a payload at the given offset.
func (s *Source) setChecksum(src, dst netip.Addr, protocol byte, payload []byte, at int) {
	if len(payload) < at+2 {
		return
	}
	payload[at], payload[at+1] = 0, 0
	var pseudo []byte
	if protocol != 1 {
		pseudo = binary.BigEndian.AppendUint32(append(src.AsSlice(), dst.AsSlice()...), uint32(len(payload)))
		pseudo = append(pseudo, 0, 0, 0, protocol)
	}
	binary.BigEndian.PutUint16(payload[at:], checksum(append(pseudo, payload...)))
}

// checksum returns the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i := range b {
		sum += uint32(b[i]) << (8 * ((i + 1) % 2))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// frame returns a frame that contains a packet.
func (s *Source) frame(target End, dst netip.Addr, packet []byte) []byte {
	to := pick(s.random, []net.HardwareAddr{target.MAC, target.MAC, s.Others[0].MAC})
	switch {
	case s.oneIn(25):
		to = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	case dst.IsMulticast() && dst.Is6():
		to = append(net.HardwareAddr{0x33, 0x33}, dst.AsSlice()[12:]...)
	case dst.IsMulticast():
		b := dst.As4()
		to = net.HardwareAddr{1, 0, 0x5e, b[1] & 0x7f, b[2], b[3]}
	}
	from := s.Sender.MAC
	if s.oneIn(50) {
		from = net.HardwareAddr{2, 0, 0, byte(s.random.IntN(4)), 0, 7}
	}
	frame := append(append([]byte(nil), to...), from...)
	for s.oneIn(8) && len(frame) < 40 {
		tag := pick(s.random, []uint16{0, 0, 0xe000, 1, 7, 4095})
		frame = binary.BigEndian.AppendUint16(append(frame, pick(s.random, [][]byte{{0x81, 0}, {0x88, 0xa8}})...), tag)
	}
	kind := uint16(0x0800)
	if packet[0]>>4 == 6 {
		kind = 0x86dd
	}
	if s.oneIn(60) {
		kind ^= 0x0800 ^ 0x86dd
	}
	switch s.random.IntN(60) {
	case 0: // PPPoE
		frame = append(frame, 0x88, 0x64, 0x11, 0, 0, 1, byte((len(packet)+2)>>8), byte(len(packet)+2), 0, 0x21)
	case 1: // LLC with SNAP
		frame = append(frame, byte((len(packet)+8)>>8), byte(len(packet)+8), 0xaa, 0xaa, 3, 0, 0, 0, byte(kind>>8), byte(kind))
	case 2: // MPLS
		frame = append(frame, 0x88, 0x47, 0, 0, 1, 64)
	case 3: // an ARP message with another host's address as its sender
		who := s.family(s.all, false).AsSlice()
		return slices.Concat(frame, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, byte(1 + s.random.IntN(2))}, s.Sender.MAC, who, target.MAC, s.family(target.Addrs, false).AsSlice())
	default:
		frame = binary.BigEndian.AppendUint16(frame, kind)
	}
	return append(frame, packet...)
}

// Describe formats a frame for messages.
func Describe(frame []byte) string {
	return fmt.Sprintf("%d bytes: % x", len(frame), frame[:min(len(frame), 120)])
}
