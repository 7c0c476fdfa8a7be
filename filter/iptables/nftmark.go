//go:build linux

package iptables

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// markReader decodes the conditions of a rule about marks: of the packet (mark) or its connection
// (connmark). iptables-nft writes a condition as one expression, the extension of iptables. Newer
// versions write mark as expressions of nf_tables: load the mark into a register, apply a mask, and
// compare.
type markReader struct {
	loaded         bool // the register has the packet's mark, under the mask
	register, mask uint32
}

// read decodes an expression. It returns the condition that the expression completes, as iptables
// prints it, such as " -m mark ! --mark 0x10/0x30"; empty if further expressions follow. If the
// expression is not part of such a condition, known is false.
func (m *markReader) read(name string, ad *netlink.AttributeDecoder) (condition string, known bool) {
	a := attributesOf(ad)
	switch name {
	case "match":
		return extensionMark(a)
	case "meta":
		return "", m.load(a)
	case "bitwise":
		return "", m.apply(a)
	case "cmp":
		return m.compare(a)
	}
	return "", false
}

// extensionMark decodes the extension mark or connmark (xt_mark_mtinfo1, xt_connmark_mtinfo1).
func extensionMark(a map[uint16][]byte) (condition string, known bool) {
	const size = 9 // up to the field invert
	name, info := unix.ByteSliceToString(a[unix.NFTA_MATCH_NAME]), a[unix.NFTA_MATCH_INFO]
	if name != "mark" && name != "connmark" || number(a[unix.NFTA_MATCH_REV]) != 1 || len(info) < size {
		return "", false
	}
	value, mask := binary.NativeEndian.Uint32(info), binary.NativeEndian.Uint32(info[4:])
	return markCondition(name, value, mask, info[8] != 0), true
}

// load decodes the expression that loads the packet's mark.
func (m *markReader) load(a map[uint16][]byte) (known bool) {
	*m = markReader{loaded: true, register: number(a[unix.NFTA_META_DREG]), mask: math.MaxUint32}
	return number(a[unix.NFTA_META_KEY]) == unix.NFT_META_MARK && m.register != 0
}

// apply decodes the expression that applies a mask to the register.
func (m *markReader) apply(a map[uint16][]byte) (known bool) {
	const operation = 6 // NFTA_BITWISE_OP
	mask, xor := dataOf(a[unix.NFTA_BITWISE_MASK]), dataOf(a[unix.NFTA_BITWISE_XOR])
	if !m.loaded || number(a[unix.NFTA_BITWISE_SREG]) != m.register || number(a[unix.NFTA_BITWISE_DREG]) != m.register ||
		number(a[operation]) != 0 || len(mask) != 4 || len(xor) != 4 || binary.NativeEndian.Uint32(xor) != 0 {
		return false
	}
	m.mask &= binary.NativeEndian.Uint32(mask)
	return true
}

// compare decodes the expression that compares the register.
func (m *markReader) compare(a map[uint16][]byte) (condition string, known bool) {
	value, operator := dataOf(a[unix.NFTA_CMP_DATA]), number(a[unix.NFTA_CMP_OP])
	if !m.loaded || number(a[unix.NFTA_CMP_SREG]) != m.register || len(value) != 4 || operator > unix.NFT_CMP_NEQ {
		return "", false
	}
	m.loaded = false
	return markCondition("mark", binary.NativeEndian.Uint32(value), m.mask, operator == unix.NFT_CMP_NEQ), true
}

// markCondition returns a condition as iptables prints it.
func markCondition(name string, value, mask uint32, invert bool) string {
	text := " -m " + name
	if invert {
		text += " !"
	}
	text += fmt.Sprintf(" --mark %#x", value)
	if mask != math.MaxUint32 {
		text += fmt.Sprintf("/%#x", mask)
	}
	return text
}

// attributesOf returns the values of all attributes by their types.
func attributesOf(ad *netlink.AttributeDecoder) map[uint16][]byte {
	all := map[uint16][]byte{}
	for ad.Next() {
		all[ad.Type()] = ad.Bytes()
	}
	return all
}

// dataOf returns the value in an attribute of nf_tables' type "data".
func dataOf(attrs []byte) []byte {
	ad, err := netlink.NewAttributeDecoder(attrs)
	if err != nil {
		return nil
	}
	return attributesOf(ad)[unix.NFTA_DATA_VALUE]
}

// number decodes a number of nf_tables; a missing one is 0.
func number(value []byte) uint32 {
	if len(value) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(value)
}
