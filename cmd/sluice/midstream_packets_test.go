//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sluice/bench/testbed/agenttest"
	"sluice/cache/conntrack"
	"sluice/filter"
)

// The tests of this file remove the conntrack entry of an open connection. To the kernel, the
// next packet then begins a new connection, opened by the end that sent the packet.

// tcpPair is a TCP connection with both ends in the test.
type tcpPair struct {
	*testbed
	t              *testing.T
	family         int
	from           string // the pod that opened the connection to default/db
	client, server *net.TCPConn
	next, acked    uint32 // the client's next sequence and acknowledgment numbers
}

// newTCPPair connects from a pod to a new port of default/db.
func (s *testbed) newTCPPair(t *testing.T, family int, from string) *tcpPair {
	t.Helper()
	db := s.host("default/db")
	l, err := db.ListenTCP(netip.AddrPortFrom(families[family].addr(db), 0))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := s.host(from).DialTCP(t.Context(), l.Addr().(*net.TCPAddr).AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	c := &tcpPair{testbed: s, t: t, family: family, from: from, client: client, server: server}
	t.Cleanup(func() { _ = client.SetLinger(0); _ = client.Close(); _ = server.SetLinger(0); _ = server.Close() })
	c.checkFlows()
	c.readSequence()
	return c
}

// readSequence reads the client's sequence numbers from a packet.
func (c *tcpPair) readSequence() {
	c.t.Helper()
	sniffer, err := c.host("default/db").Sniff()
	if err != nil {
		c.t.Fatal(err)
	}
	defer sniffer.Close()
	sendByte(c.t, c.client)
	receiveByte(c.t, c.server)
	ctx, cancel := context.WithTimeout(c.t.Context(), waitTimeout)
	defer cancel()
	client, _ := c.ends()
	for c.next == 0 {
		data, err := sniffer.Next(ctx)
		if err != nil {
			c.t.Fatal(err)
		}
		first := layers.LayerTypeIPv4
		if data[0]>>4 == 6 {
			first = layers.LayerTypeIPv6
		}
		tcp, ok := gopacket.NewPacket(data, first, gopacket.Default).Layer(layers.LayerTypeTCP).(*layers.TCP)
		if ok && uint16(tcp.SrcPort) == client.Port() && len(tcp.Payload) == 1 {
			c.next, c.acked = tcp.Seq+1, tcp.Ack
		}
	}
}

// send sends a segment as the client, without its TCP stack.
func (c *tcpPair) send(tcp *layers.TCP) {
	c.t.Helper()
	client, server := c.ends()
	tcp.SrcPort, tcp.DstPort, tcp.Window = layers.TCPPort(client.Port()), layers.TCPPort(server.Port()), 1000
	var ip gopacket.SerializableLayer
	if client.Addr().Is4() {
		ip = &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: client.Addr().AsSlice(), DstIP: server.Addr().AsSlice()}
	} else {
		ip = &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolTCP, SrcIP: client.Addr().AsSlice(), DstIP: server.Addr().AsSlice()}
	}
	if err := tcp.SetNetworkLayerForChecksum(ip.(gopacket.NetworkLayer)); err != nil {
		c.t.Fatal(err)
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ip, tcp); err != nil {
		c.t.Fatal(err)
	}
	if err := c.host(c.from).Send(b.Bytes()); err != nil {
		c.t.Fatal(err)
	}
}

// MatchConntrackFlow reports whether flow is the entry of this connection. Either end may be
// the source of the entry, because a late acknowledgment of the server creates one too.
// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (c *tcpPair) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	client, server := c.ends()
	from, to := flow.Forward.SrcPort, flow.Forward.DstPort
	return from == client.Port() && to == server.Port() || from == server.Port() && to == client.Port()
}

// ends returns the addresses of the client and the server.
func (c *tcpPair) ends() (client, server netip.AddrPort) {
	return c.client.LocalAddr().(*net.TCPAddr).AddrPort(), c.server.LocalAddr().(*net.TCPAddr).AddrPort()
}

