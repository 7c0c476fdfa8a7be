package conntrack

import (
	"encoding/binary"
	"errors"
	"math"
	"net/netip"

	"golang.org/x/sys/unix"

	"sluice/filter"
)

// The part of ctnetlink that is needed here: linux/netlink.h,
// linux/netfilter/nfnetlink.h and linux/netfilter/nfnetlink_conntrack.h.
const (
	headerLen    = 16 // struct nlmsghdr
	nfgenLen     = 4  // struct nfgenmsg
	attrLen      = 4  // struct nlattr
	attrNested   = 0x8000
	attrTypeMask = 0x3fff

	msgConnSet    = 1 << 8   // NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_NEW
	msgConnGet    = 1<<8 | 1 // IPCTNL_MSG_CT_GET
	msgConnDelete = 1<<8 | 2 // IPCTNL_MSG_CT_DELETE

	msgConnStats    = 1<<8 | 5 // IPCTNL_MSG_CT_GET_STATS
	ctaStatsEntries = 1        // CTA_STATS_GLOBAL_ENTRIES

	ctaTupleOrig   = 1
	ctaTupleReply  = 2
	ctaStatus      = 3
	ctaTimeout     = 7 // in seconds
	ctaMark        = 8
	ctaZone        = 18
	ctaMarkMask    = 21
	ctaFilter      = 25
	ctaFilterOrig  = 1 // CTA_FILTER_ORIG_FLAGS
	ctaFilterReply = 2 // CTA_FILTER_REPLY_FLAGS
	filterIPSrc    = 1 // the flag that selects by the source address

	ctaTupleIP      = 1
	ctaIPv4Src      = 1
	ctaIPv4Dst      = 2
	ctaIPv6Src      = 3
	ctaIPv6Dst      = 4
	ctaTupleProto   = 2
	ctaProtoNum     = 1
	ctaProtoSrcPort = 2
	ctaProtoDstPort = 3

	ctaCountersOrig    = 9
	ctaCountersReply   = 10
	ctaCountersPackets = 1
	ctaCountersBytes   = 2
	ctaTimestamp       = 20
	ctaTimestampStart  = 1
	ctaTimestampStop   = 2

	statusAssured = 1 << 2 // IPS_ASSURED

	ctaProtoInfo             = 4
	ctaProtoInfoTCP          = 1
	ctaProtoInfoTCPState     = 1 // enum tcp_conntrack, a byte
	ctaProtoInfoTCPFlagsOrig = 4 // struct nf_ct_tcp_flags: flags and mask, a byte each
	// tcpLiberal means that the windows of a connection are not known. The kernel sets it
	// for both directions of a connection that it picks up in the middle (tcp_new). It
	// never sets it for the original direction of a connection that it saw begin, unless a
	// flowtable takes the connection over.
	tcpLiberal = 0x08 // IP_CT_TCP_FLAG_BE_LIBERAL

	// States of a TCP connection: linux/netfilter/nf_conntrack_tcp.h. In these three, both ends have sent
	// their FIN, or one its RST.
	tcpLastAck  = 6 // TCP_CONNTRACK_LAST_ACK
	tcpTimeWait = 7 // TCP_CONNTRACK_TIME_WAIT
	tcpClose    = 8 // TCP_CONNTRACK_CLOSE
)

// errMessage means that the kernel's message does not match its definition.
var errMessage = errors.New("malformed ctnetlink message")

// attr is one netlink attribute. Its slices point into the message.
type attr struct {
	kind  uint16
	whole []byte // the attribute with its header, without padding
	value []byte
}

// cut splits the first attribute off b. ok is false at the end of b, and if the rest of b
// is malformed.
func cut(b []byte) (a attr, rest []byte, ok bool) {
	if len(b) < attrLen {
		return attr{}, nil, false
	}
	n := int(binary.NativeEndian.Uint16(b))
	if n < attrLen || n > len(b) {
		return attr{}, nil, false
	}
	a = attr{kind: binary.NativeEndian.Uint16(b[2:]) & attrTypeMask, whole: b[:n], value: b[attrLen:n]}
	return a, b[min(align(n), len(b)):], true
}

// align rounds up to netlink's alignment.
func align(n int) int { return (n + 3) &^ 3 }

// tuple is one direction of a connection.
type tuple struct {
	src     netip.Addr
	proto   filter.Protocol
	srcPort uint16
	ok      bool // source address and protocol were present
}

