//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"sluice/bench/testbed/agenttest"
	"sluice/bench/testbed/lab"
	"sluice/filter/event"
)

// annotatedPolicies is policies with the annotation sluice/deny-with.
func annotatedPolicies(with string, specs ...string) string {
	return strings.ReplaceAll(policies(specs...), "metadata: {", fmt.Sprintf("metadata: {annotations: {sluice/deny-with: %s}, ", with))
}

// annotatedClusterPolicies is clusterPolicies with the annotation sluice/deny-with.
func annotatedClusterPolicies(with string, specs ...string) string {
	return strings.ReplaceAll(clusterPolicies(specs...), "metadata: {", fmt.Sprintf("metadata: {annotations: {sluice/deny-with: %s}, ", with))
}

// refused checks that all probes are answered at once: over TCP with a reset, over UDP with an
// ICMP error that the socket reports. It returns the times of the answers. The probes are made
// one after the other, because concurrent ones would delay each other.
func (s *testbed) refused(t *testing.T, probes ...string) (took []time.Duration) {
	t.Helper()
	for _, text := range probes {
		p := parseAttempt(t, text)
		want := map[string]lab.Outcome{"tcp": lab.Refused, "udp": lab.Unreachable}[p.network]
		if s.bridged && (p.port == 81 || p.port == 82 || p.port == 30000 && p.from == "default/other") {
			want = lab.Unreachable // the kernel's reset would not have the Service's address
		}
		for _, addr := range s.targets(p.to) {
			r := s.host(p.from).Connect(t.Context(), p.network, netip.AddrPortFrom(addr, p.port), probeTimeout)
			took = append(took, r.Took)
			if r.Outcome != want {
				t.Errorf("%s (%s): %s (%v), want %s", text, addr, r.Outcome, r.Err, want)
			}
		}
	}
	return took
}

// awaitRefused waits until TCP probes are answered by resets.
func (s *testbed) awaitRefused(t *testing.T, probes ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	for _, text := range probes {
		p := parseAttempt(t, text)
		for _, addr := range s.targets(p.to) {
			for s.host(p.from).Connect(ctx, p.network, netip.AddrPortFrom(addr, p.port), probeTimeout).Outcome != lab.Refused {
				if ctx.Err() != nil {
					t.Fatalf("%s (%s): there is no reset", text, addr)
				}
			}
		}
	}
}

// rejectTables are the flags with which the tests of rejections run.
var rejectTables = [][]string{{"--iptables", "nft"}, {"--iptables", "nft", "--kernel-cache", "off"}, {"--iptables", "legacy"}}

// A denied packet is rejected if the policy that denies it says so: in both directions, to pods of
// this node and of others, through Services and NodePorts and without, by each kind of policy.
func TestRejectOnPackets(t *testing.T) {
	for name, opts := range map[string]lab.Options{"routed": {Nodes: 2}, "bridged": {Nodes: 2, Bridged: true}} {
		for _, args := range rejectTables {
			t.Run(name+" "+strings.Join(args, " "), func(t *testing.T) { testReject(t, opts, args...) })
		}
	}
}

