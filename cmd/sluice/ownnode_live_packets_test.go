//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"sluice/bench/testbed/lab"
)

// everybody returns a policy for the egress of all pods, with one rule for all peers and ports.
func everybody(tier, action string) string {
	return "all: {tier: " + tier + ", priority: 0, subject: {namespaces: {}}, egress: [{action: " + action + ", to: [{networks: [\"0.0.0.0/0\", \"::/0\"]}]}]}"
}

// connectTCP opens a connection between two hosts, with both ends in the test.
func (s *testbed) connectTCP(t *testing.T, family int, from, to string) (client, server *net.TCPConn) {
	t.Helper()
	return s.connectThrough(t, family, from, to, 0, netip.AddrPort{})
}

// connectThrough is like connectTCP, but the server listens at the given port. If via is valid,
// the client connects to via, which must lead to that port.
func (s *testbed) connectThrough(t *testing.T, family int, from, to string, port uint16, via netip.AddrPort) (client, server *net.TCPConn) {
	t.Helper()
	l, err := s.host(to).ListenTCP(netip.AddrPortFrom(families[family].addr(s.host(to)), port))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if !via.IsValid() {
		via = l.Addr().(*net.TCPAddr).AddrPort()
	}
	if client, err = s.host(from).DialTCP(t.Context(), via); err != nil {
		t.Fatal(err)
	}
	if server, err = l.AcceptTCP(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, c := range []*net.TCPConn{client, server} {
			_ = c.SetLinger(0)
			_ = c.Close()
		}
	})
	return client, server
}

// exchange checks that a byte arrives in each direction.
func exchange(t *testing.T, a, b *net.TCPConn) {
	t.Helper()
	for _, d := range [][2]*net.TCPConn{{a, b}, {b, a}} {
		sendByte(t, d[0])
		receiveByte(t, d[1])
	}
}

// A connection from a pod to its own node stops when a ClusterNetworkPolicy begins to deny it,
// and continues when the policy accepts it. Connections and probes from the node to its pods are
// not affected. It makes no difference whether the node reaches its pods by routes or a bridge.
func TestOwnNodeLiveConnectionsOnPackets(t *testing.T) {
	for name, opts := range map[string]lab.Options{"routed": {Nodes: 2}, "bridged": {Nodes: 2, Bridged: true}} {
		t.Run(name, func(t *testing.T) {
			s := newTestbedWith(t, opts)
			s.serve(s.host("node-1"))
			s.start()
			for _, tier := range []string{"Admin", "Baseline"} {
				s.save("policies.yaml", "")
				var toNode, toPod [][2]*net.TCPConn
				for family := range families {
					client, server := s.connectTCP(t, family, "default/web", "node-1")
					toNode = append(toNode, [2]*net.TCPConn{client, server})
					client, server = s.connectTCP(t, family, "node-1", "default/web")
					toPod = append(toPod, [2]*net.TCPConn{client, server})
				}
				s.save("policies.yaml", clusterPolicies(everybody(tier, "Deny")))
				for i := range families {
					sendUnanswered(t, toNode[i][0])
					receivesNothing(t, toNode[i][1])
					exchange(t, toPod[i][0], toPod[i][1])
				}
				s.check(t, []string{"node-1 default/web tcp 80", "node-1 default/db udp 53"}, []string{"default/web node-1 tcp 80", "default/web node-1 udp 53"})
				s.save("policies.yaml", clusterPolicies(everybody(tier, "Accept")))
				for i := range families {
					receiveByte(t, toNode[i][1]) // sent again
					exchange(t, toNode[i][0], toNode[i][1])
				}
				s.save("policies.yaml", clusterPolicies(everybody(tier, "Deny")))
				for i := range families {
					sendUnanswered(t, toNode[i][0])
					receivesNothing(t, toNode[i][1])
				}
			}
		})
	}
}

// pings reports whether an ICMP echo from a host is answered.
func (s *testbed) pings(t *testing.T, from string, to netip.Addr, timeout time.Duration) bool {
	t.Helper()
	network, answer := "ip4:icmp", byte(layers.ICMPv4TypeEchoReply)
	var echo gopacket.SerializableLayer = &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0), Id: 9}
	stack := []gopacket.SerializableLayer{echo}
	if to.Is6() {
		network, answer = "ip6:ipv6-icmp", layers.ICMPv6TypeEchoReply
		stack = []gopacket.SerializableLayer{&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeEchoRequest, 0)}, &layers.ICMPv6Echo{Identifier: 9}}
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{ComputeChecksums: !to.Is6()}, stack...); err != nil {
		t.Fatal(err)
	}
	var c *net.IPConn
	if err := s.host(from).Do(func() (err error) { c, err = net.DialIP(network, nil, &net.IPAddr{IP: to.AsSlice()}); return err }); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(b.Bytes()); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(timeout))
	for data := make([]byte, 1500); ; {
		n, _, err := c.ReadFrom(data) // Read returns the IPv4 header too
		if err != nil {
			return false
		}
		if n > 0 && data[0] == answer {
			return true
		}
	}
}