// sendByte sends a byte and does not wait for its arrival.
func sendByte(t *testing.T, from *net.TCPConn) {
	t.Helper()
	if _, err := from.Write([]byte{'x'}); err != nil {
		t.Fatal(err)
	}
}

// receiveByte waits for a byte.
func receiveByte(t *testing.T, at *net.TCPConn) {
	t.Helper()
	_ = at.SetReadDeadline(time.Now().Add(waitTimeout))
	if _, err := at.Read(make([]byte, 1)); err != nil {
		t.Fatalf("%s receives nothing: %v", at.LocalAddr(), err)
	}
}

// resent returns how often the kernel has sent data of a connection again, because it was not
// acknowledged in time.
func resent(t *testing.T, c *net.TCPConn) (times uint32) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	if failed := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); failed != nil || err != nil {
		t.Fatal(errors.Join(failed, err))
	}
	return info.Total_retrans
}

// awaitResent waits until the kernel has sent data of a connection again since the given count: had
// the data arrived, the other end would have acknowledged it by then.
func awaitResent(t *testing.T, c *net.TCPConn, before uint32) {
	t.Helper()
	for end := time.Now().Add(waitTimeout); resent(t, c) == before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s has not sent again what it sent to %s: it was acknowledged", c.LocalAddr(), c.RemoteAddr())
		}
	}
}

// sendUnanswered sends a byte, and waits until it is clear that it does not arrive.
func sendUnanswered(t *testing.T, from *net.TCPConn) {
	t.Helper()
	before := resent(t, from)
	sendByte(t, from)
	awaitResent(t, from, before)
}

// receivesNothing fails the test if a byte has arrived.
func receivesNothing(t *testing.T, at *net.TCPConn) {
	t.Helper()
	(&session{TCPConn: at, t: t}).checkStopped()
}

// checkFlows checks that a byte arrives in each direction.
func (c *tcpPair) checkFlows() {
	c.t.Helper()
	for _, d := range [][2]*net.TCPConn{{c.client, c.server}, {c.server, c.client}} {
		sendByte(c.t, d[0])
		receiveByte(c.t, d[1])
	}
}

// entry returns the conntrack entry of the connection; nil if there is none.
func (c *tcpPair) entry() (found *conntrack.Conn) {
	c.t.Helper()
	client, server := c.ends()
	err := c.Nodes[0].Do(func() error {
		table, err := conntrack.Open(conntrack.Options{})
		if err != nil {
			return err
		}
		defer table.Close()
		return table.Dump(context.Background(), nil, func(e *conntrack.Conn) {
			forth := filter.NewKey(client.Addr(), server.Addr(), filter.TCP, server.Port())
			if e.Key == forth && e.SrcPort == client.Port() || e.Key == forth.Reverse(client.Port()) && e.SrcPort == server.Port() {
				found = new(*e)
			}
		})
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return found
}

// awaitEntry waits until the entry satisfies a condition.
func (c *tcpPair) awaitEntry(what string, is func(*conntrack.Conn) bool) {
	c.t.Helper()
	for end := time.Now().Add(waitTimeout); !is(c.entry()); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("timeout while waiting for: %s; the entry is %+v", what, c.entry())
		}
	}
}

// awaitMark waits until a sweep has given the connection a mark.
func (c *tcpPair) awaitMark(mark uint32) {
	c.t.Helper()
	c.awaitEntry(fmt.Sprintf("connection mark %#x", mark), func(e *conntrack.Conn) bool { return e != nil && e.Mark == mark })
}

