package bpf

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/bits"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"sluice/filter/addrbits"
	"sluice/filter/policy"
)

// fakeTable is a table of a kernel with or without batches.
type fakeTable struct {
	batches bool
	entries map[[16]byte]endpoint
	sizes   []int // of the batches
}

func (t *fakeTable) BatchUpdate(keys, values any, _ *ebpf.BatchOptions) (int, error) {
	if !t.batches {
		return 0, fmt.Errorf("write a batch: %w", ebpf.ErrNotSupported)
	}
	addrs, endpoints := keys.([][16]byte), values.([]endpoint)
	for i := range addrs {
		t.entries[addrs[i]] = endpoints[i]
	}
	t.sizes = append(t.sizes, len(addrs))
	return len(addrs), nil
}

func (t *fakeTable) Update(key, value any, _ ebpf.MapUpdateFlags) error {
	t.entries[key.([16]byte)] = value.(endpoint)
	return nil
}

func (t *fakeTable) Delete(key any) error {
	if _, ok := t.entries[key.([16]byte)]; !ok {
		return ebpf.ErrKeyNotExist
	}
	delete(t.entries, key.([16]byte))
	return nil
}

// With and without batches, a table gets all endpoints, and loses those that are gone.
func TestWriteEndpoints(t *testing.T) {
	w := policy.NewStore()
	for i := range 2*maxBatch + 5 {
		w.SetPod(&policy.Pod{Namespace: "a", Name: fmt.Sprint(i), Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})}})
	}
	s, changes := w.Commit()
	gone, never := netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("10.9.0.2")
	for _, batches := range []bool{true, false} {
		table := &fakeTable{batches: batches, entries: map[[16]byte]endpoint{gone.As16(): {}}}
		if err := (&Cache{prefixes: newPrefixTable()}).write(table, s, owners(s, slices.Values(append(slices.Clone(changes), gone, never)))); err != nil {
			t.Fatal(err)
		}
		want := make(map[[16]byte]endpoint)
		for _, a := range changes {
			e, id := s.Identify(a)
			want[a.As16()] = endpointOf(s, e, id, 0, 0)
		}
		if !maps.Equal(table.entries, want) {
			t.Errorf("with batches (%t), the table has %d endpoints, want %d", batches, len(table.entries), len(want))
		}
		if batches && !slices.Equal(table.sizes, []int{maxBatch, maxBatch, 5}) {
			t.Errorf("batches of %v entries", table.sizes)
		}
	}
}

// failingTable is a map whose batches stop halfway while fail is set.
type failingTable struct {
	table
	fail  bool
	words map[uint32]uint64
}

func (t *failingTable) BatchUpdate(keys, values any, _ *ebpf.BatchOptions) (int, error) {
	for i, at := range keys.([]uint32) {
		if t.fail && i == len(keys.([]uint32))/2 {
			return i, errors.New("no memory")
		}
		t.words[at] = values.([]uint64)[i]
	}
	return len(keys.([]uint32)), nil
}

// After an error, the next call writes the bits that may be missing, and add clears no bit.
func TestOwnedAfterError(t *testing.T) {
	in := &failingTable{words: make(map[uint32]uint64)}
	o := newOwnedFilter(in)
	has := func(a netip.Addr) bool {
		bit := addrbits.Bit(a, ownedBits)
		return in.words[bit/64]>>(bit%64)&1 != 0
	}
	addrs := make([]netip.Addr, 10_000)
	for i := range addrs {
		addrs[i] = netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
	}
	first, all := addrs[:5000], addrs
	for _, step := range []struct {
		add  []netip.Addr
		fail bool
	}{{first, false}, {all, true}, {all, false}} {
		in.fail = step.fail
		if err := o.add(slices.Values(step.add)); (err != nil) != step.fail {
			t.Fatal(err)
		}
		held := first
		if !step.fail {
			held = step.add
		}
		for _, a := range held {
			if !has(a) {
				t.Fatalf("%s has no bit", a)
			}
		}
	}
}

// When many addresses had an endpoint, the filter forgets all but those that still have one. An address that comes
// back is added again, even if forgetting it failed halfway.
func TestOwnedForgets(t *testing.T) {
	for _, fail := range []bool{false, true} {
		in := &failingTable{words: make(map[uint32]uint64)}
		o := newOwnedFilter(in)
		nth := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}) }
		each := func(from, to int) iter.Seq[netip.Addr] {
			return func(yield func(netip.Addr) bool) {
				for i := from; i < to && yield(nth(i)); i++ {
				}
			}
		}
		count := func() (n int) {
			for _, word := range in.words {
				n += bits.OnesCount64(word)
			}
			return n
		}
		const all, kept = 2 * manyBits, 1000
		if err := errors.Join(o.add(each(0, 1000)), o.clean(0, each(0, 0))); err != nil || count() < 900 {
			t.Fatalf("few bits were cleaned: %d are left, error %v", count(), err)
		}
		if err := errors.Join(o.add(each(0, all)), o.clean(all, each(0, all))); err != nil || count() != o.set {
			t.Fatalf("%d bits, counted %d, error %v", count(), o.set, err)
		}
		in.fail = fail
		if err := o.clean(kept, each(0, kept)); (err != nil) != fail {
			t.Fatal(err)
		}
		in.fail = false
		if n := count(); !fail && (n > kept || n < kept*9/10 || n != o.set) {
			t.Errorf("%d bits for %d addresses, counted %d", n, kept, o.set)
		}
		if err := o.add(each(0, all)); err != nil {
			t.Fatal(err)
		}
		for a := range each(0, all) {
			if bit := addrbits.Bit(a, ownedBits); in.words[bit/64]>>(bit%64)&1 == 0 {
				t.Fatalf("%s came back and has no bit", a)
			}
		}
	}
}
