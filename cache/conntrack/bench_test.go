package conntrack_test

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	"github.com/mdlayher/netlink"
	timo "github.com/ti-mo/conntrack"

	"sluice/bench/testbed/lab"
	"sluice/cache/conntrack"
)

// tracked is the number of connections in the table of the benchmarks.
const tracked = 50_000

// benchTable returns a node with the tracked connections in its table, and their
// destinations.
func benchTable(b *testing.B) (*lab.Host, []netip.Addr) {
	b.Helper()
	node := newTable(b)
	var dsts []netip.Addr
	for i := range 500 {
		dsts = append(dsts, netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}))
	}
	fill(b, node, tracked, dsts...)
	return node, dsts
}

func open(tb testing.TB, o conntrack.Options) *conntrack.Netlink {
	tb.Helper()
	k, err := conntrack.Open(o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = k.Close() })
	return k
}

// BenchmarkDump compares ways to find the connections of a few addresses in a
// table of 50,000.
func BenchmarkDump(b *testing.B) {
	node, dsts := benchTable(b)
	ctx := context.Background()
	b.Run("all/ti-mo", func(b *testing.B) {
		c, err := timo.Dial(&netlink.Config{NetNS: node.NetNS()})
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		b.ReportAllocs()
		for b.Loop() {
			flows, err := c.Dump(nil)
			if err != nil || len(flows) != tracked {
				b.Fatal(len(flows), err)
			}
		}
	})
	b.Run("all", func(b *testing.B) {
		k := open(b, conntrack.Options{NetNS: node.NetNS()})
		b.ReportAllocs()
		for b.Loop() {
			n := 0
			if err := k.Dump(ctx, nil, func(*conntrack.Conn) { n++ }); err != nil || n != tracked {
				b.Fatal(n, err)
			}
		}
	})
	for _, n := range []int{1, 2, 4} {
		b.Run(fmt.Sprintf("addresses=%d", n), func(b *testing.B) {
			k := open(b, conntrack.Options{NetNS: node.NetNS()})
			b.ReportAllocs()
			for b.Loop() {
				found := 0
				if err := k.Dump(ctx, dsts[:n], func(*conntrack.Conn) { found++ }); err != nil || found != n*tracked/len(dsts) {
					b.Fatal(found, err)
				}
			}
		})
	}
}

// BenchmarkSetMarks compares ways to mark 10,000 connections.
func BenchmarkSetMarks(b *testing.B) {
	node, _ := benchTable(b)
	ctx := context.Background()
	k := open(b, conntrack.Options{NetNS: node.NetNS()})
	var updates []conntrack.Update
	if err := k.Dump(ctx, nil, func(c *conntrack.Conn) {
		if len(updates) < tracked/5 {
			updates = append(updates, conntrack.Update{Ref: c.Ref, Mask: 0x30})
		}
	}); err != nil {
		b.Fatal(err)
	}
	b.Run("ti-mo", func(b *testing.B) {
		c, err := timo.Dial(&netlink.Config{NetNS: node.NetNS()})
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		flows, err := c.Dump(nil)
		if err != nil {
			b.Fatal(err)
		}
		flows = flows[:len(updates)]
		b.ReportAllocs()
		for b.Loop() {
			for _, f := range flows {
				if err := c.Update(timo.Flow{TupleOrig: f.TupleOrig, Mark: 0x10}); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	b.Run("batched", func(b *testing.B) {
		b.ReportAllocs()
		for mark := uint32(0x10); b.Loop(); mark ^= 0x30 {
			for i := range updates {
				updates[i].Mark = mark
			}
			if err := k.SetMarks(ctx, updates); err != nil {
				b.Fatal(err)
			}
		}
	})
}
