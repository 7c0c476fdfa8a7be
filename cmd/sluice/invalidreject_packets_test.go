//go:build linux

package main

import (
	"testing"

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
