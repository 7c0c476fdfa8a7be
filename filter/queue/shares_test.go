package queue

import (
	"math/rand/v2"
	"net/netip"
	"testing"
)

func addr(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}) }

// counts returns the number of packets of each device, and of each of its addresses.
func counts(waiting []*pendingPacket) (devices map[uint32]int, addresses map[uint32]map[netip.Addr]int) {
	devices, addresses = make(map[uint32]int), make(map[uint32]map[netip.Addr]int)
	for _, p := range waiting {
		if devices[p.device]++; addresses[p.device] == nil {
			addresses[p.device] = make(map[netip.Addr]int)
		}
		addresses[p.device][p.source]++
	}
	return devices, addresses
}

func most[K comparable](m map[K]int) (most int) {
	for _, n := range m {
		most = max(most, n)
	}
	return most
}

// take decides like a model that counts all pending packets again for each new packet.
func TestShares(t *testing.T) {
	displacements, refusals := 0, 0
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 0))
		size := 1 + r.IntN(12)
		s := newShares(size)
		var waiting []*pendingPacket // the oldest first
		for range 300 {
			if len(waiting) > 0 && r.IntN(4) == 0 {
				i := r.IntN(len(waiting))
				s.leave(waiting[i])
				waiting = append(waiting[:i:i], waiting[i+1:]...)
			}
			p := &pendingPacket{device: uint32(r.IntN(3)), source: addr(r.IntN(3))}
			devices, addresses := counts(waiting)
			full := len(waiting) >= size
			otherDevice := devices[p.device]+1 < most(devices)
			otherAddress := !otherDevice && devices[p.device] > 0 && addresses[p.device][p.source]+1 < most(addresses[p.device])
			displaced, ok := s.take(p)
			if want := !full || otherDevice || otherAddress; ok != want || (displaced != nil) != (ok && full) {
				t.Fatalf("seed %d: with %v and %v, %d from %s gets a place: %v, displacing %v; want %v", seed, devices, addresses, p.device, p.source, ok, displaced, want)
			}
			if displaced != nil {
				displacements++
				if otherDevice && devices[displaced.device] != most(devices) || otherAddress && displaced.device != p.device ||
					addresses[displaced.device][displaced.source] != most(addresses[displaced.device]) {
					t.Fatalf("seed %d: with %v and %v, %d from %s displaces one of %d from %s", seed, devices, addresses, p.device, p.source, displaced.device, displaced.source)
				}
				at := -1
				for i, o := range waiting {
					if o.device == displaced.device && o.source == displaced.source {
						at = i
					}
				}
				if waiting[at] != displaced || !s.isDisplaced(displaced) {
					t.Fatalf("seed %d: the displaced packet is not the newest of its sender", seed)
				}
				waiting = append(waiting[:at:at], waiting[at+1:]...)
			}
			if ok {
				waiting = append(waiting, p)
			} else {
				refusals++
			}
			if s.held() != len(waiting) {
				t.Fatalf("seed %d: %d places are taken, want %d", seed, s.held(), len(waiting))
			}
		}
		for _, p := range waiting {
			s.leave(p)
			s.leave(&pendingPacket{displaced: true})
		}
		if s.held() != 0 || len(s.devices) != 0 || len(s.ranks) != 0 {
			t.Fatalf("seed %d: not empty after all packets left: %+v", seed, s)
		}
	}
	if displacements < 1000 || refusals < 1000 {
		t.Errorf("%d displacements and %d refusals, want at least 1000 of each", displacements, refusals)
	}
}

// A pod that scans with forged source addresses takes no place that starting pods need.
func TestForgedSourcesStayWithinTheirInterface(t *testing.T) {
	s := newShares(DefaultMaxHeld)
	scanner := 0
	scan := func(n int) {
		for range n {
			scanner++
			s.take(&pendingPacket{device: 1, source: addr(scanner)})
		}
	}
	scan(4 * DefaultMaxHeld)
	var starting []*pendingPacket
	for pod := range 30 {
		for n := range 4 {
			p := &pendingPacket{device: uint32(2 + pod), source: addr(60000 + pod)}
			if _, ok := s.take(p); !ok {
				t.Fatalf("packet %d of pod %d finds no place", n, pod)
			}
			starting = append(starting, p)
			scan(100)
		}
	}
	for _, p := range starting {
		if s.isDisplaced(p) {
			t.Fatal("a packet of a starting pod lost its place")
		}
	}
}

func TestSourceOf(t *testing.T) {
	v4, v6 := make([]byte, 20), make([]byte, 40)
	v4[0], v4[12], v4[15] = 0x45, 10, 7
	v6[0], v6[8], v6[23] = 0x60, 0xfd, 7
	for want, data := range map[string][]byte{"10.0.0.7": v4, "fd00::7": v6, "invalid IP": nil} {
		if got := sourceOf(data).String(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if a := sourceOf(v4[:19]); a.IsValid() {
		t.Errorf("of a header that is cut off: %s", a)
	}
}