// setConntrack sets kernel parameters in net.netfilter on the node. Each name is followed by
// its value.
func (s *testbed) setConntrack(settings ...string) {
	s.t.Helper()
	err := s.Nodes[0].Do(func() error {
		for ; len(settings) > 1; settings = settings[2:] {
			if err := os.WriteFile("/proc/sys/net/netfilter/"+settings[0], []byte(settings[1]), 0); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// entryLosses are the ways in which a connection loses its entry.
var entryLosses = []struct {
	name   string
	remove func(*tcpPair)
}{
	{"table flushed", func(c *tcpPair) {
		if err := c.Nodes[0].Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) }); err != nil {
			c.t.Fatal(err)
		}
	}},
	{"entry evicted", (*tcpPair).evict},
	{"entry expired", func(c *tcpPair) {
		c.setConntrack("nf_conntrack_tcp_timeout_established", "1", "nf_conntrack_tcp_timeout_unacknowledged", "1")
		defer c.setConntrack("nf_conntrack_tcp_timeout_established", "432000", "nf_conntrack_tcp_timeout_unacknowledged", "300")
		c.send(&layers.TCP{ACK: true, Seq: c.next, Ack: c.acked}) // the new timeouts apply from the next packet on
		c.awaitNoEntry()                                          // the entry must be gone before the timeouts are restored
	}},
	{"reset by the client", func(c *tcpPair) {
		c.send(&layers.TCP{RST: true, Seq: c.next})
		c.send(&layers.TCP{SYN: true, Seq: c.next + 100000})
	}},
}

// removeEntry removes the entry of the connection with the given function, and waits until
// the entry is gone.
func (c *tcpPair) removeEntry(how func(*tcpPair)) {
	c.t.Helper()
	how(c)
	c.awaitNoEntry()
}

// awaitNoEntry waits until the entry is gone. If a late acknowledgment creates the entry again,
// awaitNoEntry removes it.
func (c *tcpPair) awaitNoEntry() {
	c.t.Helper()
	c.awaitEntry("the entry is gone", func(e *conntrack.Conn) bool {
		if e != nil && e.MidStream {
			c.evict()
		}
		return e == nil
	})
}

// evict deletes the entry, as the kernel does when the table is full.
func (c *tcpPair) evict() {
	c.t.Helper()
	err := c.Nodes[0].Do(func() error {
		_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.InetFamily(families[c.family].netlink), c)
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
}

// pickUp makes the kernel lose the entry of the open connection, and track it again as if the
// server had begun it.
func (c *tcpPair) pickUp() {
	c.t.Helper()
	_, server := c.ends()
	for end := time.Now().Add(waitTimeout); ; {
		c.removeEntry(entryLosses[0].remove)
		sendByte(c.t, c.server)
		receiveByte(c.t, c.client)
		c.awaitEntry("picked up", func(e *conntrack.Conn) bool { return e != nil && e.MidStream && e.Key.Port != 0 })
		if c.entry().Key.SrcAddr() == server.Addr() {
			return
		}
		// A late acknowledgment of the client came before the server's byte, and created the
		// entry. Try again.
		if time.Now().After(end) {
			c.t.Fatalf("not begun by the server: %+v", c.entry())
		}
	}
}

// A revoked connection does not continue when its conntrack entry is gone. To the kernel, the
// server's next packet then begins a connection from the isolated server to the client, and no
// policy denies connections in this direction.
// A connection that is allowed in both directions continues.
func TestRevokedStaysRevokedOnPackets(t *testing.T) {
	for _, cached := range []string{"on", "off"} {
		for _, loose := range []string{"1", "0"} {
			t.Run(fmt.Sprintf("kernel cache %s, tcp_loose %s", cached, loose), func(t *testing.T) {
				s := newTestbed(t)
				s.setConntrack("nf_conntrack_tcp_loose", loose)
				s.start("--kernel-cache", cached, "--log-verdicts", "denied", "--log-verdicts-rate", "0")
				for _, l := range entryLosses {
					for family := range families {
						t.Run(l.name+", "+families[family].name, func(t *testing.T) {
							s.save("policies.yaml", "")
							denied, allowed := s.newTCPPair(t, family, "default/other"), s.newTCPPair(t, family, "default/web")
							s.save("policies.yaml", policies(db("[{from: [{podSelector: {matchLabels: {role: frontend}}}]}]")))
							denied.awaitMark(0x20)
							denied.removeEntry(l.remove)
							allowed.removeEntry(entryLosses[0].remove)
							mark := s.agent.Mark()
							_, server := denied.ends()
							sendByte(t, denied.server)
							s.await(mark, "the server's data are denied", func(line agenttest.Line) bool {
								return line.Text("reason") == "mid-stream" && line.Number("sport") == int(server.Port()) && line.Text("policy") != ""
							})
							sendByte(t, denied.client)
							s.await(mark, "the client's data are denied", func(line agenttest.Line) bool {
								return line.Text("reason") == "ingress-denied" && line.Number("dport") == int(server.Port())
							})
							receivesNothing(t, denied.client)
							receivesNothing(t, denied.server)
							if e := denied.entry(); e != nil {
								t.Errorf("the connection is tracked again: %+v", e)
							}
							allowed.checkFlows()
						})
					}
				}
			})
		}
	}
}

// trackEverything makes the node track connections without an agent.
func (s *testbed) trackEverything() {
	s.t.Helper()
	for _, f := range families {
		if err := s.Nodes[0].Run(f.iptables, "-w", "-t", "filter", "-A", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "ACCEPT"); err != nil {
			s.t.Fatal(err)
		}
	}
}

// If the kernel has seen the beginning of a connection, a sweep knows from the entry which end
// began it. Otherwise, the sweep judges the connection in both directions, as the agent judges
// its packets.
func TestSweepOfMidStreamOnPackets(t *testing.T) {
	closed := "default/closed: {podSelector: {matchLabels: {role: frontend}}, policyTypes: [Ingress]}"
	toDB := db("[{from: [{podSelector: {matchLabels: {role: frontend}}}]}]")
	for family := range families {
		t.Run("at the start, "+families[family].name, func(t *testing.T) {
			s := newTestbed(t)
			s.trackEverything()
			s.setConntrack("nf_conntrack_tcp_be_liberal", "1") // must not make the agent treat other connections as picked up
			// The policy "closed" lets no connection reach clients with the role frontend. If
			// the kernel saw the beginning of a connection, only the direction from the
			// client is judged, so the connection is allowed nevertheless.
			begun, other := s.newTCPPair(t, family, "default/web"), s.newTCPPair(t, family, "default/other")
			both := s.newTCPPair(t, family, "mine/cart")
			both.pickUp()
			other.pickUp()
			begun.checkFlows() // creates the entry again, because pickUp has flushed the table
			again := s.newTCPPair(t, family, "default/web")
			s.write("policies.yaml", policies(closed, toDB, "default/cart: {podSelector: {matchLabels: {role: db}}, ingress: [{from: [{namespaceSelector: {matchLabels: {project: myproject}}}]}]}"))
			s.start()
			again.checkFlows()
			both.checkFlows()
			other.awaitMark(0x20)
			begun.awaitMark(0x20) // picked up, and denied in the direction to the client
		})
		t.Run("later, "+families[family].name, func(t *testing.T) {
			s := newTestbed(t)
			s.start()
			c := s.newTCPPair(t, family, "default/other")
			c.pickUp()
			s.save("policies.yaml", policies(toDB))
			c.awaitMark(0x20)
			before := s.dropped(families[family].iptables)
			sendByte(t, c.server)
			s.awaitDrop(t, families[family].iptables, before)
			receivesNothing(t, c.client)
			s.save("policies.yaml", "")
			receiveByte(t, c.client)
			c.checkFlows()
		})
	}
}

// If an agent starts on a node that tracked no connections, allowed connections continue,
// even if the server sends first, and denied connections stop.
func TestMidStreamWithoutTrackingBeforeOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(db("[{from: [{podSelector: {matchLabels: {role: frontend}}}]}]")))
	var allowed, denied []*tcpPair
	for family := range families {
		allowed, denied = append(allowed, s.newTCPPair(t, family, "default/web")), append(denied, s.newTCPPair(t, family, "default/other"))
	}
	if denied[0].entry() != nil {
		t.Fatal("the node tracks connections before there are rules")
	}
	s.start("--log-verdicts", "denied", "--log-verdicts-rate", "0")
	for family := range families {
		mark := s.agent.Mark()
		_, server := denied[family].ends()
		sendByte(t, denied[family].server)
		s.await(mark, "the server's data are denied", func(line agenttest.Line) bool {
			return line.Text("reason") == "mid-stream" && line.Number("sport") == int(server.Port())
		})
		receivesNothing(t, denied[family].client)
		sendByte(t, allowed[family].server)
		receiveByte(t, allowed[family].client)
		allowed[family].checkFlows()
	}
}

