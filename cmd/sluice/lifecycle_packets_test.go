//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sluice/bench/testbed/agenttest"
	"sluice/bench/testbed/lab"
	"sluice/filter/event"
)

// session is a live TCP connection to an echo server.
type session struct {
	*net.TCPConn
	t    *testing.T
	sent int
}

// dial opens a connection and reads the server's greeting.
func (s *testbed) dial(t *testing.T, from string, to netip.AddrPort) *session {
	t.Helper()
	c, err := s.host(from).DialTCP(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(waitTimeout))
	for b := []byte{0}; b[0] != '\n'; {
		if _, err := c.Read(b); err != nil {
			t.Fatalf("read the greeting: %v", err)
		}
	}
	return &session{TCPConn: c, t: t}
}

// write sends a byte.
func (c *session) write() {
	c.t.Helper()
	c.sent++
	if _, err := c.Write([]byte{byte(c.sent)}); err != nil {
		c.t.Fatal(err)
	}
}

// checkFlows checks that the server sends back all written bytes.
func (c *session) checkFlows() {
	c.t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(waitTimeout))
	for b := []byte{0}; b[0] != byte(c.sent); {
		if _, err := c.Read(b); err != nil {
			c.t.Fatalf("nothing comes back: %v", err)
		}
	}
}

// checkStopped checks that the server has not sent back any byte.
func (c *session) checkStopped() {
	c.t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatalf("read %d bytes, %v, of a connection that is no longer allowed", n, err)
	}
	_ = c.SetReadDeadline(time.Now().Add(waitTimeout))
}

var dropRule = regexp.MustCompile(`(?m)^\[(\d+):\d+\] -A SLUICE .*connmark.* -j DROP$`)

// dropped returns the number of packets of revoked connections that the node has dropped.
func (s *testbed) dropped(iptables string) int {
	s.t.Helper()
	text, err := s.Nodes[0].Output(exec.Command(iptables+"-save", "-c", "-t", "mangle"))
	if err != nil {
		s.t.Fatal(err)
	}
	m := dropRule.FindStringSubmatch(text)
	if m == nil {
		s.t.Fatalf("there is no rule that drops:\n%s", text)
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

// awaitDrop waits until the count of dropped packets is higher than the given one.
func (s *testbed) awaitDrop(t *testing.T, iptables string, before int) {
	t.Helper()
	for end := time.Now().Add(waitTimeout); s.dropped(iptables) <= before; {
		if time.Now().After(end) {
			t.Fatal("nothing was dropped")
		}
	}
}

// Live connections stop in both directions when the policy no longer allows them, and
// continue when it allows them again. This also holds with address translation.
func TestLiveConnectionsOnPackets(t *testing.T) {
	s := newTestbed(t)
	for _, f := range families {
		s.nat(f.iptables, "PREROUTING", "-p", "tcp", "-d", f.service, "--dport", "81", "-j", "DNAT",
			"--to-destination", netip.AddrPortFrom(f.addr(s.host("default/db")), 6379).String())
	}
	s.start()
	for _, f := range families {
		t.Run(f.name+" TCP through a Service", func(t *testing.T) {
			c := s.dial(t, "default/other", netip.AddrPortFrom(netip.MustParseAddr(f.service), 81))
			c.write()
			c.checkFlows()
			s.save("policies.yaml", policies(demo1))
			before := s.dropped(f.iptables)
			c.write()
			s.awaitDrop(t, f.iptables, before)
			c.checkStopped()
			s.save("policies.yaml", "")
			c.checkFlows()
		})
		t.Run(f.name+" one-way UDP", func(t *testing.T) {
			pr := s.newProber(t, f.name == "IPv6")
			if !pr.arrives(pr.udpTo(9, "before"), "before") {
				t.Fatal("without a policy, a datagram does not arrive")
			}
			s.save("policies.yaml", policies(db("[{ports: [{protocol: UDP, port: 53}]}]")))
			before := s.dropped(f.iptables)
			if pr.arrives(pr.udpTo(9, "after"), "after") {
				t.Error("a datagram passed after the policy was in force")
			}
			s.awaitDrop(t, f.iptables, before)
			s.save("policies.yaml", "")
			if !pr.arrives(pr.udpTo(9, "again"), "again") {
				t.Error("nothing passes although it is allowed again")
			}
		})
	}
}

// When the agent starts, it judges the connections that already exist. Replies pass without a
// verdict, so without this step, a connection on which only the server sends would never be
// judged.
func TestConnectionsFromBeforeOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(demo1))
	for _, f := range families {
		// The kernel tracks connections only if a rule needs conntrack.
		if err := s.Nodes[0].Run(f.iptables, "-w", "-t", "filter", "-A", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "ACCEPT"); err != nil {
			t.Fatal(err)
		}
	}
	type pair struct{ allowed, denied *session }
	var pairs []pair
	for _, f := range families {
		to := netip.AddrPortFrom(f.addr(s.host("default/db")), 6379)
		pairs = append(pairs, pair{s.dial(t, "default/web", to), s.dial(t, "default/other", to)})
	}
	s.start()
	for i, f := range families {
		before := s.dropped(f.iptables)
		pairs[i].allowed.write()
		pairs[i].allowed.checkFlows()
		pairs[i].denied.write()
		s.awaitDrop(t, f.iptables, before)
		pairs[i].denied.checkStopped()
	}
}

