package packet_test

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"sluice/filter"
	"sluice/filter/packet"
)

// header is one header of a packet, as the oracle lists them.
type header struct {
	protocol int
	at       int // offset of its first byte
}

// rawPacket is a packet for the oracle. Offsets are from the first byte of the IP header.
type rawPacket struct {
	data []byte
	end  int // where the packet ends according to its header; padding follows
}

// has reports whether the n bytes at an offset belong to the packet and were captured.
func (w rawPacket) has(at, n int) bool { return at+n <= w.end && at+n <= len(w.data) }

func (w rawPacket) u16(at int) int { return int(binary.BigEndian.Uint16(w.data[at:])) }

// slowDecode is the oracle, written directly from the RFCs: it lists the headers, and then
// decodes the last. It shares no code with the package and does not use gopacket.
func slowDecode(data []byte) (p packet.Packet, err error) {
	if len(data) == 0 {
		return p, packet.ErrTruncated
	}
	var last header
	var w rawPacket
	var visible bool
	switch data[0] >> 4 {
	case 4:
		if len(data) < 20 {
			return p, packet.ErrTruncated
		}
		p.Key.Src = netip.AddrFrom4([4]byte(data[12:16])).As16()
		p.Key.Dst = netip.AddrFrom4([4]byte(data[16:20])).As16()
		w, last, visible = slowIPv4(data)
	case 6:
		if len(data) < 40 {
			return p, packet.ErrTruncated
		}
		p.Key.Src, p.Key.Dst = [16]byte(data[8:24]), [16]byte(data[24:40])
		if netip.AddrFrom16(p.Key.Src).Is4In6() || netip.AddrFrom16(p.Key.Dst).Is4In6() {
			return packet.Packet{}, packet.ErrMappedAddress
		}
		w, last, visible = slowIPv6(data)
	default:
		return p, packet.ErrVersion
	}
	p.Key.Protocol = filter.Protocol(last.protocol)
	if visible {
		slowTransport(w, last, &p)
	}
	p.MidStream = slowMidStream(w, last, visible)
	return p, nil
}

// slowMidStream reports whether a packet counts as mid-stream. For TCP it tests the flags in the
// header, and for SCTP the type of the first chunk. A packet also counts as mid-stream if these
// are not visible, or if it has an extension header that cannot be skipped and may hide them.
func slowMidStream(w rawPacket, last header, visible bool) bool {
	switch last.protocol {
	case 6:
		if !visible || !w.has(last.at, 20) {
			return true
		}
		fin, syn, rst, ack := w.data[last.at+13]&1, w.data[last.at+13]>>1&1, w.data[last.at+13]>>2&1, w.data[last.at+13]>>4&1
		return syn == 0 || fin+rst+ack > 0
	case 132:
		return !visible || !w.has(last.at, 13) || w.data[last.at+12] != 1
	case 0, 43, 44, 51, 60:
		return !visible
	}
	return false
}

// endOf returns the offset at which a packet of this length ends. With length 0 the end is
// unknown, and the offset is beyond any packet.
func endOf(headers, length int) int {
	if length == 0 {
		return 1 << 40
	}
	return headers + length
}

func slowIPv4(data []byte) (w rawPacket, last header, visible bool) {
	w = rawPacket{data: data}
	w.end = endOf(0, w.u16(2))
	headerLen := int(data[0]&15) * 4
	last = header{int(data[9]), headerLen}
	offset := w.u16(6) & 0x1fff // RFC 791: the lower 13 bits, after 3 flags
	return w, last, headerLen >= 20 && w.has(0, headerLen) && offset == 0
}

func slowIPv6(data []byte) (w rawPacket, last header, visible bool) {
	w = rawPacket{data: data}
	w.end = endOf(40, w.u16(4))
	headers := []header{{int(data[6]), 40}}
	for {
		last = headers[len(headers)-1]
		var length int
		switch last.protocol {
		case 0, 43, 60: // hop-by-hop, routing, destination options
			if w.has(last.at, 8) {
				length = 8 + 8*int(data[last.at+1])
			}
		case 51: // authentication
			if w.has(last.at, 8) {
				length = 8 + 4*int(data[last.at+1])
			}
		case 44: // fragment
			length = 8
		default:
			return w, last, true
		}
		if length == 0 || !w.has(last.at, length) || len(headers) > 12 {
			return w, last, false
		}
		next := header{int(data[last.at]), last.at + length}
		if last.protocol == 44 && w.u16(last.at+2)>>3 != 0 {
			return w, next, false
		}
		headers = append(headers, next)
	}
}

// hiding lists the protocols that hide ports, or may hide them: 0 hop-by-hop, 43 routing,
// 44 fragment, 50 ESP, 51 AH, 59 no next header, 60 destination options, 108 IPComp,
// 135 mobility, 139 HIP, 140 Shim6, 141 WESP.
var hiding = map[int]bool{0: true, 43: true, 44: true, 50: true, 51: true, 59: true, 60: true, 108: true, 135: true, 139: true, 140: true, 141: true}