// If an isolated pod accepts no connections from a peer, the pod's packets reach the peer only if
// they begin a connection. Any other packet may be an answer to a denied connection of the peer
// whose conntrack entry is gone, for example after a flush of the table.
func TestOnlyBeginningsLeaveAnIsolatedPodOnPackets(t *testing.T) {
	segment := func(set func(*layers.TCP)) func(*prober, string) []byte {
		return func(pr *prober, mark string) []byte {
			tcp := &layers.TCP{SrcPort: layers.TCPPort(30000 + pr.sentinel), DstPort: 40000, Seq: 1000, Ack: 2000, Window: 1000}
			set(tcp)
			return pr.packet(layers.IPProtocolTCP, tcp, gopacket.Payload(mark))
		}
	}
	chunk := func(kind byte) func(*prober, string) []byte {
		return func(pr *prober, mark string) []byte {
			data := make([]byte, 20, 20+len(mark))
			data[0], data[3], data[4] = kind, byte(20+len(mark)), 1
			data[11], data[13], data[15] = 1, 1, 1
			sctp := &layers.SCTP{SrcPort: layers.SCTPPort(30000 + pr.sentinel), DstPort: 40000}
			if kind != 1 {
				sctp.VerificationTag = 7
			}
			return pr.packet(layers.IPProtocolSCTP, sctp, gopacket.Payload(append(data, mark...)))
		}
	}
	sent := []struct {
		name    string
		packet  func(*prober, string) []byte
		arrives bool
	}{
		{"SYN", segment(func(s *layers.TCP) { s.SYN = true }), true},
		{"SYN+ACK", segment(func(s *layers.TCP) { s.SYN, s.ACK = true, true }), false},
		{"ACK", segment(func(s *layers.TCP) { s.ACK = true }), false},
		{"PSH+ACK", segment(func(s *layers.TCP) { s.ACK, s.PSH = true, true }), false},
		{"FIN", segment(func(s *layers.TCP) { s.FIN = true }), false},
		{"FIN+ACK", segment(func(s *layers.TCP) { s.FIN, s.ACK = true, true }), false},
		{"RST", segment(func(s *layers.TCP) { s.RST = true }), false},
		{"SYN+FIN", segment(func(s *layers.TCP) { s.SYN, s.FIN = true, true }), false},
		{"no flags", segment(func(*layers.TCP) {}), false},
		{"INIT", chunk(1), true},
		{"DATA", chunk(0), false},
		{"INIT ACK", chunk(2), false},
		{"HEARTBEAT", chunk(4), false},
		{"ABORT", chunk(6), false},
		{"UDP", func(pr *prober, mark string) []byte { return pr.udpTo(40000, mark) }, true},
	}
	for _, loose := range []string{"1", "0"} {
		t.Run("tcp_loose "+loose, func(t *testing.T) {
			s := newTestbed(t)
			s.setConntrack("nf_conntrack_tcp_loose", loose)
			s.write("policies.yaml", policies(db("[{from: [{podSelector: {matchLabels: {role: frontend}}}]}]")))
			// One queue and no kernel cache keep all packets in order.
			s.start("--queues", "1", "--kernel-cache", "off")
			for i, f := range families {
				for to, open := range map[string]bool{"default/other": false, "default/web": true} {
					pr := s.newProberBetween(t, "default/db", to, i == 1)
					for _, p := range sent {
						mark := fmt.Sprintf("%s to %s.", p.name, to)
						if got := pr.arrives(p.packet(pr, mark), mark); got != (p.arrives || open) {
							t.Errorf("%s, %s: arrives %v, want %v", f.name, mark, got, p.arrives || open)
						}
					}
				}
			}
		})
	}
}
