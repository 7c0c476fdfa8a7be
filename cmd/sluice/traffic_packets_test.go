//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"sluice/bench/testbed/agenttest"
	"sluice/bench/testbed/lab"
)

// families are the two address families.
var families = []struct {
	name, iptables, service string
	netlink                 int
	addr                    func(*lab.Host) netip.Addr
}{
	{"IPv4", "iptables", "10.96.0.1", unix.AF_INET, func(h *lab.Host) netip.Addr { return h.IPv4 }},
	{"IPv6", "ip6tables", "fd00:96::1", unix.AF_INET6, func(h *lab.Host) netip.Addr { return h.IPv6 }},
}

// nat adds a rule to the node's table nat.
func (s *testbed) nat(iptables string, rule ...string) {
	s.t.Helper()
	if err := s.Nodes[0].Run(iptables, append([]string{"-w", "-t", "nat", "-A"}, rule...)...); err != nil {
		s.t.Fatal(err)
	}
}

// Policies apply to the destination after Service translation, and to the source before
// masquerading. A pod can reach itself through a Service.
func TestServicesOnPackets(t *testing.T) {
	s := newTestbed(t)
	pod := s.host("default/db")
	for _, f := range families {
		s.nat(f.iptables, "PREROUTING", "-p", "tcp", "-d", f.service, "--dport", "81", "-j", "DNAT",
			"--to-destination", netip.AddrPortFrom(f.addr(pod), 6379).String())
		// Masquerade like kube-proxy for a pod that reaches itself, and like a node for
		// traffic that leaves the cluster.
		s.nat(f.iptables, "POSTROUTING", "-s", f.addr(pod).String(), "-d", f.addr(pod).String(), "-j", "MASQUERADE")
		s.nat(f.iptables, "POSTROUTING", "-o", lab.Device, "-j", "MASQUERADE")
	}
	s.write("policies.yaml", policies(demo1, webEgress("[{to: [{podSelector: {matchLabels: {role: db}}}], ports: [{port: 6379}]}, {to: [{ipBlock: {cidr: 192.0.2.0/24}}, {ipBlock: {cidr: \"2001:db8::/64\"}}], ports: [{port: 80}]}]"),
		"default/none: {podSelector: {matchLabels: {role: db}}, policyTypes: [Egress]}"))
	s.start()
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			service := f.service + " tcp 81"
			s.check(t, []string{"default/web " + service, "default/db " + service, "default/web outside tcp 80"},
				[]string{"default/other " + service, "default/web outside tcp 8080", "mine/cart " + service})
		})
	}
	// The outside host must have seen the node's address.
	r := s.host("default/web").Connect(t.Context(), "tcp", netip.AddrPortFrom(s.Outside.IPv4, 80), waitTimeout)
	if r.Seen.Addr() != s.Nodes[0].IPv4 {
		t.Errorf("seen as %s (%v), want the node's address", r.Seen, r.Err)
	}
}

// Traffic from a pod's node always passes. Traffic through a NodePort of that node passes only
// if a policy allows its original source.
func TestNodePortOnPackets(t *testing.T) {
	s := newTestbed(t)
	pod := s.host("default/db")
	for _, f := range families {
		s.nat(f.iptables, "PREROUTING", "-p", "tcp", "-d", f.addr(s.Nodes[0].Host).String(), "--dport", "30000", "-j", "DNAT",
			"--to-destination", netip.AddrPortFrom(f.addr(pod), 6379).String())
		s.nat(f.iptables, "POSTROUTING", "-p", "tcp", "-d", f.addr(pod).String(), "-j", "MASQUERADE")
	}
	s.write("policies.yaml", policies(demo1))
	s.start()
	s.check(t, []string{"default/far node-1 tcp 30000", "node-1 default/db tcp 6379"}, []string{"outside node-1 tcp 30000"})
	s.save("policies.yaml", policies(demo1, db("[{from: [{ipBlock: {cidr: 192.0.2.0/24}}, {ipBlock: {cidr: \"2001:db8::/64\"}}]}]")))
	s.check(t, []string{"outside node-1 tcp 30000"}, nil)
}

