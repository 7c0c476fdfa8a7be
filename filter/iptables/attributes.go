//go:build linux

package iptables

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// attributes is a sequence of netlink attributes in the form that nf_tables itself sends:
// numbers in network byte order, nested attributes without NLA_F_NESTED. So the bytes of a
// rule that the kernel returns equal the bytes that were written.
type attributes []byte

// attributeHeader is the size of an attribute's length and type.
const attributeHeader = 4

// raw returns a with an attribute appended.
func (a attributes) raw(kind uint16, data []byte) attributes {
	a = binary.NativeEndian.AppendUint16(a, uint16(attributeHeader+len(data)))
	a = binary.NativeEndian.AppendUint16(a, kind)
	a = append(a, data...)
	return append(a, make([]byte, -len(data)&3)...)
}

func (a attributes) text(kind uint16, s string) attributes { return a.raw(kind, append([]byte(s), 0)) }

func (a attributes) number(kind uint16, n uint32) attributes {
	return a.raw(kind, binary.BigEndian.AppendUint32(nil, n))
}

// withoutCounters returns the expressions of a rule except its counters, whose values change.
func withoutCounters(expressions []byte) (rest attributes) {
	for len(expressions) >= attributeHeader {
		length := int(binary.NativeEndian.Uint16(expressions))
		if length < attributeHeader || length > len(expressions) {
			break
		}
		one := expressions[attributeHeader:length]
		if !is(attribute(one, unix.NFTA_EXPR_NAME), "counter") {
			rest = rest.raw(unix.NFTA_LIST_ELEM, one)
		}
		expressions = expressions[min(len(expressions), (length+3)&^3):]
	}
	return rest
}
