package queue

import (
	"bytes"
	"encoding/binary"
	"testing"

	"sluice/filter"
)

// attribute returns a netlink attribute with its padding.
func attribute(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(attrHeaderLen+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, align(len(b))-len(b))...)
}

func number(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

func TestParsePacket(t *testing.T) {
	family := []byte{2, 0, 0, 7}
	header := attribute(attrPacketHeader, append(number(42), 8, 0, 4))
	payload := []byte{0x45, 1, 2, 3, 4}
	for name, tt := range map[string]struct {
		attributes [][]byte
		want       packet
	}{
		"ID only":            {[][]byte{header}, packet{id: 42}},
		"all":                {[][]byte{header, attribute(attrMark, number(0x10)), attribute(attrInDevice, number(3)), attribute(attrPayload, payload)}, packet{id: 42, mark: 0x10, device: 3, data: payload}},
		"port of a bridge":   {[][]byte{header, attribute(attrInDevice, number(3)), attribute(attrPhysInDevice, number(4))}, packet{id: 42, device: 4}},
		"bridge of the port": {[][]byte{attribute(attrPhysInDevice, number(4)), attribute(attrInDevice, number(3)), header}, packet{id: 42, device: 4}},
		"for this node":      {[][]byte{attribute(attrPacketHeader, append(number(42), 8, 0, 1))}, packet{id: 42, hook: filter.AtInput}},
		"no hook":            {[][]byte{attribute(attrPacketHeader, number(1))}, packet{id: 1}},
		"unknown attribute":  {[][]byte{attribute(99, number(9)), header, attribute(attrMark|0x8000, number(1))}, packet{id: 42, mark: 1}},
	} {
		p, err := parsePacket(append(bytes.Clone(family), bytes.Join(tt.attributes, nil)...))
		if err != nil || p.id != tt.want.id || p.mark != tt.want.mark || p.device != tt.want.device || p.hook != tt.want.hook || !bytes.Equal(p.data, tt.want.data) {
			t.Errorf("%s: %+v, %v; want %+v", name, p, err, tt.want)
		}
	}
	for name, body := range map[string][]byte{
		"empty":                   nil,
		"no attributes":           family,
		"no ID":                   append(bytes.Clone(family), attribute(attrMark, number(1))...),
		"short ID":                append(bytes.Clone(family), attribute(attrPacketHeader, []byte{1, 2})...),
		"attribute beyond end":    append(append(bytes.Clone(family), header...), 0xff, 0, attrMark, 0, 1),
		"attribute within header": append(append(bytes.Clone(family), header...), 2, 0, attrMark, 0),
	} {
		if p, err := parsePacket(body); err == nil {
			t.Errorf("%s: %+v", name, p)
		}
	}
}