func testReject(t *testing.T, opts lab.Options, args ...string) {
	s := newTestbedWith(t, opts)
	s.bridged = opts.Bridged
	s.serve(s.host("node-1"))
	pod := s.host("default/db")
	for _, f := range families {
		s.nat(f.iptables, "PREROUTING", "-p", "tcp", "-d", f.service, "--dport", "81", "-j", "DNAT", "--to-destination", netip.AddrPortFrom(f.addr(pod), 6379).String())
		s.nat(f.iptables, "PREROUTING", "-p", "udp", "-d", f.service, "--dport", "54", "-j", "DNAT", "--to-destination", netip.AddrPortFrom(f.addr(pod), 53).String())
		s.nat(f.iptables, "PREROUTING", "-p", "tcp", "-d", f.addr(s.Nodes[0].Host).String(), "--dport", "30000", "-j", "DNAT", "--to-destination", netip.AddrPortFrom(f.addr(pod), 6379).String())
		s.nat(f.iptables, "PREROUTING", "-p", "udp", "-d", f.addr(s.Nodes[0].Host).String(), "--dport", "30000", "-j", "DNAT", "--to-destination", netip.AddrPortFrom(f.addr(pod), 53).String())
		s.nat(f.iptables, "POSTROUTING", "-d", f.addr(pod).String(), "-j", "MASQUERADE")
	}
	var nodeServices []string
	for _, f := range families {
		s.nat(f.iptables, "PREROUTING", "-p", "tcp", "-d", f.service, "--dport", "82", "-j", "DNAT", "--to-destination", netip.AddrPortFrom(f.addr(s.Nodes[0].Host), 80).String())
		nodeServices = append(nodeServices, "default/web "+f.service+" tcp 82")
	}
	s.start(args...)
	toDB := []string{"default/other default/db tcp 6379", "default/other default/db udp 53", "default/far default/db tcp 6379", "outside default/db udp 53"}
	// The NodePort of the client's own node leads back to a pod on the same node.
	var services []string
	for _, from := range []string{"outside", "default/far", "default/other"} {
		services = append(services, from+" node-1 tcp 30000", from+" node-1 udp 30000")
	}
	for _, f := range families {
		services = append(services, "default/other "+f.service+" tcp 81", "default/other "+f.service+" udp 54")
	}
	out := []string{"default/db outside tcp 80", "default/db outside udp 53", "default/db default/web tcp 80", "default/db default/far udp 53"}
	toNode := []string{"default/web node-1 tcp 80", "default/web node-1 udp 53"}
	probes := []string{"node-1 default/db tcp 6379"}
	closed := "default/closed: {podSelector: {matchLabels: {role: db}}, policyTypes: [Ingress, Egress]}"
	namespace := strings.Replace(testbedNamespaces, "name: default}", "name: default, annotations: {sluice/deny-with: reject}}", 1)
	cases := []struct {
		name, namespaces, text    string
		refused, dropped, allowed []string
		without                   bool // there are no rules that reject
	}{
		{name: "drop by default", text: policies(closed), dropped: append(slices.Clone(toDB), out...), without: true},
		{name: "a NetworkPolicy", text: annotatedPolicies("reject", closed), refused: slices.Concat(toDB, services, out)},
		{name: "a namespace", namespaces: namespace, text: policies(closed), refused: slices.Concat(toDB, out)},
		{name: "a policy overrides its namespace", namespaces: namespace, text: annotatedPolicies("drop", closed), dropped: append(slices.Clone(toDB), out...)},
		{name: "one policy of several", text: annotatedPolicies("reject", closed) + policies("default/web: {podSelector: {matchLabels: {role: frontend}}}"),
			refused: toDB, dropped: []string{"default/other default/web tcp 80"}},
		{name: "some ports", text: annotatedPolicies("reject", "default/p: {podSelector: {matchLabels: {role: db}}, ingress: [{ports: [{port: 6379}]}]}"),
			refused: []string{"default/other default/db tcp 80", "default/other default/db udp 53"}, allowed: []string{"default/other default/db tcp 6379"}},
		{name: "a ClusterNetworkPolicy", text: annotatedClusterPolicies("reject", everybody("Admin", "Deny")),
			refused: slices.Concat(toNode, nodeServices, nodeServices, []string{"default/web default/db tcp 80", "default/other outside udp 53", "default/db default/far tcp 80"})},
		{name: "a ClusterNetworkPolicy that drops", text: clusterPolicies(everybody("Admin", "Deny")), dropped: toNode, without: true},
		{name: "ended", dropped: nil, allowed: append(slices.Clone(toDB), toNode[0]), without: true},
	}
	var took []time.Duration
	before := testbedNamespaces
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			namespaces := c.namespaces
			if namespaces == "" {
				namespaces = testbedNamespaces
			}
			if namespaces != before {
				s.save("cluster.yaml", namespaces+s.pods())
				before = namespaces
			}
			s.save("policies.yaml", c.text)
			for range 2 { // answered by the agent, then from the cache
				took = append(took, s.refused(t, c.refused...)...)
				s.check(t, append(slices.Clone(probes), c.allowed...), c.dropped)
				for _, text := range c.dropped {
					p := parseAttempt(t, text)
					if r := s.host(p.from).Connect(t.Context(), p.network, netip.AddrPortFrom(s.targets(p.to)[0], p.port), probeTimeout/5); r.Outcome != lab.TimedOut {
						t.Errorf("%s: %s (%v), want no answer", text, r.Outcome, r.Err)
					}
				}
			}
			if text := s.savedRules(); strings.Contains(text, "-j SLUICE-FORWARD") == c.without || strings.Contains(text, "SLUICE-REJECT") == c.without {
				t.Errorf("rules that reject should not exist: %t\n%s", c.without, text)
			}
		})
	}
	slices.Sort(took)
	t.Logf("refused %d times: the fastest in %v, half in %v, all in %v", len(took), took[0], took[len(took)/2], took[len(took)-1])
	s.stop()
}