// The TCP reset and the ICMP error that answer an allowed packet pass, although no policy allows
// them. So a client learns that a port is closed.
func TestErrorsPassOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.start()
	for _, text := range []string{
		policies(db("[{ports: [{protocol: UDP, port: 9}, {port: 9}]}]"), "default/none: {podSelector: {matchLabels: {role: db}}, policyTypes: [Egress]}"),
		clusterPolicies(cnp("out", "Admin", "db", "[{action: Deny, to: ["+anyNetwork+"]}]"), toAll("{action: Accept, from: ["+frontends+"]}, {action: Deny, from: ["+anyPods+"]}")),
	} {
		s.save("policies.yaml", text)
		s.checkErrorsPass(t)
	}
}

// checkErrorsPass checks that the frontend learns that port 9 of the database is closed.
func (s *testbed) checkErrorsPass(t *testing.T) {
	t.Helper()
	for _, f := range families {
		for _, network := range []string{"tcp", "udp"} {
			to := netip.AddrPortFrom(f.addr(s.host("default/db")), 9)
			r := s.host("default/web").Connect(t.Context(), network, to, waitTimeout/12)
			if r.Outcome == lab.TimedOut { // a busy machine may lose a datagram
				r = s.host("default/web").Connect(t.Context(), network, to, waitTimeout)
			}
			if r.Outcome != lab.Refused {
				t.Errorf("%s %s: %s, want it refused", f.name, network, r.Outcome)
			}
		}
	}
}

// prober sends crafted packets from one pod to another and observes which of them arrive.
type prober struct {
	*testbed
	t        testing.TB
	from, to string
	v6       bool
	sniffer  *lab.Sniffer
	sentinel int // see count
}

func (s *testbed) newProber(t testing.TB, v6 bool) *prober {
	t.Helper()
	return s.newProberBetween(t, "default/web", "default/db", v6)
}

// newProberBetween returns a prober for the given pods.
func (s *testbed) newProberBetween(t testing.TB, from, to string, v6 bool) *prober {
	t.Helper()
	sniffer, err := s.host(to).Sniff()
	if err != nil {
		t.Fatal(err)
	}
	pr := &prober{testbed: s, t: t, from: from, to: to, v6: v6, sniffer: sniffer}
	pr.count()
	return pr
}

// count sets the number of the next packets to one that no other prober of the test has. The
// source port of a sentinel contains this number. With the port of an earlier sentinel, it would
// belong to that sentinel's connection, which is already judged, and would overtake the packets
// in the queue.
func (pr *prober) count() { pr.sentinel = int(sentinels.Add(1) % 10_000) }

// packet returns an IP packet between the two pods. The payload is all that follows the IP
// header.
func (pr *prober) packet(proto layers.IPProtocol, payload ...gopacket.SerializableLayer) []byte {
	pr.t.Helper()
	from, to := pr.host(pr.from), pr.host(pr.to)
	var ip gopacket.SerializableLayer = &layers.IPv4{Version: 4, TTL: 64, Id: 1, Protocol: proto, SrcIP: from.IPv4.AsSlice(), DstIP: to.IPv4.AsSlice()}
	if pr.v6 {
		ip = &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: proto, SrcIP: from.IPv6.AsSlice(), DstIP: to.IPv6.AsSlice()}
	}
	for _, l := range payload {
		if c, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			if err := c.SetNetworkLayerForChecksum(ip.(gopacket.NetworkLayer)); err != nil {
				pr.t.Fatal(err)
			}
		}
	}
	b := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(b, opts, append([]gopacket.SerializableLayer{ip}, payload...)...); err != nil {
		pr.t.Fatal(err)
	}
	return b.Bytes()
}

