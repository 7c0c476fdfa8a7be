package policy

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// A table holds the same entries as a map while it grows and shrinks. A table does not
// change when its method "with" derives a new one from it.
func TestAddrTable(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	addr := func() netip.Addr {
		n := random.IntN(4000)
		if a := [4]byte{10, 0, byte(n >> 8), byte(n)}; n%2 == 0 {
			return netip.AddrFrom4(a)
		}
		return netip.AddrFrom16([16]byte{0: 0xfd, 7: byte(n), 14: byte(n >> 8), 15: byte(n)})
	}
	now, want := new(addrTable), map[netip.Addr]*Endpoint{}
	before, wanted := now, map[netip.Addr]*Endpoint{}
	chapters := map[int]bool{}
	for round := range 400 {
		var changes []move
		for range 1 + random.IntN(100) {
			a, e := addr(), &Endpoint{epoch: random.Uint64()}
			if grows := round < 200; random.IntN(4) > 0 != grows {
				e = nil
			}
			changes = append(changes, move{entry: entryOf(a, e)})
			if want[a] = e; e == nil {
				delete(want, a)
			}
		}
		now = now.with(changes)
		same(t, now, want)
		chapters[len(now.chapters)] = true
		if random.IntN(5) == 0 {
			same(t, before, wanted)
			before, wanted = now, maps.Clone(want)
		}
	}
	for a := range want {
		now = now.with([]move{{entry: entryOf(a, nil)}})
	}
	same(t, now, nil)
	if len(chapters) < 4 || len(now.chapters) != 1 {
		t.Errorf("the table had these numbers of chapters: %v, and %d at the end; want at least 4 numbers, and 1 at the end", chapters, len(now.chapters))
	}
}

func same(t *testing.T, table *addrTable, want map[netip.Addr]*Endpoint) {
	t.Helper()
	if got := maps.Collect((&Snapshot{table: table}).Endpoints()); table.size != len(want) || !maps.Equal(got, want) {
		t.Fatalf("a table of size %d with %d entries, want %d, or the entries differ", table.size, len(got), len(want))
	}
	for a, e := range want {
		if got := table.get(a); got != e {
			t.Fatalf("the owner of %s is %v, want %v", a, got, e)
		}
	}
	for _, unknown := range []string{"10.1.0.0", "fd00::1:0", "::ffff:10.9.0.0"} {
		if got := table.get(netip.MustParseAddr(unknown)); got != nil {
			t.Fatalf("the owner of %s is %v, want none", unknown, got)
		}
	}
}
