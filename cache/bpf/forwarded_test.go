package bpf_test

import (
	"math/rand/v2"
	"testing"

	"github.com/cilium/ebpf"

	"sluice/cache/bpf"
	"sluice/filter"
)

// In POSTROUTING, two programs together match the packets that "allow" matches, and none twice:
// "forwarded" those that came in at an interface and have ports, "others" the rest.
func TestProgramsOfPostroutingShareAllowedPackets(t *testing.T) {
	c := newCache(t, bpf.Options{})
	all := load(t, c)
	part := func(pin string) *programs {
		one, err := ebpf.LoadPinnedProgram(pin, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = one.Close() })
		return &programs{t: t, allow: one}
	}
	forwarded, others := part(c.ForwardedPin()), part(c.OthersPin())
	u := newUser(t, c, podRanges)
	r := chance{rand.New(rand.NewPCG(5, 0))}
	u.store.SetNode(nodeAddrs[:])
	matched := map[string]int{}
	for range 40 {
		for range 1 + r.IntN(3) {
			r.change(u)
		}
		u.commit(t)
		for range 200 {
			data, plain := r.packet()
			u.evaluate(data)
			for _, device := range []uint32{0, 5} {
				got := map[string]bool{"forwarded": forwarded.runFrom(device, data) == allowed, "others": others.runFrom(device, data) == allowed}
				want := map[string]bool{}
				if all.runFrom(device, data) == allowed {
					k, err := u.decoder.Decode(data)
					ports := err == nil && k.Key.Transport == filter.Ported
					if !plain && device != 0 {
						// The programs read only the IP header to tell which packets have ports.
						ports = got["forwarded"]
					}
					want[map[bool]string{true: "forwarded", false: "others"}[device != 0 && ports]] = true
				}
				for name := range got {
					if got[name] != want[name] {
						t.Fatalf("from interface %d, %s matches %t, want %t: %x", device, name, got[name], want[name], data)
					}
					if got[name] {
						matched[name]++
					}
				}
			}
		}
	}
	if matched["forwarded"] < 100 || matched["others"] < 100 {
		t.Errorf("matched packets: %v", matched)
	}
}