// Rules without ports apply to ICMP from a pod to its own node. Neighbour discovery always
// passes.
func TestOwnNodeICMPOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.start()
	for _, c := range []struct {
		text  string
		reach bool
	}{
		{everybody("Admin", "Deny"), false},
		{"all: {tier: Admin, priority: 0, subject: {namespaces: {}}, egress: [{action: Deny, to: [{networks: [\"0.0.0.0/0\", \"::/0\"]}], protocols: [{tcp: {destinationPort: {range: {start: 1, end: 65535}}}}]}]}", true},
		{everybody("Baseline", "Deny"), false},
		{everybody("Baseline", "Accept"), true},
	} {
		s.save("policies.yaml", clusterPolicies(c.text))
		for _, family := range families {
			// Without a neighbour entry, IPv6 needs neighbour discovery first.
			if err := s.host("default/web").Run("ip", "neigh", "flush", "all"); err != nil {
				t.Fatal(err)
			}
			timeout := probeTimeout
			if c.reach {
				timeout = waitTimeout
			}
			to := family.addr(s.host("node-1"))
			if got := s.pings(t, "default/web", to, timeout); got != c.reach {
				t.Errorf("%s: ping %s is answered: %t, want %t", c.text, to, got, c.reach)
			}
			if pod := family.addr(s.host("default/web")); !s.pings(t, "node-1", pod, waitTimeout) {
				t.Errorf("%s: the node's ping of %s is not answered", c.text, pod)
			}
		}
	}
}

// Rules apply to SCTP, and to protocols without ports, from a pod to its own node. The test writes
// the packets itself. The node answers what reaches it: with an ICMP error, which quotes the packet,
// or, if it knows SCTP, with an SCTP packet that ends the association.
func TestOwnNodeCraftedOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.start("--queues", "1")
	const sctp7777 = "protocols: [{sctp: {destinationPort: {number: 7777}}}]"
	to := func(action, protocols string) string {
		return "{action: " + action + ", to: [" + s.networksOf("node-1") + "], " + protocols + "}"
	}
	udp := to("Accept", "protocols: [{udp: {destinationPort: {range: {start: 1, end: 65535}}}}]") // for the sentinels
	for _, c := range []struct {
		name, text        string
		sctp, others, esp bool // SCTP port 7777, other ports, and ESP reach the node
	}{
		{"no policy", "", true, true, true},
		{"NetworkPolicy alone", policies(denyAll), true, true, true},
		{"Deny a port", clusterPolicies(fromAll(to("Deny", sctp7777))), false, true, true},
		{"Deny a range", clusterPolicies(fromAll(to("Deny", "protocols: [{sctp: {destinationPort: {range: {start: 7778, end: 8000}}}}]"))), true, false, true},
		{"Deny without protocols", clusterPolicies(fromAll(udp + ", " + to("Deny", ""))), false, false, false},
		{"Accept a port", clusterPolicies(fromAll(udp + ", " + to("Accept", sctp7777) + ", " + to("Deny", ""))), true, false, false},
		{"Pass a port to Baseline", clusterPolicies(fromAll(to("Pass", sctp7777)), ofAll("b", "Baseline", 1, "egress: ["+udp+", "+to("Deny", "")+"]")), false, false, false},
		{"Baseline accepts a port", clusterPolicies(ofAll("b", "Baseline", 1, "egress: ["+udp+", "+to("Accept", sctp7777)+", "+to("Deny", "")+"]")), true, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.save("policies.yaml", c.text)
			for family, f := range families {
				pr := s.newProberBetween(t, "default/web", "node-1", family == 1)
				packets := map[string]struct {
					data []byte
					want bool
				}{
					"SCTP 7777": {pr.sctp(7777, "SCTP 7777"), c.sctp},
					"SCTP 7778": {pr.sctp(7778, "SCTP 7778"), c.others},
					"ESP":       {pr.packet(layers.IPProtocolESP, gopacket.Payload("12345678901234567890ESP")), c.esp},
				}
				for range 2 { // by the agent's verdicts, then by those that caches remember
					answers := pr.answersTo(func() (err error) {
						for _, p := range packets {
							err = errors.Join(err, s.host("default/web").Send(p.data))
						}
						return err
					})
					for what, p := range packets {
						if got := slices.ContainsFunc(answers, func(a gopacket.Packet) bool { return isAbout(a, what) }); got != p.want {
							t.Errorf("%s, %s: answered: %v, want %v", f.name, what, got, p.want)
						}
					}
				}
			}
		})
	}
}