// savedRules returns the tables mangle and filter of the node, of both families and backends.
func (s *testbed) savedRules() string {
	s.t.Helper()
	var all strings.Builder
	for _, name := range []string{"iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"} {
		for _, table := range []string{"mangle", "filter"} {
			text, err := s.Nodes[0].Output(exec.Command(name, "-t", table))
			if err != nil {
				s.t.Fatal(err)
			}
			all.WriteString(text)
		}
	}
	return all.String()
}

// reset checks that a connection is reset after one of its ends has sent a byte.
func reset(t *testing.T, c *net.TCPConn) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(waitTimeout))
	_, err := c.Write([]byte{'x'})
	if err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
		t.Errorf("%s: %v, want a reset", c.LocalAddr(), err)
	}
}

// refusedUDP checks that a datagram of a socket is answered with the error that a denial causes.
func refusedUDP(t *testing.T, c *net.UDPConn) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(waitTimeout))
	_, err := c.Write([]byte{'x'})
	if err == nil {
		_, err = c.Read(make([]byte, 100))
	}
	if !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.EACCES) { // over IPv4 and IPv6
		t.Errorf("%s to %s: %v, want an ICMP error", c.LocalAddr(), c.RemoteAddr(), err)
	}
}

// liveEnds are the ends of live connections from one host to another. If via is set, the client
// connects to an address of via, which is that of a Service or NodePort, instead of the server's
// address.
type liveEnds struct {
	from, to, via  string
	everybodyDeny  bool // a ClusterNetworkPolicy for the egress of all pods denies the connections
	clients, other []*net.TCPConn
	udp            []*net.UDPConn
}

// open opens two TCP connections and a UDP socket in each family.
func (e *liveEnds) open(t *testing.T, s *testbed) {
	t.Helper()
	e.clients, e.other, e.udp = nil, nil, nil
	for family, f := range families {
		var tcp netip.AddrPort
		udp := netip.AddrPortFrom(f.addr(s.host(e.to)), 53)
		if e.via != "" {
			addr := s.targets(e.via)[family]
			tcp, udp = netip.AddrPortFrom(addr, 30000), netip.AddrPortFrom(addr, 30000)
		}
		for range 2 {
			client, server := s.connectThrough(t, family, e.from, e.to, livePort, tcp)
			exchange(t, client, server)
			e.clients, e.other = append(e.clients, client), append(e.other, server)
		}
		c, err := s.host(e.from).DialUDP(udp)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(waitTimeout))
		if _, err = c.Write([]byte{'x'}); err == nil {
			_, err = c.Read(make([]byte, 100))
		}
		if err != nil {
			t.Fatal(err)
		}
		e.udp = append(e.udp, c)
	}
}

// livePort is the port at which live connections are accepted.
const livePort = 7001