// parseTuple parses the fields of a CTA_TUPLE_* attribute that a key needs.
func parseTuple(b []byte) (t tuple) {
	var hasProto bool
	for a, rest, ok := cut(b); ok; a, rest, ok = cut(rest) {
		switch a.kind {
		case ctaTupleIP:
			for ip, rest, ok := cut(a.value); ok; ip, rest, ok = cut(rest) {
				if ip.kind == ctaIPv4Src || ip.kind == ctaIPv6Src {
					t.src, t.ok = netip.AddrFromSlice(ip.value)
				}
			}
		case ctaTupleProto:
			for p, rest, ok := cut(a.value); ok; p, rest, ok = cut(rest) {
				switch {
				case p.kind == ctaProtoNum && len(p.value) == 1:
					t.proto, hasProto = filter.Protocol(p.value[0]), true
				case p.kind == ctaProtoSrcPort && len(p.value) == 2:
					t.srcPort = binary.BigEndian.Uint16(p.value)
				}
			}
		}
	}
	t.ok = t.ok && hasProto
	return t
}

// parseConn parses the body of an entry, which begins with struct nfgenmsg, into c. It
// returns an error if c.Ref cannot name the entry in later requests, so that its mark cannot
// be changed: the original tuple is missing, or the tuple and the zone together exceed maxRef
// bytes. parseConn sets c.Malformed if a tuple has no source address, no protocol or an
// IPv4-mapped IPv6 address.
//
// parseConn parses only what is needed: in a dump of the whole table, a parser of all
// attributes takes ten times as long (see the benchmarks).
func parseConn(body []byte, c *Conn) error {
	if len(body) < nfgenLen {
		return errMessage
	}
	*c = Conn{Ref: Ref{family: body[0]}}
	var orig, reply tuple
	for a, rest, ok := cut(body[nfgenLen:]); ok; a, rest, ok = cut(rest) {
		switch a.kind {
		case ctaTupleOrig:
			orig = parseTuple(a.value)
			if !c.Ref.add(a.whole) {
				return errMessage
			}
		case ctaTupleReply:
			reply = parseTuple(a.value)
		case ctaProtoInfo:
			parseProtoInfo(a.value, c)
		case ctaMark:
			if len(a.value) == 4 {
				c.Mark = binary.BigEndian.Uint32(a.value)
			}
		case ctaZone:
			if !c.Ref.add(a.whole) {
				return errMessage
			}
		}
	}
	if c.Ref.len == 0 {
		return errMessage
	}
	if !orig.ok || !reply.ok || orig.src.Is4In6() || reply.src.Is4In6() {
		c.Malformed = true
		return nil
	}
	c.Key = filter.NewKey(orig.src, reply.src, orig.proto, reply.srcPort)
	if c.Key.Transport == filter.Ported {
		c.SrcPort = orig.srcPort
	}
	return nil
}

// parseProtoInfo sets, from the CTA_PROTOINFO of a TCP connection, whether it was picked up after its
// beginning, and whether it is closed. The kernel does not report the former for SCTP.
func parseProtoInfo(b []byte, c *Conn) {
	for p, rest, ok := cut(b); ok; p, rest, ok = cut(rest) {
		if p.kind != ctaProtoInfoTCP {
			continue
		}
		for f, rest, ok := cut(p.value); ok; f, rest, ok = cut(rest) {
			switch {
			case f.kind == ctaProtoInfoTCPState && len(f.value) == 1:
				c.tcpState = f.value[0]
				c.Closed = c.tcpState >= tcpLastAck && c.tcpState <= tcpClose
			case f.kind == ctaProtoInfoTCPFlagsOrig && len(f.value) > 0:
				c.MidStream = f.value[0]&tcpLiberal != 0
				return // the attributes that follow are not needed
			}
		}
	}
}

// add appends an attribute with padding to r, and reports whether there was room.
func (r *Ref) add(whole []byte) bool {
	n := int(r.len)
	if n+align(len(whole)) > maxRef {
		return false
	}
	copy(r.raw[n:], whole)
	r.len = uint8(n + align(len(whole)))
	return true
}