func slowTransport(w rawPacket, h header, p *packet.Packet) {
	whole := false
	switch {
	case h.protocol == 6:
		if w.has(h.at, 20) {
			words := int(w.data[h.at+12] >> 4)
			whole = words >= 5 && h.at+4*words <= w.end
		}
	case h.protocol == 17:
		whole = w.has(h.at, 8) && (w.u16(h.at+4) == 0 || w.u16(h.at+4) >= 8)
	case h.protocol == 132:
		whole = w.has(h.at, 12)
	case !hiding[h.protocol] && h.protocol < 148:
		p.Key.Transport = filter.Portless
	}
	if whole {
		p.Key.Transport = filter.Ported
		p.SrcPort, p.Key.Port = uint16(w.u16(h.at)), uint16(w.u16(h.at+2))
	}
}

// Decode and the oracle agree about packets with random damage.
func TestDecodeAgainstOracle(t *testing.T) {
	const seed, rounds = 1, 400_000
	random := rand.New(rand.NewPCG(seed, 0))
	base := samples()
	d := packet.NewDecoder()
	var seen [3]int // number of packets by filter.Transport
	failed := map[error]int{}
	for round := range rounds {
		data := mutate(random, base)
		got, err := d.Decode(data)
		want, wantErr := slowDecode(data)
		if got != want || !errors.Is(err, wantErr) {
			t.Fatalf("seed %d, round %d: %x\n%v, %v\nthe oracle returns %v, %v", seed, round, data, got, err, want, wantErr)
		}
		if err != nil {
			failed[err]++
		} else {
			seen[got.Key.Transport]++
		}
	}
	for _, transport := range []filter.Transport{filter.Opaque, filter.Portless, filter.Ported} {
		if seen[transport] < rounds/50 {
			t.Errorf("only %d of %d packets were %s", seen[transport], rounds, transport)
		}
	}
	for _, err := range []error{packet.ErrTruncated, packet.ErrVersion, packet.ErrMappedAddress} {
		if failed[err] < rounds/200 {
			t.Errorf("only %d of %d packets failed with %q", failed[err], rounds, err)
		}
	}
}

// significant lists bytes that mean something to a decoder: protocol numbers, IP versions with
// header lengths, and limits such as 127 and 128.
var significant = []byte{0, 1, 2, 4, 6, 7, 8, 17, 20, 43, 44, 50, 51, 58, 59, 60, 64, 0x45, 0x46, 0x4f, 0x50, 0x60, 108, 127, 128, 132, 135, 139, 140, 141, 147, 148, 254, 255}

// mutate returns a damaged copy of one of the samples.
func mutate(random *rand.Rand, base []sample) []byte {
	data := append([]byte(nil), base[random.IntN(len(base))].data...)
	for range random.IntN(4) {
		if len(data) == 0 {
			break
		}
		at := random.IntN(len(data))
		if random.IntN(2) == 0 {
			at = random.IntN(min(len(data), 10)) // where lengths and protocols are
		}
		switch random.IntN(6) {
		case 0:
			data[at] ^= 1 << random.IntN(8)
		case 1, 2:
			data[at] = significant[random.IntN(len(significant))]
		case 3:
			data = data[:random.IntN(len(data)+1)]
		case 4:
			data = append(data, base[random.IntN(len(base))].data...)
		case 5:
			data = append(data[:at:at], data[min(at+random.IntN(9), len(data)):]...)
		}
	}
	return data
}

// If both Decode and the packet decoder of gopacket find ports in a sample, they find the
// same ports. Samples in which only gopacket finds ports are skipped, because gopacket accepts
// impossible lengths and versions.
func TestDecodeAgainstGopacket(t *testing.T) {
	d := packet.NewDecoder()
	compared := 0
	for _, s := range samples() {
		got, err := d.Decode(s.data)
		if err != nil || got.Key.Transport != filter.Ported {
			continue
		}
		first := gopacket.Decoder(layers.LayerTypeIPv4)
		if s.data[0]>>4 == 6 {
			first = layers.LayerTypeIPv6
		}
		p := gopacket.NewPacket(s.data, first, gopacket.Default)
		if p.TransportLayer() == nil {
			continue
		}
		compared++
		src, dst := p.TransportLayer().TransportFlow().Endpoints()
		if binary.BigEndian.Uint16(src.Raw()) != got.SrcPort || binary.BigEndian.Uint16(dst.Raw()) != got.Key.Port {
			t.Errorf("%s: %v, but gopacket reads %s", s.name, got, p.TransportLayer().TransportFlow())
		}
	}
	if compared < 12 {
		t.Errorf("gopacket finds ports in only %d of the samples", compared)
	}
}
