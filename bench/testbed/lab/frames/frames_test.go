package frames_test

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"sluice/bench/testbed/lab/frames"
)

func end(n byte) frames.End {
	return frames.End{MAC: net.HardwareAddr{2, 0, 0, 0, 0, n}, Addrs: []netip.Addr{
		netip.AddrFrom4([4]byte{10, 0, 0, n}), netip.AddrFrom16([16]byte{0xfd, 15: n}),
	}}
}

// The same seed gives the same frames, and a different seed gives different frames. Most
// frames contain their number.
func TestFrames(t *testing.T) {
	opts := frames.Options{
		Sender: end(1), Targets: []frames.End{end(2), end(3)}, Others: []frames.End{end(4)}, Ports: []uint16{53, 80},
		Tunnels: map[uint16]net.HardwareAddr{8472: {2, 0, 0, 0, 9, 1}},
	}
	one, same, other := frames.New(7, opts), frames.New(7, opts), frames.New(8, opts)
	marked, different := 0, 0
	const count = 20000
	for id := range uint32(count) {
		f := one.Next(id)
		if !bytes.Equal(f, same.Next(id)) {
			t.Fatalf("frame %d differs with the same seed", id)
		}
		if !bytes.Equal(f, other.Next(id)) {
			different++
		}
		if len(f) < 14 {
			t.Fatalf("frame %d has no link header: %s", id, frames.Describe(f))
		}
		if got, found := frames.Find(f); found && got == id {
			marked++
		} else if found {
			t.Errorf("frame %d contains the number %d", id, got)
		}
	}
	if marked < count*8/10 || different < count*9/10 {
		t.Errorf("%d of %d frames contain their number, %d differ with another seed", marked, count, different)
	}
}

func TestFind(t *testing.T) {
	mark := frames.Fill(5, 40)
	for name, data := range map[string][]byte{"whole": mark, "within": append([]byte("abc"), mark...), "a part": mark[3:]} {
		if id, found := frames.Find(data); !found || id != 5 {
			t.Errorf("%s: %d, %v", name, id, found)
		}
	}
	mark = frames.Fill(5, 12)[:12]
	mark[7] ^= 1
	if id, found := frames.Find(mark); found {
		t.Errorf("a changed number is accepted as %d", id)
	}
}
