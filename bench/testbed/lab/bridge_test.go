package lab_test

import (
	"net/netip"
	"testing"
	"time"

	"sluice/bench/testbed/lab"
)

// Pods on a bridge reach each other, outside hosts and pods of other nodes, as routed pods do.
// Packets between pods on a bridge pass through iptables.
func TestBridged(t *testing.T) {
	l := lab.ForTest(t, lab.Options{Nodes: 2, Bridged: true})
	web, db, far := addPod(t, l.Nodes[0], "web"), addPod(t, l.Nodes[0], "db"), addPod(t, l.Nodes[1], "far")
	hosts := []*lab.Host{web, db, far, l.Outside}
	for _, h := range hosts {
		if err := h.Serve("tcp", 80); err != nil {
			t.Fatal(err)
		}
	}
	for _, from := range append(hosts, l.Nodes[0].Host) {
		for _, to := range hosts {
			for _, a := range to.Addrs() {
				if r := from.Connect(t.Context(), "tcp", netip.AddrPortFrom(a, 80), attemptTimeout); r.Outcome != lab.Reached {
					t.Errorf("%s to %s %s: %s %v", from.Name, to.Name, a, r.Outcome, r.Err)
				}
			}
		}
	}
	for _, iptables := range []string{"iptables", "ip6tables"} {
		if err := l.Nodes[0].Run(iptables, "-A", "FORWARD", "-m", "physdev", "--physdev-is-bridged", "-j", "DROP"); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range db.Addrs() {
		if r := web.Connect(t.Context(), "tcp", netip.AddrPortFrom(a, 80), 300*time.Millisecond); r.Outcome == lab.Reached {
			t.Errorf("packets to %s bypass iptables", a)
		}
	}
}