// udp returns a datagram that the policies allow, with a source port of its own. It always goes
// through the queue, and there stays behind the packets that were sent before it.
func (pr *prober) udp(text string) []byte {
	return withOptions(pr.packet(layers.IPProtocolUDP, &layers.UDP{SrcPort: layers.UDPPort(50000 + pr.sentinel), DstPort: 53}, gopacket.Payload(text)))
}

// withOptions inserts options without effect behind the IP header of a packet. They keep the
// kernel's flow cache from answering the packet, so that it always goes through the queue.
func withOptions(packet []byte) []byte {
	if packet[0]>>4 == 6 {
		options := []byte{packet[6], 0, 1, 4, 0, 0, 0, 0} // padding (RFC 8200, 4.2)
		packet = slices.Insert(packet, 40, options...)
		packet[6] = byte(layers.IPProtocolIPv6Destination)
		binary.BigEndian.PutUint16(packet[4:], uint16(len(packet)-40))
		return packet
	}
	packet = slices.Insert(packet, 20, 1, 1, 1, 1) // four "no operation" options (RFC 791, 3.1)
	packet[0]++
	binary.BigEndian.PutUint16(packet[2:], uint16(len(packet)))
	packet[10], packet[11] = 0, 0
	binary.BigEndian.PutUint16(packet[10:], checksum(packet[:24]))
	return packet
}

// udpTo returns a datagram with a fixed source port, so that there is one flow for each
// destination port.
func (pr *prober) udpTo(port uint16, text string) []byte {
	return pr.packet(layers.IPProtocolUDP, &layers.UDP{SrcPort: 39999, DstPort: layers.UDPPort(port)}, gopacket.Payload(text))
}

// arrives sends a packet, and reports whether the target receives it. The packet must contain
// the text in the parameter "mark", by which arrives recognizes it.
func (pr *prober) arrives(packet []byte, mark string) bool {
	pr.t.Helper()
	send := func(p []byte) {
		pr.t.Helper()
		if err := pr.host(pr.from).Send(p); err != nil {
			pr.t.Fatal(err)
		}
	}
	send(packet)
	return receives(pr.t, pr.sniffer, mark, func(text string) {
		pr.t.Helper()
		pr.count()
		send(pr.udp(text))
	})
}

// receives reports whether a packet arrives at the sniffer. The caller has sent the packet,
// which contains the text in the parameter "mark". receives then sends two sentinels, one after
// the other: allowed packets that take the same path and the same queue. It sends them by
// calling send() with the text of the sentinel. If the second sentinel arrives before the
// packet, the packet was dropped. One sentinel would not suffice: a packet from a tunnel waits
// in a queue of the tunnel's interface, where the sentinel can overtake it. A sentinel that
// gets lost, for example while one agent takes over from another, is sent again.
func receives(t testing.TB, sniffer *lab.Sniffer, mark string, send func(text string)) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	for _, sentinel := range []string{"first sentinel", "second sentinel"} {
		sentinel = fmt.Sprintf("%s %d.", sentinel, sentinels.Add(1))
		for received := false; !received; {
			send(sentinel)
			attempt, cancel := context.WithTimeout(ctx, waitTimeout/30)
			got, err := sniffer.Await(attempt, func(p []byte) bool {
				return bytes.Contains(p, []byte(mark)) || bytes.Contains(p, []byte(sentinel))
			})
			cancel()
			switch {
			case err == nil && bytes.Contains(got, []byte(mark)):
				return true
			case err != nil && (ctx.Err() != nil || attempt.Err() == nil):
				t.Fatal(err)
			}
			received = err == nil
		}
	}
	return false
}

// sentinels counts the sentinels, so that each has a text of its own.
var sentinels atomic.Int64

