//go:build linux

package main

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"sluice/bench/testbed/agenttest"
	"sluice/bench/testbed/lab"
)

// A denied TCP segment without a connection that cannot begin one (conntrack calls it INVALID) is
// dropped, and the log does not claim an answer. So no packet of the kernel is judged as if the
// other pod had sent it. A reset that a pod forges is judged like any other packet. A connection
// that is allowed survives a segment outside of its window, which is INVALID too: an answer would
// reset the connection.
func TestInvalidSegmentsAreNotRejectedOnPackets(t *testing.T) {
	for name, opts := range map[string]lab.Options{"routed": {Nodes: 2}, "bridged": {Nodes: 2, Bridged: true}} {
		t.Run(name, func(t *testing.T) {
			s := newTestbedWith(t, opts)
			web := "default/web: {podSelector: {matchLabels: {role: frontend}}, ingress: [{ports: [{protocol: UDP, port: 53}]}]}"
			closed := annotatedPolicies("reject", web, "default/closed: {podSelector: {matchLabels: {role: db}}}")
			s.write("policies.yaml", closed)
			s.start("--queues", "1", "--log-verdicts", "denied", "--log-verdicts-rate", "0")
			for family, f := range families {
				t.Run(f.name, func(t *testing.T) {
					s.save("policies.yaml", closed)
					for _, from := range []string{"default/web", "default/far"} {
						s.checkInvalidSegments(t, from, family)
					}
					s.checkForgedReset(t, family == 1)
					s.save("policies.yaml", annotatedPolicies("reject", web))
					c := s.newTCPPair(t, family, "default/web")
					mark := s.agent.Mark()
					c.send(&layers.TCP{ACK: true, PSH: true, Seq: c.next + 1<<24, Ack: c.acked, BaseLayer: layers.BaseLayer{Payload: []byte("late")}})
					client, _ := c.ends()
					s.await(mark, "the segment is denied", func(l agenttest.Line) bool {
						return l.Text("verdict") == "deny" && l.Number("sport") == int(client.Port())
					})
					c.checkFlows()
				})
			}
		})
	}
}

// checkInvalidSegments checks the answers to denied segments, and the lines about them.
func (s *testbed) checkInvalidSegments(t *testing.T, from string, family int) {
	t.Helper()
	pr := s.newProberBetween(t, from, "default/db", family == 1)
	mark := s.agent.Mark()
	for port, test := range []struct {
		flags   layers.TCP
		answers int
	}{
		{layers.TCP{SYN: true}, 1}, {layers.TCP{ACK: true}, 1}, {layers.TCP{ACK: true, PSH: true}, 1},
		{layers.TCP{FIN: true, ACK: true}, 0}, {layers.TCP{SYN: true, ACK: true}, 0}, {layers.TCP{}, 0},
	} {
		segment := test.flags
		segment.SrcPort, segment.DstPort, segment.Seq, segment.Ack, segment.Window = layers.TCPPort(33100+port), 80, 7, 9, 100
		packet := pr.packet(layers.IPProtocolTCP, &segment)
		for range 2 { // answered by the agent, then from the cache
			if got := pr.answers(packet); len(got) != test.answers {
				t.Errorf("%s: answers to segment %d: %v, want %d", from, port, got, test.answers)
			}
		}
		line := s.await(mark, "the denial is logged", func(l agenttest.Line) bool {
			return l.Text("verdict") == "deny" && l.Text("proto") == "TCP" && l.Number("sport") == 33100+port
		})
		if rejected := line.Text("answer") == "reject"; rejected != (test.answers > 0) {
			t.Errorf("%s: the log has, after segment %d: %v", from, port, line)
		}
	}
	db := families[family].addr(s.host("default/db")).String()
	if lines := s.agent.Since(mark, func(l agenttest.Line) bool { return l.Text("src") == db && l.Text("verdict") == "deny" }); len(lines) > 0 {
		t.Errorf("%s: the log has answers of the kernel: %v", from, lines)
	}
}

