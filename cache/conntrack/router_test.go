package conntrack_test

import (
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"strconv"
	"testing"
	"time"

	"sluice/bench/testbed/lab"
)

// service6 is the IPv6 counterpart of service.
var service6 = netip.MustParseAddrPort("[fd00:96::1]:80")

// testTimeout bounds the wait for a packet that must come.
const testTimeout = 2 * time.Minute

// target is the port on db to which the services are translated.
const target = 6379

// network is a router between the pods web and db. The router translates the addresses service
// and service6 to db, sets mark bits that belong to other programs on every connection, and
// drops the packets of revoked connections in both directions.
type network struct {
	tb              testing.TB
	web, router, db *lab.Host
}

// newNetwork makes the network of web and db, with both families.
func newNetwork(t *testing.T) network {
	t.Helper()
	l := lab.ForTest(t, lab.Options{})
	n := network{tb: t, router: l.Nodes[0].Host}
	var err error
	if n.web, err = l.AddPod("web", web, web6); err != nil {
		t.Fatal(err)
	}
	if n.db, err = l.AddPod("db", db, db6); err != nil {
		t.Fatal(err)
	}
	for _, f := range []struct {
		iptables    string
		service, to netip.AddrPort
	}{
		{"iptables", service, netip.AddrPortFrom(db, target)},
		{"ip6tables", service6, netip.AddrPortFrom(db6, target)},
	} {
		for _, proto := range []string{"tcp", "udp"} {
			run(t, n.router, f.iptables, "-w", "-t", "nat", "-A", "PREROUTING", "-d", f.service.Addr().String(), "-p", proto,
				"--dport", strconv.Itoa(int(f.service.Port())), "-j", "DNAT", "--to-destination", f.to.String())
		}
		mark := fmt.Sprintf("%#x/%#x", foreign, foreign)
		run(t, n.router, f.iptables, "-w", "-t", "mangle", "-A", "PREROUTING", "-j", "CONNMARK", "--set-xmark", mark)
		for _, dir := range []string{"ORIGINAL", "REPLY"} {
			run(t, n.router, f.iptables, "-w", "-t", "mangle", "-A", "POSTROUTING", "-m", "conntrack", "--ctdir", dir,
				"-m", "connmark", "--mark", fmt.Sprintf("%#x/%#x", revoked, revoked), "-j", "DROP")
		}
	}
	return n
}

var dropRule = regexp.MustCompile(`\[(\d+):\d+\] -A POSTROUTING .*--ctdir (ORIGINAL|REPLY).* -j DROP`)

// dropped returns the number of packets of revoked connections that the router has dropped
// in the given direction.
func (n network) dropped(family, direction string) (packets int) {
	n.tb.Helper()
	out, err := n.router.Output(exec.Command(family+"-save", "-c", "-t", "mangle"))
	if err != nil {
		n.tb.Fatal(err)
	}
	for _, m := range dropRule.FindAllStringSubmatch(out, -1) {
		if m[2] == direction {
			packets, _ = strconv.Atoi(m[1])
		}
	}
	return packets
}

// awaitDrop runs f, which sends a packet, and waits until the router has dropped a packet.
func (n network) awaitDrop(family, direction string, f func()) {
	n.tb.Helper()
	before := n.dropped(family, direction)
	f()
	for end := time.Now().Add(testTimeout); n.dropped(family, direction) == before; {
		if time.Now().After(end) {
			n.tb.Fatalf("%s: no packet in direction %s was dropped", family, direction)
		}
	}
}