// A live connection that a change of policy denies is reset when one of its ends sends, whether it
// was opened from or to the pod that the policy is for, through a Service or a NodePort, or to the
// pod's node. UDP gets an ICMP error.
func TestRejectLiveConnectionsOnPackets(t *testing.T) {
	for _, args := range rejectTables {
		t.Run(strings.Join(args, " "), func(t *testing.T) { testRejectLive(t, args...) })
	}
}

func testRejectLive(t *testing.T, args ...string) {
	s := newTestbed(t)
	s.serve(s.host("node-1"))
	db := s.host("default/db")
	for _, f := range families {
		for _, addr := range []string{f.service, f.addr(s.Nodes[0].Host).String()} {
			s.nat(f.iptables, "PREROUTING", "-p", "tcp", "-d", addr, "--dport", "30000", "-j", "DNAT", "--to-destination", netip.AddrPortFrom(f.addr(db), livePort).String())
			s.nat(f.iptables, "PREROUTING", "-p", "udp", "-d", addr, "--dport", "30000", "-j", "DNAT", "--to-destination", netip.AddrPortFrom(f.addr(db), 53).String())
		}
		s.nat(f.iptables, "POSTROUTING", "-m", "conntrack", "--ctorigdst", f.addr(s.Nodes[0].Host).String(), "-d", f.addr(db).String(), "-j", "MASQUERADE")
	}
	s.hosts["service"] = &lab.Host{Name: "service", IPv4: netip.MustParseAddr(families[0].service), IPv6: netip.MustParseAddr(families[1].service)}
	s.start(args...)
	all := []*liveEnds{
		{from: "default/web", to: "default/db", everybodyDeny: true},
		{from: "default/db", to: "outside", everybodyDeny: true},
		{from: "default/far", to: "default/db", everybodyDeny: true},
		{from: "default/web", to: "default/db", via: "service", everybodyDeny: true},
		{from: "default/web", to: "default/db", via: "node-1", everybodyDeny: true},
		{from: "default/far", to: "default/db", via: "node-1", everybodyDeny: true},
		{from: "outside", to: "default/db", via: "node-1"},
		{from: "default/db", to: "node-1", everybodyDeny: true},
	}
	for _, text := range []string{
		annotatedPolicies("reject", "default/closed: {podSelector: {matchLabels: {role: db}}, policyTypes: [Ingress, Egress]}"),
		annotatedClusterPolicies("reject", everybody("Admin", "Deny")),
	} {
		everybodyDenies := strings.Contains(text, "ClusterNetworkPolicy")
		s.save("policies.yaml", "")
		for _, e := range all {
			e.open(t, s)
		}
		s.save("policies.yaml", text)
		for _, e := range all {
			if everybodyDenies && !e.everybodyDeny || !everybodyDenies && e.to == "node-1" {
				exchange(t, e.clients[0], e.other[0])
				continue
			}
			for i := range e.clients {
				switch {
				case i%2 == 0:
					reset(t, e.clients[i])
				case e.to != "node-1": // what the node sends to its pods always passes
					reset(t, e.other[i])
				}
			}
			for _, c := range e.udp {
				refusedUDP(t, c)
			}
		}
	}
	s.stop()
}

// When an annotation of the policy or of the namespace changes, packets of a connection that is
// already revoked are denied in the new way.
func TestRevokedConnectionFollowsAnnotationOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.start(kernelArgs()...)
	closed := "default/closed: {podSelector: {matchLabels: {role: db}}, policyTypes: [Ingress, Egress]}"
	inNamespace := func(with string) string {
		return strings.Replace(testbedNamespaces, "name: default}", "name: default, annotations: {sluice/deny-with: "+with+"}}", 1) + s.pods()
	}
	for name, steps := range map[string][2]func(){
		"policy":    {func() { s.save("policies.yaml", policies(closed)) }, func() { s.save("policies.yaml", annotatedPolicies("reject", closed)) }},
		"namespace": {func() { s.save("policies.yaml", policies(closed)) }, func() { s.save("cluster.yaml", inNamespace("reject")) }},
		"removal": {func() { s.save("policies.yaml", annotatedPolicies("drop", closed)) }, func() {
			s.save("cluster.yaml", inNamespace("reject"))
			s.save("policies.yaml", policies(closed))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s.save("cluster.yaml", testbedNamespaces+s.pods())
			s.save("policies.yaml", "")
			var clients []*net.TCPConn
			for family := range families {
				client, server := s.connectTCP(t, family, "default/web", "default/db")
				exchange(t, client, server)
				clients = append(clients, client)
			}
			steps[0]()
			for _, c := range clients {
				sendUnanswered(t, c)
				receivesNothing(t, c)
			}
			steps[1]()
			for _, c := range clients {
				reset(t, c)
			}
		})
	}
}

