package conntrack_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// service6 is what service is in IPv6.
var service6 = netip.MustParseAddrPort("[fd00:96::1]:80")

// target is the port that the services lead to, on db.
const target = 6379

// network is a router between two pods. It leads the services to db, gives every
// connection a mark of its own, and drops both directions of what is revoked.
type network struct {
	web, router, db namespace
}

// newNetwork makes the network of web and db, with both families.
func newNetwork(t *testing.T) network {
	t.Helper()
	n := network{web: newNamespace(t), router: newNamespace(t), db: newNamespace(t)}
	for _, name := range []string{"iptables", "ip6tables", "ip"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("needs %s: %v", name, err)
		}
	}
	n.router.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	n.join(n.web, "web", web, web6)
	n.join(n.db, "db", db, db6)
	for _, f := range []struct {
		iptables    string
		service, to netip.AddrPort
	}{
		{"iptables", service, netip.AddrPortFrom(db, target)},
		{"ip6tables", service6, netip.AddrPortFrom(db6, target)},
	} {
		for _, proto := range []string{"tcp", "udp"} {
			n.router.run(f.iptables, "-w", "-t", "nat", "-A", "PREROUTING", "-d", f.service.Addr().String(), "-p", proto,
				"--dport", strconv.Itoa(int(f.service.Port())), "-j", "DNAT", "--to-destination", f.to.String())
		}
		mark := fmt.Sprintf("%#x/%#x", foreign, foreign)
		n.router.run(f.iptables, "-w", "-t", "mangle", "-A", "PREROUTING", "-j", "CONNMARK", "--set-xmark", mark)
		for _, dir := range []string{"ORIGINAL", "REPLY"} {
			n.router.run(f.iptables, "-w", "-t", "mangle", "-A", "POSTROUTING", "-m", "conntrack", "--ctdir", dir,
				"-m", "connmark", "--mark", fmt.Sprintf("%#x/%#x", revoked, revoked), "-j", "DROP")
		}
	}
	return n
}

// join gives a pod its addresses and a wire to the router.
func (n network) join(pod namespace, name string, v4, v6 netip.Addr) {
	pod.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", n.router.path())
	for _, end := range []struct {
		namespace
		dev      string
		addr, ll string
	}{
		{pod, "eth0", v4.String() + "/32", v6.String() + "/128"},
		{n.router, name, "169.254.1.1/32", "fe80::1/64"},
	} {
		end.run("ip", "link", "set", end.dev, "up")
		end.run("ip", "addr", "add", end.addr, "dev", end.dev)
		end.run("ip", "addr", "add", end.ll, "dev", end.dev, "nodad")
	}
	pod.run("ip", "route", "add", "169.254.1.1", "dev", "eth0")
	pod.run("ip", "route", "add", "default", "via", "169.254.1.1")
	pod.run("ip", "-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0")
	n.router.run("ip", "route", "add", v4.String(), "dev", name)
	n.router.run("ip", "-6", "route", "add", v6.String(), "dev", name)
}

// path is a name that ip takes for the namespace.
func (n namespace) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(n.handle)) }

var dropRule = regexp.MustCompile(`\[(\d+):\d+\] -A POSTROUTING .*--ctdir (ORIGINAL|REPLY).* -j DROP`)

// dropped says how many packets of revoked connections the router has dropped, in
// the direction.
func (n network) dropped(family, direction string) (packets int) {
	n.router.tb.Helper()
	err := n.router.do(func() error {
		out, err := exec.Command(family+"-save", "-c", "-t", "mangle").Output()
		for _, m := range dropRule.FindAllStringSubmatch(string(out), -1) {
			if m[2] == direction {
				packets, _ = strconv.Atoi(m[1])
			}
		}
		return err
	})
	if err != nil {
		n.router.tb.Fatalf("%s-save: %v", family, err)
	}
	return packets
}

// awaitDrop runs f, which makes a packet, until the router has dropped one.
func (n network) awaitDrop(family, direction string, f func()) {
	n.router.tb.Helper()
	before := n.dropped(family, direction)
	f()
	for end := time.Now().Add(5 * time.Second); n.dropped(family, direction) == before; {
		if time.Now().After(end) {
			n.router.tb.Fatalf("%s: no packet in direction %s was dropped", family, direction)
		}
	}
}
