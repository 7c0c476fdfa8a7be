package bpf

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

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
