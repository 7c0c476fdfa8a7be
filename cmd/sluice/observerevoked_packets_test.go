//go:build linux

package main

import (
	"net/netip"
	"strings"
	"testing"

	"sluice/cache/conntrack"
	"sluice/filter/flow"
)

// If policies change, a connection that is open becomes a record that is marked as revoked, and so does a
// flow over UDP. A connection that both ends have closed, or one has reset, makes no record, although its
// entry is still in the table.
func TestRevokedIsNoAttemptOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", "")
	s.start(kernelArgs()...)
	w := s.watch(t)
	var open, over []*tcpPair
	for family := range families {
		for _, reset := range []bool{false, true} {
			c := s.newTCPPair(t, family, "default/web")
			if reset {
				_ = c.client.SetLinger(0)
			}
			_, _ = c.client.Close(), c.server.Close()
			c.awaitEntry("closed", func(e *conntrack.Conn) bool { return e != nil && e.Closed })
			over = append(over, c)
		}
		open = append(open, s.newTCPPair(t, family, "default/web"))
	}
	udp, datagram := s.longConnection(t)
	datagram()

	revoked := func(from netip.AddrPort) int {
		n, _ := w.count(func(r *flow.Record) bool { return r.Revoked && r.Src == from.Addr() && r.SrcPort == from.Port() })
		return n
	}
	// The second change comes after all records of the first one.
	for i := 1; i <= 2; i++ {
		s.save("policies.yaml", policies(db("[]")))
		s.eventually(t, "the open ones are revoked", func() bool {
			for _, c := range open {
				if client, _ := c.ends(); revoked(client) < i {
					return false
				}
			}
			return revoked(udp) >= i
		})
		if i == 1 {
			_, stdout, stderr := sluice(t, "denied", "--socket", s.socket, "--to", "default/db")
			if !strings.Contains(stdout, "(closed 1 connection)") || stderr != "" {
				t.Errorf("denied: %s%s", stdout, stderr)
			}
			s.save("policies.yaml", policies(db("[{}]")))
			for _, c := range open {
				c.awaitMark(0x10)
			}
		}
	}
	for _, c := range over {
		if client, _ := c.ends(); revoked(client) > 0 {
			t.Errorf("%v has ended, and is shown as denied", client)
		}
	}
	if n, _ := w.count(func(r *flow.Record) bool { return r.Event == "denied" }); n != 2*(len(open)+1) {
		t.Errorf("%d denials, want %d", n, 2*(len(open)+1))
	}
}