// sctp returns an INIT chunk, which opens an association (RFC 9260, 3.3.2), with a text in
// place of its parameters.
func (pr *prober) sctp(port uint16, text string) []byte {
	init := make([]byte, 20, 20+len(text))
	init[0] = 1
	binary.BigEndian.PutUint16(init[2:], uint16(20+len(text)))
	init[4] = 1 // the initiate tag must not be 0
	init[11], init[13], init[15] = 1, 1, 1
	return pr.packet(layers.IPProtocolSCTP, &layers.SCTP{SrcPort: 5000, DstPort: layers.SCTPPort(port)}, gopacket.Payload(append(init, text...)))
}

// Policies apply to protocols for which the testbed has no sockets, such as SCTP, and to packets
// that no socket would send, such as a truncated TCP header. The test writes these packets itself.
func TestCraftedPackets(t *testing.T) {
	const allowDNS = "{ports: [{protocol: UDP, port: 53}]}"
	s := newTestbedWith(t, lab.Options{Nodes: 2, InOrder: true})
	s.start("--queues", "1") // with more queues, packets of different protocols could overtake each other
	type sent struct {
		name, mark string
		packet     func(*prober) []byte
	}
	icmp := sent{"ICMP echo", "icmp echo", func(pr *prober) []byte {
		if pr.v6 {
			return pr.packet(layers.IPProtocolICMPv6, &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)}, &layers.ICMPv6Echo{Identifier: 7}, gopacket.Payload("icmp echo"))
		}
		return pr.packet(layers.IPProtocolICMPv4, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 7}, gopacket.Payload("icmp echo"))
	}}
	sctp := sent{"SCTP", "sctp init", func(pr *prober) []byte { return pr.sctp(7777, "sctp init") }}
	otherSCTP := sent{"SCTP to another port", "sctp other", func(pr *prober) []byte { return pr.sctp(7778, "sctp other") }}
	unassigned := sent{"an unassigned protocol", "protocol 200", func(pr *prober) []byte {
		return pr.packet(200, gopacket.Payload("protocol 200"))
	}}
	cut := sent{"a truncated TCP header", "cut tcp", func(pr *prober) []byte {
		return pr.packet(layers.IPProtocolTCP, gopacket.Payload("\x9c\x40\x18\xebcut tcp"))
	}}
	esp := sent{"encrypted payload", "esp payload", func(pr *prober) []byte {
		return pr.packet(layers.IPProtocolESP, gopacket.Payload("12345678esp payload"))
	}}
	all := []sent{icmp, sctp, otherSCTP, unassigned, cut, esp}
	ofNetworkPolicy := func(ingress string) string { return policies(db(ingress)) }
	ofAdmin := func(ingress string) string { return clusterPolicies(toAll(ingress)) }
	const (
		acceptDNS = "{action: Accept, from: [" + anyPods + "], protocols: [{udp: {destinationPort: {number: 53}}}]}, "
		denyAny   = "{action: Deny, from: [" + anyPods + "]}"
		ports     = ", protocols: [{tcp: {destinationPort: {number: 6379}}}, {sctp: {destinationPort: {number: 7777}}}]}"
	)
	cases := []struct {
		name, text string
		pass       []sent
	}{
		{"a rule without ports", ofNetworkPolicy("[{}]"), all},
		{"a rule for this peer without ports", ofNetworkPolicy("[{from: [{podSelector: {matchLabels: {role: frontend}}}]}]"), all},
		{"all ports of all protocols", ofNetworkPolicy("[{ports: [{protocol: TCP}, {protocol: UDP}, {protocol: SCTP}]}]"), []sent{sctp, otherSCTP}},
		{"one SCTP port", ofNetworkPolicy("[" + allowDNS + ", {ports: [{protocol: SCTP, port: 7777}]}]"), []sent{sctp}},
		{"TCP alone", ofNetworkPolicy("[" + allowDNS + ", {ports: [{port: 7777}, {port: 6379}]}]"), nil},
		{"another peer without ports", ofNetworkPolicy("[" + allowDNS + ", {from: [{podSelector: {matchLabels: {role: backend}}}]}]"), nil},
		// ClusterNetworkPolicies. A truncated header may hide a port that a rule denies.
		{"c05 Deny without protocols", ofAdmin(acceptDNS + denyAny), nil},
		{"c05 Accept without protocols", policies(denyAll) + clusterPolicies(ofAll("p", "Admin", 1, "ingress: [{action: Accept, from: ["+anyPods+"]}], egress: [{action: Accept, to: ["+anyPods+"]}]")), all},
		{"c05 Deny some ports", ofAdmin("{action: Deny, from: [" + anyPods + "]" + ports), []sent{icmp, otherSCTP, unassigned, esp}},
		{"c05 Accept some ports", ofAdmin(acceptDNS + "{action: Accept, from: [" + anyPods + "]" + ports + ", " + denyAny), []sent{sctp}},
		{"c05 Deny a range of SCTP", ofAdmin("{action: Deny, from: [" + anyPods + "], protocols: [{sctp: {destinationPort: {range: {start: 7000, end: 7777}}}}]}"), []sent{icmp, otherSCTP, unassigned, esp}},
		{"c05 Deny another peer", ofAdmin("{action: Deny, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {role: backend}}}}]" + ports), all},
		{"c05 Deny for egress", clusterPolicies(fromAll("{action: Deny, to: [" + s.networksOf("default/db") + "]" + ports)), []sent{icmp, otherSCTP, unassigned, esp}},
		{"c03 Pass some ports to NetworkPolicies", policies(db("["+allowDNS+", {ports: [{protocol: SCTP}]}]")) + clusterPolicies(toAll(acceptDNS+"{action: Pass, from: ["+anyPods+"]"+ports+", "+denyAny)), []sent{sctp}},
		{"c01 Baseline", clusterPolicies(ofAll("b", "Baseline", 1, "ingress: ["+acceptDNS+"{action: Accept, from: ["+anyPods+"]"+ports+", "+denyAny+"]")), []sent{sctp}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s.save("policies.yaml", c.text)
			for i, f := range families {
				pr := s.newProber(t, i == 1)
				for _, p := range all {
					want := false
					for _, o := range c.pass {
						want = want || o.name == p.name
					}
					if got := pr.arrives(p.packet(pr), p.mark); got != want {
						t.Errorf("%s, %s: arrives %v, want %v", f.name, p.name, got, want)
					}
				}
			}
		})
	}
}