// answers sends a packet from a pod, and returns the packets that the pod gets back until an
// answer to a later packet has arrived. The agent must have only one queue: with several, the later
// packet could overtake.
func (pr *prober) answers(packet []byte) []gopacket.Packet {
	pr.t.Helper()
	return pr.answersTo(func() error { return pr.host(pr.from).Send(packet) })
}

// answersTo is like answers for a function that sends packets.
func (pr *prober) answersTo(sendAll func() error) (got []gopacket.Packet) {
	pr.t.Helper()
	sniffer, err := pr.host(pr.from).Sniff()
	if err != nil {
		pr.t.Fatal(err)
	}
	defer sniffer.Close()
	pr.count()
	last := withOptions(pr.packet(layers.IPProtocolUDP, &layers.UDP{SrcPort: layers.UDPPort(50000 + pr.sentinel), DstPort: 999}, gopacket.Payload("sentinel")))
	for _, send := range []func() error{sendAll, func() error { return pr.host(pr.from).Send(last) }} {
		if err := send(); err != nil {
			pr.t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(pr.t.Context(), waitTimeout)
	defer cancel()
	for {
		data, err := sniffer.Next(ctx)
		if err != nil {
			pr.t.Fatalf("there is no answer to the sentinel: %v", err)
		}
		if pr.v6 != (data[0]>>4 == 6) {
			continue
		}
		first := gopacket.Decoder(layers.LayerTypeIPv4)
		if pr.v6 {
			first = layers.LayerTypeIPv6
		}
		p := gopacket.NewPacket(data, first, gopacket.Default)
		if p.Layer(layers.LayerTypeIGMP) != nil {
			continue // the bridge's
		}
		if icmp, is := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); is && icmp.TypeCode.Type() >= 128 {
			continue // not an error, but neighbor discovery, multicast listener discovery, or a redirect, which contains the packet
		}
		if icmp, is := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); is && icmp.TypeCode.Type() == layers.ICMPv4TypeRedirect {
			continue
		}
		if strings.Contains(string(data), "sentinel") {
			return got
		}
		got = append(got, p)
	}
}