// isAbout reports whether an answer contains the text "what", or is SCTP and "what" names its
// source port, as in "SCTP 7777".
func isAbout(answer gopacket.Packet, what string) bool {
	sctp, is := answer.Layer(layers.LayerTypeSCTP).(*layers.SCTP)
	return bytes.Contains(answer.Data(), []byte(what)) || is && what == fmt.Sprintf("SCTP %d", sctp.SrcPort)
}

// A pod cannot evade a policy by talking to its node from a link-local address.
func TestOwnNodeLinkLocalOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.serve(s.host("node-1"))
	s.start()
	web := s.host("default/web")
	text, err := s.Nodes[0].Output(exec.Command("ip", "-6", "-o", "addr", "show", "dev", web.RouterDevice(), "scope", "link"))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(text)
	if len(fields) < 4 {
		t.Fatalf("no link-local address in %q", text)
	}
	node := netip.MustParsePrefix(fields[3]).Addr().WithZone(lab.Device)
	reaches := func(timeout time.Duration) bool {
		return web.Connect(t.Context(), "tcp", netip.AddrPortFrom(node, 80), timeout).Outcome == lab.Reached
	}
	s.save("policies.yaml", policies(denyAll))
	if !reaches(waitTimeout) {
		t.Error("the pod does not reach its node's link-local address without a ClusterNetworkPolicy")
	}
	s.save("policies.yaml", clusterPolicies(everybody("Admin", "Deny")))
	s.eventually(t, "the guard drops packets from link-local addresses to the node", func() bool { return !reaches(probeTimeout) })
	s.check(t, []string{"node-1 default/web tcp 80"}, []string{"default/web node-1 tcp 80"})
}

// answerDNS answers datagrams to port 53 of an address of node-1, from that address.
func (s *testbed) answerDNS(t *testing.T, addr netip.Addr) {
	t.Helper()
	c, err := s.host("node-1").ListenUDP(netip.AddrPortFrom(addr, 53))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		for data := make([]byte, 100); ; {
			_, from, err := c.ReadFromUDPAddrPort(data)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort([]byte("node-1 "+from.String()+"\n"), from)
		}
	}()
}

// A policy about packets to the node applies to all addresses of the node, such as that of a
// node-local DNS cache. It also applies to an address that was added after the policy, and to
// packets that conntrack does not track.
func TestOwnNodeDNSOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.start()
	node := s.Nodes[0]
	for _, args := range [][]string{
		{"ip", "addr", "add", "169.254.20.10/32", "dev", "lo"}, {"ip", "addr", "add", "fd53::a/128", "dev", "lo"},
		{"iptables", "-t", "raw", "-A", "PREROUTING", "-d", "169.254.20.10", "-p", "udp", "--dport", "53", "-j", "NOTRACK"},
		{"iptables", "-t", "raw", "-A", "OUTPUT", "-s", "169.254.20.10", "-p", "udp", "--sport", "53", "-j", "NOTRACK"},
	} {
		if err := node.Run(args[0], args[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	if err := node.Serve("tcp", 80); err != nil {
		t.Fatal(err)
	}
	for _, addr := range []string{"169.254.20.10", "fd53::a"} {
		s.answerDNS(t, netip.MustParseAddr(addr))
	}
	dns := []string{"default/web 169.254.20.10 udp 53", "default/web fd53::a udp 53", "default/db 169.254.20.10 udp 53"}
	tcp := []string{"default/web 169.254.20.10 tcp 80", "default/web fd53::a tcp 80"}
	s.save("policies.yaml", policies(denyAll))
	s.check(t, append(tcp, dns...), nil)
	accept := "[{action: Accept, to: [{networks: [169.254.20.10/32, \"fd53::a/128\"]}], protocols: [{udp: {destinationPort: {number: 53}}}]}, {action: Deny, to: [{networks: [\"0.0.0.0/0\", \"::/0\"]}]}]"
	s.save("policies.yaml", policies(denyAll)+clusterPolicies("all: {tier: Admin, priority: 0, subject: {namespaces: {}}, egress: "+accept+"}"))
	for range 2 {
		s.check(t, dns, tcp)
	}
	s.save("policies.yaml", clusterPolicies(everybody("Admin", "Deny")))
	s.check(t, nil, append(tcp, dns...))
	for _, late := range []string{"169.254.20.11/32", "fd53::b/128"} {
		if err := node.Run("ip", "addr", "add", late, "dev", "lo"); err != nil {
			t.Fatal(err)
		}
	}
	s.check(t, nil, []string{"default/web 169.254.20.11 tcp 80", "default/web fd53::b tcp 80"})
}

// Without an agent, --fail closed denies packets to the node only from pods whose packets to
// the node need a verdict. All other hosts still reach the node, and the node still reaches its
// pods.
func TestOwnNodeWithoutAgentOnPackets(t *testing.T) {
	for _, args := range [][]string{nil, {"--kernel-cache", "off"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			s := newTestbed(t)
			s.serve(s.host("node-1"))
			s.write("policies.yaml", clusterPolicies(cnp("a", "Admin", "frontend", "["+s.nodeNetworks("Deny", "node-1", ", protocols: [{tcp: {destinationPort: {number: 80}}}]")+"]")))
			s.start(append(args, "--on-exit", "keep")...)
			s.check(t, []string{"default/web node-1 tcp 8080"}, []string{"default/web node-1 tcp 80"})
			s.agent.Kill()
			s.check(t,
				[]string{"outside node-1 tcp 80", "node-2 node-1 tcp 80", "default/other node-1 tcp 80", "default/far node-1 udp 53", "node-1 default/web tcp 80"},
				[]string{"default/web node-1 tcp 80", "default/web node-1 udp 53"})
			s.start(args...)
			s.check(t, []string{"default/web node-1 udp 53"}, []string{"default/web node-1 tcp 80"})
		})
	}
}

// In the separate tables of nf_tables, the rules have the same effect.
func TestOwnNodeInOwnTableOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.serve(s.host("node-1"))
	s.ownTables(t)
	s.start("--iptables", "nft")
	s.save("policies.yaml", clusterPolicies(everybody("Admin", "Deny")))
	s.check(t, []string{"node-1 default/web tcp 80"}, []string{"default/web node-1 tcp 80", "default/web node-1 udp 53"})
	if text := s.ruleset(t); strings.Count(text, "jump SLUICE-INPUT") != 2 {
		t.Errorf("no jump from INPUT in the tables:\n%s", text)
	}
	s.save("policies.yaml", "")
	s.check(t, []string{"default/web node-1 tcp 80", "default/web node-1 udp 53"}, nil)
	if text := s.ruleset(t); strings.Contains(text, "jump SLUICE-INPUT") {
		t.Errorf("a jump from INPUT without a policy:\n%s", text)
	}
}