// checkForgedReset checks that a pod cannot send a reset, without a connection, that policies deny.
func (s *testbed) checkForgedReset(t *testing.T, v6 bool) {
	t.Helper()
	pr := s.newProberBetween(t, "default/db", "default/web", v6)
	for _, ack := range []bool{false, true} {
		segment := &layers.TCP{RST: true, ACK: ack, SrcPort: 80, DstPort: 33103, Seq: 9, Ack: 8}
		if pr.arrives(pr.packet(layers.IPProtocolTCP, segment, gopacket.Payload("forged")), "forged") {
			t.Errorf("a forged reset (with ACK: %t) arrives", ack)
		}
	}
}

// Denied packets that conntrack does not follow are dropped, and the log does not claim an answer.
func TestUntrackedIsNotRejectedOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", annotatedPolicies("reject", "default/closed: {podSelector: {matchLabels: {role: db}}}"))
	for _, f := range families {
		if err := s.Nodes[0].Run(f.iptables, "-w", "-t", "raw", "-A", "PREROUTING", "-p", "udp", "--dport", "53", "-j", "CT", "--notrack"); err != nil {
			t.Fatal(err)
		}
	}
	s.start("--log-verdicts", "denied", "--log-verdicts-rate", "0")
	for family, f := range families {
		pr := s.newProber(t, family == 1)
		mark := s.agent.Mark()
		packet := pr.packet(layers.IPProtocolUDP, &layers.UDP{SrcPort: 33001, DstPort: 53}, gopacket.Payload("hello"))
		for range 2 { // answered by the agent, then from the cache
			if got := pr.answers(packet); len(got) != 0 {
				t.Errorf("%s: answers to an untracked packet: %v", f.name, got)
			}
		}
		line := s.await(mark, "the denial is logged", func(l agenttest.Line) bool {
			return l.Text("verdict") == "deny" && l.Number("dport") == 53
		})
		if line.Text("answer") == "reject" {
			t.Errorf("%s: the log has %v", f.name, line)
		}
		s.refused(t, "default/web default/db udp 54")
	}
}

// A connection that a conntrack helper announces is judged by itself. If it is denied, its packets
// are dropped, because they have the mark of the control connection, which is allowed.
func TestExpectedConnectionIsNotRejectedOnPackets(t *testing.T) {
	s := newTestbed(t)
	allowed := "default/db: {podSelector: {matchLabels: {role: db}}, ingress: [{ports: [{port: 21}]}]}"
	s.write("policies.yaml", annotatedPolicies("reject", allowed))
	if err := s.Nodes[0].Run("iptables", "-w", "-t", "raw", "-A", "PREROUTING", "-p", "tcp", "--dport", "21", "-j", "CT", "--helper", "ftp"); err != nil {
		t.Skipf("needs the kernel's helper for FTP: %v", err)
	}
	s.start("--log-verdicts", "denied", "--log-verdicts-rate", "0")
	db := s.host("default/db")
	data, err := db.ListenTCP(netip.AddrPortFrom(db.IPv4, 7021))
	if err != nil {
		t.Fatal(err)
	}
	defer data.Close()
	s.refused(t, "default/web default/db tcp 7022")
	client, server := s.connectThrough(t, 0, "default/web", "default/db", 21, netip.AddrPort{})
	_ = client.SetReadDeadline(time.Now().Add(waitTimeout))
	for _, line := range []string{"220 Ready\r\n", fmt.Sprintf("227 Entering Passive Mode (%s,%d,%d)\r\n", strings.ReplaceAll(db.IPv4.String(), ".", ","), 7021>>8, 7021&0xff)} {
		if _, err := server.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(client, make([]byte, len(line))); err != nil {
			t.Fatal(err)
		}
	}
	mark := s.agent.Mark()
	at := netip.AddrPortFrom(db.IPv4, 7021)
	if r := s.host("default/web").Connect(t.Context(), "tcp", at, probeTimeout/5); r.Outcome != lab.TimedOut {
		t.Errorf("the data connection: %s (%v), want no answer", r.Outcome, r.Err)
	}
	line := s.await(mark, "the denial is logged", func(l agenttest.Line) bool {
		return l.Text("verdict") == "deny" && l.Number("dport") == 7021
	})
	if line.Text("answer") == "reject" {
		t.Errorf("the log has %v", line)
	}
	// Without the announcement, the same connection is rejected.
	s.refused(t, "default/other default/db tcp 7021")
}