// datagrams returns packets that begin connections, by protocol.
func datagrams(src, dst netip.Addr) map[string][]byte {
	syn := []byte{0x80, 0xe8, 0, 80, 0, 0, 0, 7, 0, 0, 0, 0, 5 << 4, 2, 0, 100, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(syn[16:], transportSum(src, dst, unix.IPPROTO_TCP, syn))
	return map[string][]byte{"UDP": udpPacket(src, dst, 33001, 53, strings.Repeat("x", 24)), "TCP": ipPacket(src, dst, unix.IPPROTO_TCP, 64, syn)}
}

// fragmentsOf returns the first fragment of a packet, and a later one. The fragment between them
// is missing.
func fragmentsOf(packet []byte) (fragments [][]byte) {
	for _, offset := range []int{0, 24} {
		if packet[0]>>4 == 4 {
			p := append(slices.Clone(packet[:20]), packet[20+offset:20+offset+8]...)
			binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
			binary.BigEndian.PutUint16(p[6:], 1<<13|uint16(offset/8))
			p[10], p[11] = 0, 0
			binary.BigEndian.PutUint16(p[10:], checksum(p[:20]))
			fragments = append(fragments, p)
			continue
		}
		header := []byte{packet[6], 0, 0, byte(offset) | 1, 0, 0, 0, 1} // RFC 8200, 4.5
		p := slices.Concat(packet[:40], header, packet[40+offset:40+offset+8])
		p[6] = unix.IPPROTO_FRAGMENT
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
		fragments = append(fragments, p)
	}
	return fragments
}

// The answer is a TCP reset from the destination, or the ICMP error "administratively
// prohibited". Resets, ICMP errors and later fragments get none.
func TestRejectAnswersOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", annotatedPolicies("reject", "default/closed: {podSelector: {matchLabels: {role: db}}}"))
	s.start("--queues", "1", "--log-verdicts", "denied", "--log-verdicts-rate", "0")
	for family, f := range families {
		t.Run(f.name, func(t *testing.T) {
			pr := s.newProber(t, family == 1)
			tcp := func(flags func(*layers.TCP)) []byte {
				segment := &layers.TCP{SrcPort: 33000, DstPort: 80, Seq: 7, Window: 100}
				flags(segment)
				return pr.packet(layers.IPProtocolTCP, segment)
			}
			for range 2 { // answered by the agent, then from the cache
				got := pr.answers(tcp(func(t *layers.TCP) { t.SYN = true }))
				if len(got) != 1 || got[0].Layer(layers.LayerTypeTCP) == nil {
					t.Fatalf("answers to a SYN: %v", got)
				}
				segment := got[0].Layer(layers.LayerTypeTCP).(*layers.TCP)
				if src := got[0].NetworkLayer().NetworkFlow().Src().String(); !segment.RST || segment.Ack != 8 || src != f.addr(s.host("default/db")).String() {
					t.Errorf("the answer to a SYN is from %s: %+v", src, segment)
				}
				for what, packet := range map[string][]byte{
					"UDP":  pr.packet(layers.IPProtocolUDP, &layers.UDP{SrcPort: 33001, DstPort: 53}, gopacket.Payload("hello")),
					"SCTP": pr.sctp(80, "hello"),
					"ESP":  pr.packet(layers.IPProtocolESP, gopacket.Payload("12345678901234567890")),
				} {
					got := pr.answers(packet)
					if len(got) != 1 {
						t.Errorf("answers to %s: %v", what, got)
						continue
					}
					if family == 0 {
						if e, is := got[0].Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); !is || e.TypeCode != layers.CreateICMPv4TypeCode(3, 13) {
							t.Errorf("the answer to %s is %v", what, got[0])
						}
					} else if e, is := got[0].Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); !is || e.TypeCode != layers.CreateICMPv6TypeCode(1, 1) {
						t.Errorf("the answer to %s is %v", what, got[0])
					}
				}
			}
			silent := map[string][]byte{"a reset": tcp(func(t *layers.TCP) { t.RST = true })}
			if family == 0 {
				silent["an ICMP error"] = pr.packet(layers.IPProtocolICMPv4, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 1)}, gopacket.Payload(make([]byte, 28)))
				fragment := pr.packet(layers.IPProtocolUDP, gopacket.Payload(make([]byte, 64)))
				fragment[7] = 8 // its offset
				fragment[10], fragment[11] = 0, 0
				sum := checksum(fragment[:20])
				fragment[10], fragment[11] = byte(sum>>8), byte(sum)
				silent["a later fragment"] = fragment
			} else {
				silent["an ICMP error"] = pr.packet(layers.IPProtocolICMPv6, &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(1, 3)}, gopacket.Payload(make([]byte, 52)))
			}
			for what, packet := range silent {
				if got := pr.answers(packet); len(got) != 0 {
					t.Errorf("answers to %s: %v", what, got)
				}
			}
		})
	}
	s.await(0, "the log tells a rejection from a drop", func(l agenttest.Line) bool {
		return l.Text("event") == "verdict" && l.Text("verdict") == "deny" && l.Text("answer") == "reject"
	})
	rejected := regexp.MustCompile(`(?m)^sluice_rejected_total(\{.*\})? [1-9]`)
	if status, text := s.scrape(t, "/metrics"); status != http.StatusOK || !rejected.MatchString(text) {
		t.Errorf("/metrics: %d, want rejections:\n%s", status, text)
	}
}