// The node reaches its own addresses, also one in the range of its pods. Without an agent, this
// does not change.
func TestOwnNodeLoopbackOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.serve(s.host("node-1"))
	inRange := netip.PrefixFrom(s.host("default/web").IPv4, 24).Masked().Addr()
	for range 250 {
		inRange = inRange.Next()
	}
	if err := s.Nodes[0].Run("ip", "addr", "add", inRange.String()+"/32", "dev", "lo"); err != nil {
		t.Fatal(err)
	}
	s.write("policies.yaml", clusterPolicies(everybody("Admin", "Deny")))
	s.start("--kernel-cache", "off", "--on-exit", "keep", "--pod-cidrs", netip.PrefixFrom(inRange, 24).Masked().String())
	own := []string{"node-1 node-1 tcp 80", "node-1 " + inRange.String() + " tcp 80", "node-1 default/web tcp 80"}
	s.check(t, own, []string{"default/web node-1 tcp 80", "default/web " + inRange.String() + " tcp 80"})
	s.agent.Kill()
	s.check(t, own, []string{"default/web node-1 tcp 80"})
}

// The kernel's cache answers for packets to the node too, also after a hand-over and without an
// agent. After the policy is deleted, verdicts that it has caused are not used any more.
func TestOwnNodeInKernelCacheOnPackets(t *testing.T) {
	for name, opts := range map[string]lab.Options{"routed": {Nodes: 2}, "bridged": {Nodes: 2, Bridged: true}} {
		t.Run(name, func(t *testing.T) {
			s := newTestbedWith(t, opts)
			s.serve(s.host("node-1"))
			s.start(kernelArgs("--on-exit", "keep")...)
			const tcp80 = ", protocols: [{tcp: {destinationPort: {number: 80}}}]"
			s.save("policies.yaml", clusterPolicies(cnp("a", "Admin", "frontend", "["+s.nodeNetworks("Deny", "node-1", tcp80)+"]")))
			allow, deny := []string{"default/web node-1 tcp 8080", "default/other node-1 tcp 80"}, []string{"default/web node-1 tcp 80"}
			s.check(t, allow, deny)
			s.awaitNotQueued(t, func() { s.check(t, allow, deny) })
			old := s.agent
			s.start(kernelArgs("--on-exit", "keep")...) // takes over
			s.check(t, allow, deny)
			if err := old.Stop(); err != nil {
				t.Fatal(err)
			}
			s.awaitNotQueued(t, func() { s.check(t, allow, deny) })
			s.agent.Kill()
			s.check(t, allow, deny)
			s.start(kernelArgs()...)
			s.save("policies.yaml", "")
			s.check(t, append(allow, deny...), nil)
		})
	}
}
