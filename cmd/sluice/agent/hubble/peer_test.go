package hubble

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	peerpb "github.com/cilium/cilium/api/v1/peer"

	"sluice/filter/policy"
)

// A client of Notify gets the addresses of all nodes. Later, it gets each change of them.
func TestNotify(t *testing.T) {
	f := newFixture(t, Peers{Port: 4244, Addr: netip.MustParseAddr("0.0.0.0"), ServerName: func(node string) string { return node + ".x" }})
	node := func(name string, addrs ...string) {
		n := &policy.Node{Name: name}
		for _, a := range addrs {
			n.Addrs = append(n.Addrs, netip.MustParseAddr(a))
		}
		f.store.SetNodeObject(n)
	}
	node("n1", "2001:db8::1", "192.0.2.1", "192.0.2.9")
	node("n2", "192.0.2.2")
	node("new")
	f.publish()
	ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
	defer cancel()
	stream, err := peerpb.NewPeerClient(f.conn).Notify(ctx, &peerpb.NotifyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := func(lines ...string) {
		t.Helper()
		for _, line := range lines {
			c, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprint(c.GetType(), " ", c.GetName(), " ", c.GetAddress(), " ", c.GetTls().GetServerName()); got != line {
				t.Errorf("%s, want %s", got, line)
			}
		}
	}
	want("PEER_ADDED n1 192.0.2.1:4244 n1.x", "PEER_ADDED n2 192.0.2.2:4244 n2.x")
	node("n2", "192.0.2.3")
	node("new", "192.0.2.4")
	f.publish()
	want("PEER_ADDED new 192.0.2.4:4244 new.x", "PEER_UPDATED n2 192.0.2.3:4244 n2.x")
	f.store.DeleteNodeObject("n1")
	f.publish()
	want("PEER_DELETED n1 192.0.2.1:4244 n1.x")
}

// A node without an address is logged once, and again if it had an address meanwhile. This node is not
// logged if clients get the address that its agent listens on.
func TestNodeWithoutAddressIsLogged(t *testing.T) {
	var log bytes.Buffer
	store := policy.NewStore()
	p := &peer{Options: Options{NodeName: "own", Logger: slog.New(slog.NewTextHandler(&log, nil)), Peers: Peers{Port: 4244, Addr: netip.MustParseAddr("192.0.2.1")}}}
	step := func(want int, n2 ...netip.Addr) {
		t.Helper()
		store.SetNodeObject(&policy.Node{Name: "own"})
		store.SetNodeObject(&policy.Node{Name: "n2", Addrs: n2})
		s, _ := store.Commit()
		for range 2 {
			if all := p.peers(s); all["own"] == nil || (all["n2"] == nil) != (len(n2) == 0 || n2[0].Is6()) {
				t.Errorf("peers %v", all)
			}
		}
		if got := strings.Count(log.String(), "node=n2\n"); got != want || strings.Contains(log.String(), "node=own") {
			t.Errorf("n2 is logged %d times, want %d:\n%s", got, want, &log)
		}
	}
	step(1)
	step(1, netip.MustParseAddr("192.0.2.2"))
	step(2, netip.MustParseAddr("2001:db8::2")) // the agents listen on an address of IPv4
}

// Without an address for other nodes, and without Node objects, the agent is its only peer.
func TestOwnPeer(t *testing.T) {
	for want, peers := range map[string]Peers{
		"unix:///run/s":   {Socket: "/run/s"},
		"127.0.0.1:4244":  {Port: 4244, Addr: netip.MustParseAddr("127.0.0.1")},
		"[2001:db8::]:80": {Port: 80, Addr: netip.MustParseAddr("2001:db8::")},
	} {
		p := &peer{Options: Options{NodeName: "n1", Peers: peers}}
		if all := p.peers(nil); len(all) != 1 || all["n1"].GetAddress() != want || all["n1"].GetTls() != nil {
			t.Errorf("%v, want %s", all, want)
		}
	}
}
