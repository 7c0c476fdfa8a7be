package conntrack_test

import (
	"net/netip"
	"testing"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"

	"sluice/bench/testbed/lab"
)

// newTable returns a new node, whose connection table the test uses.
func newTable(tb testing.TB) *lab.Host {
	tb.Helper()
	return lab.ForTest(tb, lab.Options{}).Nodes[0].Host
}

// run runs a command on a host.
func run(tb testing.TB, h *lab.Host, name string, args ...string) {
	tb.Helper()
	if err := h.Run(name, args...); err != nil {
		tb.Fatal(err)
	}
}

// fill adds count UDP connections to the table of h, from 10.0.0.0/8 to the given
// destinations in turn, each with a source address of its own.
func fill(tb testing.TB, h *lab.Host, count int, to ...netip.Addr) {
	tb.Helper()
	c, err := conntrack.Dial(&netlink.Config{NetNS: h.NetNS()})
	if err != nil {
		tb.Fatal(err)
	}
	defer c.Close()
	for i := range count {
		src := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		f := conntrack.NewFlow(17, 0, src, to[i%len(to)], 40000, 53, 600, 0)
		if err := c.Create(f); err != nil {
			tb.Fatalf("create entry %d: %v", i, err)
		}
	}
}