// beginMessage appends the headers of a request. endMessage completes it.
func beginMessage(b []byte, kind, flags uint16, seq uint32, family uint8) []byte {
	b = binary.NativeEndian.AppendUint32(b, 0) // length
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0) // port ID; the kernel takes it from the socket
	return append(b, family, 0, 0, 0)          // nfgenmsg: family, NFNETLINK_V0, no resource
}

// endMessage writes the length of the message that begins at start.
func endMessage(b []byte, start int) {
	binary.NativeEndian.PutUint32(b[start:], uint32(len(b)-start))
}

// beginNested appends the header of a nested attribute, and returns its position for
// endNested, which completes it.
func beginNested(b []byte, kind uint16) ([]byte, int) {
	start := len(b)
	b = binary.NativeEndian.AppendUint16(b, 0)
	return binary.NativeEndian.AppendUint16(b, kind|attrNested), start
}

// endNested writes the length of the nested attribute that begins at start.
func endNested(b []byte, start int) {
	binary.NativeEndian.PutUint16(b[start:], uint16(len(b)-start))
}

// appendBytes appends an attribute whose length needs no padding.
func appendBytes(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrLen+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	return append(b, value...)
}

// appendUint32 appends a number in network byte order.
func appendUint32(b []byte, kind uint16, value uint32) []byte {
	b = binary.NativeEndian.AppendUint16(b, attrLen+4)
	b = binary.NativeEndian.AppendUint16(b, kind)
	return binary.BigEndian.AppendUint32(b, value)
}

// appendUpdate appends a request to change the mark of an existing entry. Without the flag
// NLM_F_CREATE, the request does not create an entry. The Ref is sent back as the kernel
// reported it.
func appendUpdate(b []byte, u *Update, flags uint16, seq uint32) []byte {
	start := len(b)
	b = beginMessage(b, msgConnSet, flags, seq, u.Ref.family)
	b = append(b, u.Ref.bytes()...)
	b = appendUint32(b, ctaMark, u.Mark)
	b = appendUint32(b, ctaMarkMask, u.Mask)
	endMessage(b, start)
	return b
}

// appendDump appends a request for all entries of the family or, if src is an IPv4 address,
// for the entries with this source in the tuple of the given direction. Kernels before 5.8
// ignore the filter, and answer with all entries of the family.
func appendDump(b []byte, flags uint16, seq uint32, family uint8, src netip.Addr, direction uint16) []byte {
	start := len(b)
	b = beginMessage(b, msgConnGet, flags, seq, family)
	if src.IsValid() {
		b = appendSource(b, direction, src)
		b = appendFilter(b, direction)
	}
	endMessage(b, start)
	return b
}

// appendCount appends a request for the number of entries.
func appendCount(b []byte, seq uint32) []byte {
	start := len(b)
	b = beginMessage(b, msgConnStats, unix.NLM_F_REQUEST, seq, unix.AF_UNSPEC)
	endMessage(b, start)
	return b
}

// parseCount returns the number of entries from the answer to appendCount, whose body
// begins with nfgenmsg; math.MaxInt if the answer has no number.
func parseCount(body []byte) int {
	if len(body) >= nfgenLen {
		for a, rest, ok := cut(body[nfgenLen:]); ok; a, rest, ok = cut(rest) {
			if a.kind == ctaStatsEntries && len(a.value) == 4 {
				return int(binary.BigEndian.Uint32(a.value))
			}
		}
	}
	return math.MaxInt
}

func appendSource(b []byte, direction uint16, src netip.Addr) []byte {
	b, tupleAt := beginNested(b, direction)
	b, ipAt := beginNested(b, ctaTupleIP)
	b = appendBytes(b, ctaIPv4Src, src.AsSlice())
	endNested(b, ipAt)
	endNested(b, tupleAt)
	return b
}

// appendFilter appends a filter by the source address of the direction's tuple; no field of
// the other tuple is compared. The flags are in host byte order.
func appendFilter(b []byte, direction uint16) []byte {
	var flags [2]uint32
	if direction == ctaTupleOrig {
		flags[0] = filterIPSrc
	} else {
		flags[1] = filterIPSrc
	}
	b, at := beginNested(b, ctaFilter)
	b = appendBytes(b, ctaFilterOrig, binary.NativeEndian.AppendUint32(nil, flags[0]))
	b = appendBytes(b, ctaFilterReply, binary.NativeEndian.AppendUint32(nil, flags[1]))
	endNested(b, at)
	return b
}