// The kernel reassembles a fragmented packet before it queues it, so that all fragments get the
// verdict of the whole packet.
func TestFragmentsOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(db("[{ports: [{protocol: UDP, port: 53}]}]")))
	s.start("--queues", "1")
	for _, port := range []uint16{53, 54} {
		t.Run(fmt.Sprint(port), func(t *testing.T) {
			pr := s.newProber(t, false)
			whole := pr.packet(layers.IPProtocolUDP, &layers.UDP{SrcPort: 41000, DstPort: layers.UDPPort(port)}, gopacket.Payload("first part fragment "+strings.Repeat("x", 28)))
			head, tail := whole[:20], whole[20:]
			fragment := func(data []byte, offset int, more uint16) []byte {
				p := append(bytes.Clone(head), data...)
				binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
				binary.BigEndian.PutUint16(p[6:], more<<13|uint16(offset/8))
				p[10], p[11] = 0, 0
				binary.BigEndian.PutUint16(p[10:], checksum(p[:20]))
				return p
			}
			if err := pr.host("default/web").Send(fragment(tail[:32], 0, 1)); err != nil {
				t.Fatal(err)
			}
			if got := pr.arrives(fragment(tail[32:], 32, 0), "part fragment"); got != (port == 53) {
				t.Errorf("arrives: %v", got)
			}
		})
	}
}

// checksum returns the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i, v := range b {
		sum += uint32(v) << (8 * (1 - i%2))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// queued returns the total number of packets that the kernel has put into queues.
func (s *testbed) queued() (sum uint64) {
	s.t.Helper()
	for _, n := range s.queues() {
		sum += n
	}
	return sum
}