// leftovers returns the rules and connection marks that an agent has left on the node.
func (s *testbed) leftovers(t *testing.T) string {
	t.Helper()
	var found strings.Builder
	for _, f := range families {
		text, err := s.Nodes[0].Output(exec.Command(f.iptables + "-save"))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(text) {
			if strings.Contains(line, "SLUICE") {
				found.WriteString(line)
			}
		}
	}
	text, err := s.Nodes[0].Output(exec.Command("cat", "/proc/net/nf_conntrack"))
	if err != nil {
		t.Logf("connection marks are not checked: %v", err)
	}
	for line := range strings.Lines(text) {
		if m := regexp.MustCompile(`mark=(\d+)`).FindStringSubmatch(line); m != nil && m[1] != "0" {
			found.WriteString(line)
		}
	}
	return found.String()
}

// After the agent has ended or was killed, --on-exit and --fail decide which new connections
// pass until the next agent runs. Allowed connections that were open before continue.
// TestKernelCacheWithoutAgentOnPackets tests the verdicts of the kernel's flow cache without an
// agent.
func TestWithoutAgentOnPackets(t *testing.T) {
	const allowed, denied = "default/web default/db tcp 6379", "default/other default/db tcp 6379"
	for _, c := range []struct {
		name       string
		args       []string
		kill       bool
		open, gone bool // expected without an agent: open if new connections pass, gone if no rules and marks are left
	}{
		{"remove, closed", []string{"--on-exit", "remove", "--fail", "closed"}, false, true, true},
		{"remove, open", []string{"--on-exit", "remove", "--fail", "open"}, false, true, true},
		{"keep, closed", []string{"--on-exit", "keep", "--fail", "closed"}, false, false, false},
		{"keep, open", []string{"--on-exit", "keep", "--fail", "open"}, false, true, false},
		{"killed, closed", []string{"--on-exit", "remove", "--fail", "closed"}, true, false, false},
		{"killed, open", []string{"--on-exit", "remove", "--fail", "open"}, true, true, false},
		{"reject, remove, closed", []string{"--on-exit", "remove", "--fail", "closed", "--deny-with", "reject"}, false, true, true},
		{"reject, keep, closed", []string{"--on-exit", "keep", "--fail", "closed", "--deny-with", "reject"}, false, false, false},
		{"reject, keep, open", []string{"--on-exit", "keep", "--fail", "open", "--deny-with", "reject"}, false, true, false},
		{"reject, killed, closed", []string{"--on-exit", "remove", "--fail", "closed", "--deny-with", "reject"}, true, false, false},
		{"reject, killed, open", []string{"--on-exit", "remove", "--fail", "open", "--deny-with", "reject"}, true, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newTestbed(t)
			s.write("policies.yaml", policies(demo1))
			args := slices.Concat(c.args, []string{"--kernel-cache", "off"})
			s.start(args...)
			s.check(t, []string{allowed}, []string{denied})
			var live []*session
			for _, f := range families {
				live = append(live, s.dial(t, "default/web", netip.AddrPortFrom(f.addr(s.host("default/db")), 6379)))
			}
			if c.kill {
				s.agent.Kill()
			} else {
				s.stop()
			}
			for _, l := range live {
				l.write()
				l.checkFlows()
			}
			if left := s.leftovers(t); (left == "") != c.gone {
				t.Errorf("left on the node, want nothing %v:\n%s", c.gone, left)
			}
			if c.open {
				s.check(t, []string{allowed, denied}, nil)
			} else {
				s.check(t, nil, []string{allowed, denied})
			}
			s.start(args...)
			s.check(t, []string{allowed}, []string{denied})
			for _, l := range live {
				l.write()
				l.checkFlows()
			}
		})
	}
}

