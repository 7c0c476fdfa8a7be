package node_test

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"testing"

	"sluice/filter/policy"
	"sluice/watch"
	"sluice/watch/node"
)

var _ watch.Source = node.Source{}

// Addresses returns the addresses of all interfaces, without loopback addresses.
func TestAddresses(t *testing.T) {
	got, err := node.Addresses()
	if err != nil {
		t.Fatal(err)
	}
	nets, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	var want []netip.Addr
	for _, n := range nets {
		if addr, ok := netip.AddrFromSlice(n.(*net.IPNet).IP); ok && !addr.Unmap().IsLoopback() {
			want = append(want, addr.Unmap())
		}
	}
	slices.SortFunc(want, netip.Addr.Compare)
	if want = slices.Compact(want); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestSourceReportsAtOnceAndEndsWithItsContext(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	store := policy.NewStore()
	updates := 0
	err := node.Source{}.Run(ctx, func(update func(*policy.Store)) {
		update(store)
		updates++
		stop()
	})
	if err != nil || updates != 1 {
		t.Fatalf("%d updates, %v", updates, err)
	}
	addrs, err := node.Addresses()
	if err != nil {
		t.Fatal(err)
	}
	s, _ := store.Commit()
	for _, a := range addrs {
		if !s.Endpoint(a).IsNode() {
			t.Errorf("%v is not known to be the node's", a)
		}
	}
}
