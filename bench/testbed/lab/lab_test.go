package lab_test

import (
	"bufio"
	"context"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"sluice/bench/testbed/lab"
)

// attemptTimeout bounds the time of an attempt on a busy machine. On an idle machine, an
// attempt takes less than a millisecond.
const attemptTimeout = 2 * time.Minute

func addPod(t testing.TB, n *lab.Node, name string, addrs ...netip.Addr) *lab.Host {
	t.Helper()
	h, err := n.AddPod(name, addrs...)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func serve(t testing.TB, h *lab.Host, port uint16) {
	t.Helper()
	for _, network := range []string{"tcp", "udp"} {
		if err := h.Serve(network, port); err != nil {
			t.Fatal(err)
		}
	}
}

func addrPort(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

func TestEveryoneReachesEveryone(t *testing.T) {
	l := lab.ForTest(t, lab.Options{Nodes: 2})
	hosts := []*lab.Host{l.Outside, l.Nodes[0].Host, l.Nodes[1].Host}
	for i, name := range []string{"default/web", "default/db", "default/api"} {
		hosts = append(hosts, addPod(t, l.Nodes[i%2], name))
	}
	for _, h := range hosts {
		serve(t, h, 80)
	}
	var wg sync.WaitGroup
	for _, from := range hosts {
		for _, to := range hosts {
			for i, addr := range to.Addrs() {
				for _, network := range []string{"tcp", "udp"} {
					wg.Go(func() {
						r := from.Connect(t.Context(), network, addrPort(addr, 80), attemptTimeout)
						source := from.Addrs()[i]
						if r.Outcome != lab.Reached || r.By != to.Name || r.Seen.Addr() != source || r.Seen != r.From {
							t.Errorf("%s to %s %s/%s: %+v, want an answer to %s", from.Name, to.Name, addr, network, r, source)
						}
					})
				}
			}
		}
	}
	wg.Wait()
}

// No two datagrams of Connect have the same source port. The kernel would choose from two ports.
func TestConnectFromNewPorts(t *testing.T) {
	l := lab.ForTest(t, lab.Options{})
	web, db := addPod(t, l.Nodes[0], "web"), addPod(t, l.Nodes[0], "db")
	serve(t, db, 80)
	serve(t, web, 10_003) // one of the ports that Connect uses
	if err := web.Run("sh", "-c", "echo 40000 40001 > /proc/sys/net/ipv4/ip_local_port_range"); err != nil {
		t.Fatal(err)
	}
	seen := make(map[netip.AddrPort]bool)
	for range 10 {
		r := web.Connect(t.Context(), "udp", addrPort(db.IPv4, 80), attemptTimeout)
		if r.Outcome != lab.Reached || seen[r.From] {
			t.Errorf("from %s: %s (%v), want an answer to a new port", r.From, r.Outcome, r.Err)
		}
		seen[r.From] = true
	}
}

func TestOutcomes(t *testing.T) {
	l := lab.ForTest(t, lab.Options{})
	web, db := addPod(t, l.Nodes[0], "web"), addPod(t, l.Nodes[0], "db")
	for i, iptables := range []string{"iptables", "ip6tables"} {
		for _, network := range []string{"tcp", "udp"} {
			to := addrPort(db.Addrs()[i], 80)
			// Repeat the probe, to check that errors are not rate-limited. A busy machine
			// loses a datagram or its error now and then, because all namespaces share the
			// backlogs of its CPUs.
			const most = 4
			for refused, lost := 0, 0; refused < 20; {
				switch r := web.Connect(t.Context(), network, to, attemptTimeout/12); {
				case r.Outcome == lab.Refused:
					refused++
				case r.Outcome == lab.TimedOut && lost < most:
					lost++
				default:
					t.Fatalf("closed port, after %d were refused and %d lost: %+v", refused, lost, r)
				}
			}
		}
		if err := l.Nodes[0].Run(iptables, "-w", "-A", "FORWARD", "-p", "tcp", "-j", "DROP"); err != nil {
			t.Fatal(err)
		}
		to := addrPort(db.Addrs()[i], 80)
		if r := web.Connect(t.Context(), "tcp", to, time.Millisecond); r.Outcome != lab.TimedOut {
			t.Errorf("dropped: %+v", r)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if r := web.Connect(ctx, "udp", to, attemptTimeout); r.Outcome == lab.Reached || r.Err == nil {
			t.Errorf("cancelled: %+v", r)
		}
	}
	nowhere := addrPort(netip.MustParseAddr("198.51.100.1"), 80)
	if r := l.Outside.Connect(t.Context(), "tcp", nowhere, attemptTimeout); r.Outcome != lab.Unreachable {
		t.Errorf("no route: %+v", r)
	}
}

// TestTranslation checks that tests can add Services and masquerading with iptables.
func TestTranslation(t *testing.T) {
	l := lab.ForTest(t, lab.Options{})
	node, db := l.Nodes[0], addPod(t, l.Nodes[0], "db")
	serve(t, db, 6379)
	serve(t, l.Outside, 80)
	for i, f := range []struct{ iptables, service string }{{"iptables", "10.96.0.1"}, {"ip6tables", "fd00:96::1"}} {
		to := addrPort(db.Addrs()[i], 6379)
		for _, args := range [][]string{
			{"PREROUTING", "-p", "tcp", "-d", f.service, "--dport", "80", "-j", "DNAT", "--to-destination", to.String()},
			{"POSTROUTING", "-o", lab.Device, "-j", "MASQUERADE"},
		} {
			if err := node.Run(f.iptables, append([]string{"-w", "-t", "nat", "-A"}, args...)...); err != nil {
				t.Fatal(err)
			}
		}
		web := addPod(t, node, "web")
		service := addrPort(netip.MustParseAddr(f.service), 80)
		if r := web.Connect(t.Context(), "tcp", service, attemptTimeout); r.By != "db" || r.Seen != r.From {
			t.Errorf("service: %+v", r)
		}
		if r := web.Connect(t.Context(), "tcp", addrPort(l.Outside.Addrs()[i], 80), attemptTimeout); r.Seen.Addr() != node.Addrs()[i] {
			t.Errorf("masqueraded: %+v, want to be seen as %s", r, node.Addrs()[i])
		}
	}
}

// TestAddresses assigns addresses, frees them and assigns them to other hosts.
func TestAddresses(t *testing.T) {
	l := lab.ForTest(t, lab.Options{})
	old := addPod(t, l.Nodes[0], "old")
	if _, err := l.AddPod("thief", old.IPv4); err == nil {
		t.Fatal("two open pods have the same address")
	}
	extra := netip.MustParseAddr("203.0.113.7")
	if err := l.Outside.AddAddr(extra); err != nil {
		t.Fatal(err)
	}
	serve(t, l.Outside, 80)
	if r := old.Connect(t.Context(), "tcp", addrPort(extra, 80), attemptTimeout); r.By != "outside" {
		t.Errorf("second address: %+v", r)
	}
	addrs := old.Addrs()
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	fresh := addPod(t, l.Nodes[0], "fresh", addrs...)
	serve(t, fresh, 80)
	for _, a := range addrs {
		if r := l.Outside.Connect(t.Context(), "udp", addrPort(a, 80), attemptTimeout); r.By != "fresh" {
			t.Errorf("%s: %+v", a, r)
		}
	}
	if next := addPod(t, l.Nodes[0], "next"); next.IPv4 == fresh.IPv4 || next.IPv6 == fresh.IPv6 {
		t.Errorf("%s has %v, which fresh has too", next.Name, next.Addrs())
	}
}

// TestRanges checks that a pod serves and connects from all addresses of a range, and that a pod of
// another node may have the same range.
func TestRanges(t *testing.T) {
	l := lab.ForTest(t, lab.Options{Nodes: 2})
	for _, n := range l.Nodes {
		clients, servers := addPod(t, n, "clients"), addPod(t, n, "servers")
		serve(t, servers, 80)
		for _, tt := range []struct{ clients, servers, first, last string }{
			{"198.18.0.0/15", "10.128.0.0/20", "198.18.0.0", "10.128.15.255"},
			{"2001:2::/111", "fd00:80::/116", "2001:2::", "fd00:80::fff"},
		} {
			if err := errors.Join(clients.AddRange(netip.MustParsePrefix(tt.clients)), servers.AddRange(netip.MustParsePrefix(tt.servers))); err != nil {
				t.Fatal(err)
			}
			var seen netip.AddrPort
			err := clients.Do(func() error {
				d := net.Dialer{LocalAddr: &net.TCPAddr{IP: netip.MustParseAddr(tt.first).AsSlice()}, Timeout: attemptTimeout}
				c, err := d.DialContext(t.Context(), "tcp", addrPort(netip.MustParseAddr(tt.last), 80).String())
				if err != nil {
					return err
				}
				defer c.Close()
				line, err := bufio.NewReader(c).ReadString('\n')
				if err == nil {
					_, text, _ := strings.Cut(strings.TrimSpace(line), " ")
					seen, err = netip.ParseAddrPort(text)
				}
				return err
			})
			if err != nil || seen.Addr() != netip.MustParseAddr(tt.first) {
				t.Errorf("%s: from %s to %s: seen %s: %v", n.Name, tt.first, tt.last, seen, err)
			}
		}
	}
}

// Each node has its own BPF file system, and a command on a node starts in the working
// directory of this process.
func TestBPFFileSystem(t *testing.T) {
	const made = "/sys/fs/bpf/sluice-lab-test"
	if _, err := os.Stat("/sys/fs/bpf"); err != nil {
		t.Skipf("this kernel has no BPF: %v", err)
	}
	l := lab.ForTest(t, lab.Options{Nodes: 2})
	for _, n := range l.Nodes { // fails on the second node if both share a BPF file system
		if err := n.Run("mkdir", made); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(made); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory of a node exists on this machine: %v", err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if there, err := l.Nodes[0].Output(exec.Command("pwd")); err != nil || there != here+"\n" {
		t.Errorf("a command runs in %q, want %q: %v", there, here, err)
	}
	err = l.Nodes[0].Do(func() error {
		_, err := os.Stat(made)
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func BenchmarkLab(b *testing.B) {
	lab.Require(b)
	for b.Loop() {
		l, err := lab.New(lab.Options{})
		if err != nil {
			b.Fatal(err)
		}
		for range 6 {
			addPod(b, l.Nodes[0], "pod")
		}
		if err := l.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkConnect(b *testing.B) {
	l := lab.ForTest(b, lab.Options{})
	web, db := addPod(b, l.Nodes[0], "web"), addPod(b, l.Nodes[0], "db")
	serve(b, db, 80)
	for b.Loop() {
		if r := web.Connect(b.Context(), "tcp", addrPort(db.IPv4, 80), attemptTimeout); r.Outcome != lab.Reached {
			b.Fatal(r.Err)
		}
	}
}