// requests counts the connection requests (SYN) between two hosts, at both ends. A request
// that was sent and did not arrive was lost, with one exception: while the first SYN of a
// connection is queued, the client may retransmit it, and conntrack then drops one of the
// two. A retransmission does not prove a loss: on a busy machine, TCP retransmits before the
// answer has come.
type requests struct {
	t              *testing.T
	node, from, to *lab.Host
	refusedBefore  int
}

const requestComment = "requests"

func (s *testbed) countRequests(t *testing.T, from, to *lab.Host) requests {
	t.Helper()
	for i, f := range families {
		pair := []string{"-s", from.Addrs()[i].String(), "-d", to.Addrs()[i].String(), "-p", "tcp", "--syn", "-m", "comment", "--comment", requestComment}
		for host, chain := range map[*lab.Host]string{from: "OUTPUT", to: "INPUT"} {
			if err := host.Run(f.iptables, append([]string{"-w", "-A", chain}, pair...)...); err != nil {
				t.Fatal(err)
			}
		}
	}
	r := requests{t: t, node: s.Nodes[0].Host, from: from, to: to}
	r.refusedBefore = r.refused()
	return r
}

// refused returns the number of packets that the node has dropped because another packet
// had already made the entry of their connection (insert_failed of nf_conntrack).
func (r requests) refused() (n int) {
	r.t.Helper()
	text, err := r.node.Output(exec.Command("cat", "/proc/net/stat/nf_conntrack"))
	if err != nil {
		r.t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(text), "\n")
	column := slices.Index(strings.Fields(lines[0]), "insert_failed")
	for _, line := range lines[1:] { // one line for each CPU
		count, err := strconv.ParseInt(strings.Fields(line)[column], 16, 64)
		if err != nil {
			r.t.Fatal(err)
		}
		n += int(count)
	}
	return n
}

var requestCount = regexp.MustCompile(`(?m)^\[(\d+):\d+\] .*--comment "?` + requestComment)

func (r requests) at(h *lab.Host) (n int) {
	r.t.Helper()
	for _, f := range families {
		text, err := h.Output(exec.Command(f.iptables+"-save", "-c", "-t", "filter"))
		if err != nil {
			r.t.Fatal(err)
		}
		m := requestCount.FindStringSubmatch(text)
		if m == nil {
			r.t.Fatalf("no rule counts requests:\n%s", text)
		}
		count, _ := strconv.Atoi(m[1])
		n += count
	}
	return n
}

// arrived waits until all requests that were sent have arrived.
func (r requests) arrived() {
	r.t.Helper()
	sent := r.at(r.from)
	for end := time.Now().Add(waitTimeout); ; time.Sleep(time.Millisecond) {
		arrived, refused := r.at(r.to), r.refused()-r.refusedBefore
		if arrived+refused >= sent {
			return
		}
		if time.Now().After(end) {
			r.t.Errorf("of %d connection requests %d arrived and %d were refused as repetitions", sent, arrived, refused)
			return
		}
	}
}

// load opens connections as fast as possible, from an allowed pod, while a denied pod tries
// to connect to the same target.
type load struct {
	*testbed
	t        *testing.T
	opened   atomic.Int64
	stop     atomic.Bool
	wait     sync.WaitGroup
	failed   chan error
	requests requests
}