// Multicast, broadcast and fragments that a policy denies are not answered: neither those that a
// pod sends to its node, nor those that a bridge distributes.
func TestRejectSilentOnPackets(t *testing.T) {
	for name, opts := range map[string]lab.Options{"routed": {Nodes: 2}, "bridged": {Nodes: 2, Bridged: true}} {
		t.Run(name, func(t *testing.T) {
			s := newTestbedWith(t, opts)
			s.write("policies.yaml", annotatedClusterPolicies("reject", everybody("Admin", "Deny")))
			s.start("--queues", "1")
			for family, f := range families {
				pr := s.newProberBetween(t, "default/web", "node-1", family == 1)
				web, node := s.host("default/web"), f.addr(s.host("node-1"))
				groups := map[string]net.HardwareAddr{"224.0.0.1": {1, 0, 0x5e, 0, 0, 1}, "255.255.255.255": {255, 255, 255, 255, 255, 255}, "10.77.0.255": {255, 255, 255, 255, 255, 255}}
				if pr.v6 {
					groups = map[string]net.HardwareAddr{"ff02::1": {0x33, 0x33, 0, 0, 0, 1}}
				}
				for range 2 { // answered by the agent, then from the cache
					for protocol, packet := range datagrams(f.addr(web), node) {
						if got := pr.answers(packet); len(got) != 1 {
							t.Errorf("answers to %s to the node: %v", protocol, got)
						}
					}
					for group, mac := range groups {
						for protocol, packet := range datagrams(f.addr(web), netip.MustParseAddr(group)) {
							kind := []byte{0x08, 0}
							if pr.v6 {
								kind = []byte{0x86, 0xdd}
							}
							frame := slices.Concat(mac, web.MAC(), kind, packet)
							if got := pr.answersTo(func() error { return web.SendFrame(frame) }); len(got) != 0 {
								t.Errorf("answers to %s to %s: %v", protocol, group, got)
							}
						}
					}
				}
				// An answer might end a connection that the node has opened: a segment outside of its window
				// has no connection, either.
				for port, segment := range []*layers.TCP{{FIN: true, ACK: true}, {SYN: true, ACK: true}, {}} {
					segment.SrcPort, segment.DstPort, segment.Seq, segment.Ack = layers.TCPPort(33200+port), 80, 7, 9
					if got := pr.answers(pr.packet(layers.IPProtocolTCP, segment)); len(got) != 0 {
						t.Errorf("answers to segment %d without a connection: %v", port, got)
					}
				}
				for _, packet := range fragmentsOf(datagrams(f.addr(web), node)["UDP"]) {
					if got := pr.answers(packet); len(got) != 0 {
						t.Errorf("answers to a fragment: %v", got)
					}
				}
			}
		})
	}
}

// The kernel remembers rejected flows and rejects their later packets without the agent, which
// sees each flow once. Allowed flows and established connections are not queued a second time
// either.
func TestRejectRememberedOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", annotatedPolicies("reject", demo1, "default/closed: {podSelector: {matchLabels: {role: backend}}}")+
		annotatedClusterPolicies("reject", cnp("a", "Admin", "backend", "["+s.nodeNetworks("Deny", "node-1", "")+", {action: Deny, to: ["+s.networksOf("outside")+"]}]")))
	for _, f := range families {
		s.nat(f.iptables, "PREROUTING", "-p", "tcp", "-d", f.service, "--dport", "81", "-j", "DNAT", "--to-destination", netip.AddrPortFrom(f.addr(s.host("default/db")), 6379).String())
	}
	s.start(kernelArgs("--iptables", "nft")...)
	probes := []string{"default/other " + families[0].service + " tcp 81", "default/other " + families[1].service + " tcp 81", "default/other node-1 tcp 80", "default/other node-1 udp 53", "default/other outside tcp 80",
		"default/other default/db tcp 6379", "default/web default/db tcp 80", "default/web default/other udp 53", "default/far default/other tcp 80", "outside default/db tcp 6379"}
	for range 2 {
		s.refused(t, probes...)
		s.check(t, []string{"default/web default/db tcp 6379", "default/far default/db tcp 6379", "mine/cart outside tcp 80"}, nil)
	}
	s.checkNotQueued(t, "remembered", func() {
		for range 3 {
			s.refused(t, probes...)
			s.check(t, []string{"default/web default/db tcp 6379", "default/far default/db tcp 6379", "mine/cart outside tcp 80"}, nil)
		}
	})
}

