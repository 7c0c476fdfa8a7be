package conntrack

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// DefaultMarks are the marks that tests use.
var DefaultMarks = Marks{Allowed: 0x10, Revoked: 0x20}

// Limit sets the maximum number of keys, and of keys that one publication adds, and the number of entries
// up to which none is removed.
func (t *TrackedFlows) Limit(keys, moved, few int) {
	t.maxKeys, t.maxMoved, t.fewEntries = keys, moved, few
}

// Keys returns the number of keys.
func (t *TrackedFlows) Keys() int { return len(t.keys) }

// SetBuffer sets the size of the receive buffer, in bytes.
func (e *Events) SetBuffer(bytes int) error {
	return unix.SetsockoptInt(e.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, bytes)
}

// ReadEvents calls report for each event in a datagram.
func ReadEvents(datagram []byte, event *Event, report func(*Event)) error {
	t := readTimeouts()
	return readEvents(datagram, &t, event, report)
}

// AppendEvent appends an event about the end of a TCP connection, with counts and times.
func AppendEvent(b []byte, src, dst netip.Addr, srcPort, dstPort uint16) []byte {
	start, family, from, to := len(b), uint8(unix.AF_INET), uint16(ctaIPv4Src), uint16(ctaIPv4Dst)
	if src.Is6() {
		family, from, to = unix.AF_INET6, ctaIPv6Src, ctaIPv6Dst
	}
	port := func(b []byte, kind, port uint16) []byte {
		return append(appendBytes(b, kind, binary.BigEndian.AppendUint16(nil, port)), 0, 0)
	}
	tuple := func(b []byte, kind uint16, src, dst netip.Addr, srcPort, dstPort uint16) []byte {
		b, at := beginNested(b, kind)
		b, ip := beginNested(b, ctaTupleIP)
		b = appendBytes(b, from, src.AsSlice())
		b = appendBytes(b, to, dst.AsSlice())
		endNested(b, ip)
		b, proto := beginNested(b, ctaTupleProto)
		b = append(appendBytes(b, ctaProtoNum, []byte{unix.IPPROTO_TCP}), 0, 0, 0)
		b = port(port(b, ctaProtoSrcPort, srcPort), ctaProtoDstPort, dstPort)
		endNested(b, proto)
		endNested(b, at)
		return b
	}
	numbers := func(b []byte, kind uint16, values ...uint64) []byte {
		b, at := beginNested(b, kind)
		for i, n := range values {
			b = appendBytes(b, uint16(i+1), binary.BigEndian.AppendUint64(nil, n))
		}
		endNested(b, at)
		return b
	}
	b = beginMessage(b, msgConnDelete, 0, 0, family)
	b = tuple(b, ctaTupleOrig, src, dst, srcPort, dstPort)
	b = tuple(b, ctaTupleReply, dst, src, dstPort, srcPort)
	b = numbers(b, ctaCountersOrig, 1, 2)
	b = numbers(b, ctaCountersReply, 3, 4)
	b = numbers(b, ctaTimestamp, 5, 6)
	b = appendUint32(b, ctaMark, 0x10)
	endMessage(b, start)
	return b
}