// newLoad starts a load. If denied is false, only the allowed pod connects.
func (s *testbed) newLoad(t *testing.T, denied bool) *load {
	t.Helper()
	l := &load{testbed: s, t: t, failed: make(chan error, 64), requests: s.countRequests(t, s.host("default/web"), s.host("default/db"))}
	for i := range 8 {
		to := netip.AddrPortFrom(families[i%2].addr(s.host("default/db")), 6379)
		l.wait.Go(func() {
			for !l.stop.Load() {
				if r := s.host("default/web").Connect(t.Context(), "tcp", to, waitTimeout); r.Outcome != lab.Reached {
					l.failed <- fmt.Errorf("%s: %w", r.Outcome, r.Err)
					return
				}
				l.opened.Add(1)
			}
		})
		if denied && i < 4 {
			l.wait.Go(func() {
				for !l.stop.Load() {
					if r := s.host("default/other").Connect(t.Context(), "tcp", to, probeTimeout/10); r.Outcome == lab.Reached {
						l.failed <- errors.New("a connection that is denied was let through")
						return
					}
				}
			})
		}
	}
	t.Cleanup(func() { l.stop.Store(true); l.wait.Wait() })
	return l
}

// more waits until n more connections have been opened.
func (l *load) more(n int64) {
	l.t.Helper()
	for target := l.opened.Load() + n; l.opened.Load() < target && len(l.failed) == 0; {
		time.Sleep(time.Millisecond)
	}
}

// end ends the load, and checks that no connection has failed and no request was lost.
func (l *load) end() {
	l.t.Helper()
	l.stop.Store(true)
	l.wait.Wait()
	select {
	case err := <-l.failed:
		l.t.Error(err)
	default:
	}
	l.requests.arrived()
}

// An agent that ends answers every queued packet, so that no request is lost while
// connections open as fast as possible. The kernel's flow cache is off, so that all
// requests are queued.
func TestNoPacketWaitsAtTheEnd(t *testing.T) {
	for _, args := range [][]string{
		{"--on-exit", "remove", "--fail", "closed"},
		{"--on-exit", "remove", "--fail", "open"},
		{"--on-exit", "keep", "--fail", "open"},
		{"--on-exit", "remove", "--fail", "closed", "--deny-with", "reject"},
		{"--on-exit", "keep", "--fail", "open", "--deny-with", "reject"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			s := newTestbed(t)
			s.write("policies.yaml", policies(demo1))
			s.start(append(args, "--kernel-cache", "off")...)
			l := s.newLoad(t, false)
			l.more(300)
			s.stop()
			l.more(300)
			l.end()
		})
	}
}

// A new agent takes over from the old one while connections open as fast as possible. No
// allowed request is lost, and no denied request gets through. All requests are queued here;
// TestKernelCacheTakeoverOnPackets tests the kernel's flow cache.
func TestTakeoverOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(demo1))
	args := []string{"--on-exit", "keep", "--fail", "closed", "--kernel-cache", "off"}
	s.start(args...)
	l := s.newLoad(t, true)
	for range 3 {
		l.more(100)
		next := s.startAnother(args...)
		l.more(100) // while both agents run
		s.stop()
		s.agent = next
		l.more(100)
	}
	l.end()
	s.check(t, []string{"default/web default/db tcp 6379"}, []string{"default/other default/db tcp 6379"})
}

// If an agent dies after it took over, the old agent takes over again.
func TestStepInOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(demo1))
	args := []string{"--on-exit", "keep", "--fail", "closed"}
	s.start(args...)
	next := s.startAnother(args...)
	s.check(t, []string{"default/web default/db tcp 6379"}, []string{"default/other default/db tcp 6379"})
	mark := s.agent.Mark()
	next.Kill()
	s.await(mark, "the old agent steps in", func(l agenttest.Line) bool {
		return l.Is(event.RulesApplied) && l.Text("table") == "ip6tables-nft"
	})
	s.check(t, []string{"default/web default/db tcp 6379"}, []string{"default/other default/db tcp 6379"})
	s.save("policies.yaml", "")
	s.check(t, []string{"default/other default/db tcp 6379"}, nil)
}

// If another program flushes the table mangle, the agent restores its rules within seconds.
func TestFlushedRulesOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(demo1))
	s.start()
	for _, f := range families {
		mark := s.agent.Mark()
		if err := s.Nodes[0].Run(f.iptables, "-w", "-t", "mangle", "-F"); err != nil {
			t.Fatal(err)
		}
		s.await(mark, "the repair", agenttest.Event(event.RulesRestored))
	}
	s.check(t, []string{"default/web default/db tcp 6379"}, []string{"default/other default/db tcp 6379"})
}
