package packet_test

import (
	"bytes"
	"errors"
	"testing"

	"sluice/filter"
	"sluice/filter/packet"
)

// FuzzDecode checks, for any bytes, that the result keeps the guarantees of Decode and
// equals the oracle's. Further inputs are in testdata, in files named after what they test.
func FuzzDecode(f *testing.F) {
	for _, s := range samples() {
		f.Add(s.data)
	}
	d := packet.NewDecoder()
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		got, err := d.Decode(data)
		if !bytes.Equal(data, before) {
			t.Fatal("the packet has changed")
		}
		if want, wantErr := slowDecode(data); got != want || !errors.Is(err, wantErr) {
			t.Fatalf("%v, %v; the oracle returns %v, %v", got, err, want, wantErr)
		}
		checkPacket(t, data, got, err)
		for _, n := range []int{0, 1, 19, 20, 39, 40, 48, 60, len(data) / 2, len(data) - 1} {
			if n >= 0 && n < len(data) {
				cut, cutErr := d.Decode(data[:n])
				checkCut(t, "input", n, cut, cutErr, got, err)
			}
		}
		if announced := announcedLen(data); announced > 0 && announced <= len(data) {
			for _, padded := range [][]byte{data[:announced], append(bytes.Clone(data), data...)} {
				if p, e := d.Decode(padded); p != got || !errors.Is(e, err) {
					t.Fatalf("%v, %v; with padding %v, %v", got, err, p, e)
				}
			}
		}
	})
}

// checkPacket checks what must hold for every single packet.
func checkPacket(t *testing.T, data []byte, p packet.Packet, err error) {
	t.Helper()
	if err != nil {
		if p != (packet.Packet{}) {
			t.Fatalf("%v beside error %v", p, err)
		}
		return
	}
	if p.Key.Transport != filter.Ported {
		if p.Key.Port != 0 || p.SrcPort != 0 {
			t.Fatalf("a packet that is %s has ports: %v", p.Key.Transport, p)
		}
		return
	}
	least := map[filter.Protocol]int{filter.TCP: 20, filter.UDP: 8, filter.SCTP: 12}[p.Key.Protocol]
	if least == 0 {
		t.Fatalf("protocol %s has no ports: %v", p.Key.Protocol, p)
	}
	if data[0]>>4 == 4 {
		least += 20
	} else {
		least += 40
	}
	if len(data) < least {
		t.Fatalf("ports read from %d bytes, of which %d are headers: %v", len(data), least, p)
	}
}

// announcedLen returns the length of the packet according to its IP header; 0 if unknown.
func announcedLen(data []byte) int {
	switch {
	case len(data) >= 20 && data[0]>>4 == 4:
		if n := int(data[2])<<8 | int(data[3]); n >= 20 {
			return n
		}
	case len(data) >= 40 && data[0]>>4 == 6:
		if n := int(data[4])<<8 | int(data[5]); n > 0 {
			return 40 + n
		}
	}
	return 0
}