// queues returns the number of packets that the kernel has put into each queue.
func (s *testbed) queues() map[int]uint64 {
	s.t.Helper()
	found := make(map[int]uint64)
	text, err := s.Nodes[0].Output(exec.Command("cat", "/proc/net/netfilter/nfnetlink_queue"))
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		var f [9]int64
		for i, field := range strings.Fields(line) {
			_, _ = fmt.Sscan(field, &f[i])
		}
		found[int(f[0])] = uint64(f[7])
	}
	return found
}

// Only the first packet of a one-way UDP flow is queued, although conntrack has the state NEW for
// all of its packets. Only the first packet of a TCP connection is queued, too. The connection
// mark must achieve this, so the test switches off the kernel's flow cache, which would also
// keep packets from the queue.
func TestJudgedOnceOnPackets(t *testing.T) {
	for _, with := range []string{"drop", "reject"} {
		t.Run(with, func(t *testing.T) { testJudgedOnce(t, "--kernel-cache", "off", "--deny-with", with) })
	}
}

func testJudgedOnce(t *testing.T, args ...string) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(db("[{ports: [{protocol: UDP, port: 7}, {port: 6379}]}]")))
	s.start(args...)
	const packets = 50
	for i, f := range families {
		pr := s.newProber(t, i == 1)
		before := s.queued()
		for n := range packets {
			text := fmt.Sprintf("one way %d.", n)
			if err := pr.host("default/web").Send(pr.packet(layers.IPProtocolUDP, &layers.UDP{SrcPort: 42000, DstPort: 7}, gopacket.Payload(text))); err != nil {
				t.Fatal(err)
			}
			if n > 0 && n < packets-1 {
				// Wait only for the first packet, so that its verdict precedes the others, and for
				// the last one.
				continue
			}
			ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
			_, err := pr.sniffer.Await(ctx, func(p []byte) bool { return bytes.Contains(p, []byte(text)) })
			cancel()
			if err != nil {
				t.Fatal(err)
			}
		}
		if n := s.queued() - before; n != 1 {
			t.Errorf("%s: %d of %d packets of one-way UDP were queued, want 1", f.name, n, packets)
		}
		before = s.queued()
		client, err := pr.host("default/web").DialTCP(t.Context(), netip.AddrPortFrom(f.addr(pr.host("default/db")), 6379))
		if err != nil {
			t.Fatal(err)
		}
		echo := make([]byte, 1)
		for range packets {
			if _, err := client.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := client.Read(echo); err != nil {
				t.Fatal(err)
			}
		}
		if n := s.queued() - before; n != 1 {
			t.Errorf("%s: %d packets of one TCP connection were queued, want 1", f.name, n)
		}
		_ = client.Close()
	}
}

// The log has a line for each judged connection, with all attributes.
func TestVerdictLogOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(demo1))
	s.start("--log-verdicts", "all", "--log-verdicts-rate", "0")
	mark := s.agent.Mark()
	s.check(t, []string{"default/web default/db tcp 6379"}, []string{"default/other default/db tcp 80"})
	for _, want := range []agenttest.Line{
		{"verdict": "allow", "reason": "rule", "from": "default/web", "to": "default/db", "proto": "TCP", "dport": "6379", "direction": "ingress", "policy": "default/access-demo1", "rule": "ingress[0]"},
		{"verdict": "deny", "reason": "ingress-denied", "from": "default/other", "to": "default/db", "proto": "TCP", "dport": "80", "direction": "ingress", "policy": "default/access-demo1"},
	} {
		for _, f := range families {
			want["src"], want["dst"] = f.addr(s.host(want.Text("from"))), f.addr(s.host(want.Text("to")))
			l := s.await(mark, "a line of the verdict", func(l agenttest.Line) bool {
				for field := range want {
					if l.Text(field) != want.Text(field) {
						return false
					}
				}
				return true
			})
			if l.Number("sport") == 0 {
				t.Errorf("no source port in %v", l)
			}
		}
	}
}
