//go:build linux

package main

import (
	"net/netip"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"sluice/bench/testbed/agenttest"
	"sluice/bench/testbed/lab"
	"sluice/filter/event"
)

// pause stops the agent's process, as a long stall of the machine would. resume continues the
// process.
func (s *testbed) pause(t *testing.T) (resume func()) {
	t.Helper()
	pid := s.agent.PID()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resume = func() { _ = syscall.Kill(pid, syscall.SIGCONT) }
	t.Cleanup(resume)
	return resume
}

var unjudgedMetric = regexp.MustCompile(`(?m)^sluice_connections_unjudged_total (\d+)$`)

// unjudged returns the agent's count of connections that began without a verdict.
func (s *testbed) unjudged(t *testing.T) int {
	t.Helper()
	_, text := s.scrape(t, "/metrics")
	m := unjudgedMetric.FindStringSubmatch(text)
	if m == nil {
		t.Fatal("no count of connections that passed unjudged")
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

// awaitUnjudged waits until the count of connections that began without a verdict is
// before+more.
func (s *testbed) awaitUnjudged(t *testing.T, before, more int) {
	t.Helper()
	for end := time.Now().Add(waitTimeout); s.unjudged(t) != before+more; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d connections had passed unjudged, want %d", s.unjudged(t)-before, more)
		}
	}
}

// checkRevoked checks that the connection is stopped in both directions, including replies,
// which need no verdict. If revoked is false, it checks that the connection works.
func (c *tcpPair) checkRevoked(revoked bool) {
	c.t.Helper()
	if !revoked {
		c.awaitMark(0x10)
		c.checkFlows()
		return
	}
	c.awaitMark(0x20)
	iptables := families[c.family].iptables
	before := c.dropped(iptables)
	sendByte(c.t, c.server)
	c.awaitDrop(c.t, iptables, before)
	before = c.dropped(iptables)
	sendByte(c.t, c.client)
	c.awaitDrop(c.t, iptables, before)
	receivesNothing(c.t, c.client)
	receivesNothing(c.t, c.server)
}

// While the rules are flushed, everything passes. After the agent has restored them, it
// judges and counts the connections that began meanwhile.
func TestConnectionsOfAFlushAreJudgedOnPackets(t *testing.T) {
	s := newTestbed(t)
	// Without a rule that needs conntrack, the kernel would track nothing during the flush.
	s.trackEverything()
	s.write("policies.yaml", policies(db("[{from: [{podSelector: {matchLabels: {role: frontend}}}]}]")))
	s.start()
	for family, f := range families {
		t.Run(f.name, func(t *testing.T) {
			before, mark := s.unjudged(t), s.agent.Mark()
			resume := s.pause(t)
			if err := s.Nodes[0].Run(f.iptables, "-w", "-t", "mangle", "-F"); err != nil {
				t.Fatal(err)
			}
			denied, allowed := s.newTCPPair(t, family, "default/other"), s.newTCPPair(t, family, "default/web")
			resume()
			s.await(mark, "the repair", agenttest.Event(event.RulesRestored))
			denied.checkRevoked(true)
			allowed.checkRevoked(false)
			s.awaitUnjudged(t, before, 2)
		})
	}
}

// Connections that pass because a queue is full are judged afterwards, and counted.
func TestConnectionsPastAFullQueueAreJudgedOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.trackEverything()
	s.write("policies.yaml", policies(db("[{from: [{podSelector: {matchLabels: {role: frontend}}}]}]")))
	s.start("--queue-overflow", "pass", "--queue-len", "1", "--queues", "1")
	for family, f := range families {
		t.Run(f.name, func(t *testing.T) {
			before := s.unjudged(t)
			resume := s.pause(t)
			// The queue has room for one packet. Fill it with a packet of another flow.
			pr := s.newProber(t, f.name == "IPv6")
			queued := s.queued()
			if err := s.host("default/web").Send(pr.udpTo(9, "fills it")); err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(waitTimeout); s.queued() == queued; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("the packet is not queued")
				}
			}
			denied, allowed := s.newTCPPair(t, family, "default/other"), s.newTCPPair(t, family, "default/web")
			resume()
			denied.checkRevoked(true)
			allowed.checkRevoked(false)
			s.awaitUnjudged(t, before, 2)
		})
	}
}

// With --fail open, connections can begin while no agent runs. The next agent judges them
// when it starts.
func TestConnectionsWithoutAgentAreJudgedOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(db("[{from: [{podSelector: {matchLabels: {role: frontend}}}]}]")))
	args := []string{"--fail", "open", "--on-exit", "keep"}
	s.start(args...)
	s.agent.Kill()
	var denied, allowed []*tcpPair
	for family := range families {
		denied, allowed = append(denied, s.newTCPPair(t, family, "default/other")), append(allowed, s.newTCPPair(t, family, "default/web"))
	}
	s.start(args...)
	for family := range families {
		(&tcpPair{testbed: s, t: t, family: family, client: denied[family].client, server: denied[family].server}).checkRevoked(true)
		allowed[family].checkRevoked(false)
	}
	if r := s.host("default/other").Connect(t.Context(), "tcp", netip.AddrPortFrom(s.host("default/db").IPv4, 6379), probeTimeout); r.Outcome != lab.TimedOut {
		t.Errorf("a new connection: %s", r.Outcome)
	}
}
