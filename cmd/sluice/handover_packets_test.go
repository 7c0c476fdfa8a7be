//go:build linux

package main

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"sluice/bench/testbed/agenttest"
	"sluice/filter/event"
)

// startLatePod starts a pod that the agent does not know yet. It returns the pod's manifest
// and a UDP socket of the pod default/other, connected to the new pod.
func (s *testbed) startLatePod(t *testing.T) (manifest string, conn net.Conn) {
	t.Helper()
	pod, err := s.Nodes[0].AddPod("late", startAddrs(1)...)
	if err != nil {
		t.Fatal(err)
	}
	if err := pod.Serve("udp", 9); err != nil {
		t.Fatal(err)
	}
	conn, err = s.host("default/other").DialUDP(netip.AddrPortFrom(pod.IPv4, 9))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return s.pod("default/late", "role: late", 0, pod.Addrs()...), conn
}

// send sends a datagram.
func send(t *testing.T, conn net.Conn) {
	t.Helper()
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
}

// After a takeover, the old agent still answers its held packets by its own snapshot. A
// connection that the old snapshot allows and the new agent's newer one denies is revoked.
func TestVerdictAfterTakeoverOnPackets(t *testing.T) {
	s := newTestbed(t)
	args := []string{"--pod-cidrs", startRange4.String(), "--hold", "1m", "--on-exit", "keep"}
	s.start(args...)
	manifest, conn := s.startLatePod(t)
	send(t, conn)
	s.await(0, "the packet waits", agenttest.Event(event.PacketHeld))

	old := s.dir
	s.dir = t.TempDir()
	s.write("cluster.yaml", testbedNamespaces+s.pods()+manifest)
	s.write("policies.yaml", policies("default/late: {podSelector: {matchLabels: {role: late}}}"))
	s.start(args...)
	before := s.dropped("iptables")
	if err := agenttest.WriteFile(old, "late.yaml", manifest); err != nil { // the old agent has no policy about the pod, and allows the packet
		t.Fatal(err)
	}
	for end := time.Now().Add(waitTimeout); s.dropped("iptables") <= before; send(t, conn) {
		if time.Now().After(end) {
			t.Fatal("the connection that the old agent allowed is not revoked")
		}
	}
}

// Held packets do not delay the removal of the rules when the agent ends.
func TestEndWithPacketsThatWait(t *testing.T) {
	s := newTestbed(t)
	s.start("--pod-cidrs", startRange4.String(), "--hold", "1h", "--on-exit", "remove")
	_, conn := s.startLatePod(t)
	send(t, conn)
	s.await(0, "the packet waits", agenttest.Event(event.PacketHeld))
	if err := s.agent.Stop(); err == nil {
		t.Error("the agent does not report that packets were held")
	}
	if left := s.leftovers(t); left != "" {
		t.Errorf("left on the node:\n%s", left)
	}
}

// Once a new agent is ready, no packet gets a verdict of the old agent's snapshot, neither
// from the old agent nor from its kernel cache. This holds while the old agent still runs and
// after it has ended.
func TestOldProgramsAnswerNothingOnPackets(t *testing.T) {
	const rounds, ports = 2, 3000
	allow, deny := policies(db("[{ports: [{protocol: UDP, port: 9}]}]")), policies(db("[]"))
	for i, f := range families {
		t.Run(f.name, func(t *testing.T) {
			s := newTestbed(t)
			takeOver := func(text string) (old *agenttest.Agent) {
				old = s.agent
				s.dir = t.TempDir()
				s.write("cluster.yaml", testbedNamespaces+s.pods())
				s.write("policies.yaml", text)
				s.start(kernelArgs("--on-exit", "keep")...)
				return old
			}
			end := func(old *agenttest.Agent) {
				t.Helper()
				if err := old.Stop(); err != nil {
					t.Fatal(err)
				}
			}
			takeOver(allow)
			e := newStagedSender(t, s.newProber(t, i == 1), ports, 3*rounds+2)
			for range rounds {
				e.allowed()
				var old *agenttest.Agent
				e.change(func() { old = takeOver(deny) })
				e.denied("both agents run")
				end(old)
				e.denied("the old agent has ended")
				e.change(func() { end(takeOver(allow)) })
			}
			e.allowed()
			e.end()
		})
	}
}