// If another program flushes the table filter, denied packets are dropped until the rules are
// back, and then rejected again.
func TestRejectIsRepairedOnPackets(t *testing.T) {
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			s := newTestbed(t)
			s.write("policies.yaml", annotatedPolicies("reject", "default/closed: {podSelector: {matchLabels: {role: db}}}")+annotatedClusterPolicies("reject", cnp("a", "Admin", "frontend", "["+s.nodeNetworks("Deny", "node-1", "")+"]")))
			s.serve(s.host("node-1"))
			s.start("--iptables", backend)
			for _, theirs := range [][]string{{"-F"}, {"-I", "FORWARD", "-j", "ACCEPT"}, {"-F", "SLUICE-REJECT"}, {"-I", "INPUT", "-j", "ACCEPT"}} {
				for _, f := range families {
					if err := s.Nodes[0].Run(f.iptables+"-"+backend, append([]string{"-w"}, theirs...)...); err != nil {
						t.Fatal(err)
					}
				}
				s.check(t, nil, []string{"default/web default/db tcp 6379"})
				s.awaitRefused(t, "default/web default/db tcp 6379", "default/web node-1 tcp 80")
				s.refused(t, "default/web default/db tcp 6379", "default/web node-1 tcp 80", "default/other default/db udp 53")
			}
			s.stop()
			if text := s.savedRules(); strings.Contains(text, "SLUICE") || strings.Count(text, "-A FORWARD -j ACCEPT") != 2 {
				t.Errorf("rules of ours are left, or rules of others are gone:\n%s", text)
			}
		})
	}
}

// Rejecting works beside a table mangle that a process owns. While a process owns the table filter,
// denied packets are dropped, also those to the node, and status and log report it.
func TestRejectBesideOwnedTablesOnPackets(t *testing.T) {
	text := annotatedPolicies("reject", "default/closed: {podSelector: {matchLabels: {role: db}}}")
	probes := []string{"default/web default/db tcp 6379", "default/web default/db udp 53", "default/web node-1 tcp 80"}
	for _, table := range []string{"mangle", "filter"} {
		t.Run(table, func(t *testing.T) {
			s := newTestbed(t)
			s.serve(s.host("node-1"))
			end := s.ownTablesNamed(t, table)
			rejecting := text + annotatedClusterPolicies("reject", cnp("a", "Admin", "frontend", "["+s.nodeNetworks("Deny", "node-1", "")+"]"))
			s.start(kernelArgs("--iptables", "nft")...)
			s.save("policies.yaml", rejecting)
			if table == "filter" {
				s.await(0, "the agent logs that it drops", agenttest.Event(event.RejectOff))
				if _, status, _ := sluice(t, "status", "--socket", s.socket); !strings.Contains(status, "instead of rejecting") {
					t.Errorf("the status does not report that the agent drops:\n%s", status)
				}
				for range 2 {
					s.check(t, []string{"default/web default/other tcp 80"}, probes)
					for _, text := range probes {
						p := parseAttempt(t, text)
						if r := s.host(p.from).Connect(t.Context(), p.network, netip.AddrPortFrom(s.targets(p.to)[0], p.port), probeTimeout/5); r.Outcome != lab.TimedOut {
							t.Errorf("%s: %s, want no answer", text, r.Outcome)
						}
					}
				}
				end()
				s.awaitRefused(t, probes[0], probes[2])
			}
			for range 2 {
				s.refused(t, probes...)
			}
			s.stop()
		})
	}
}
