//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	bpf "github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"sluice/bench/testbed/lab"
)

// The guard is attached from the start, and only once per interface, even when agents take
// over from each other. When the agent ends, the guard stays if the rules stay. The command
// sluice rules --remove removes the guard too.
func TestGuardComesAndGoesOnPackets(t *testing.T) {
	s := newTestbedWith(t, lab.Options{Nodes: 2, Bridged: true})
	s.write("policies.yaml", forgePolicies)
	count := func(want int, when string) {
		t.Helper()
		if n := s.programs(t); n != want {
			t.Errorf("%s: %d programs, want %d", when, n, want)
		}
	}
	const all = 5 * 2 // two programs for each pod of the node
	others := 0       // guarded interfaces that do not lead to a pod
	if tcx(t) {
		others = 1 // the interface to the outside
	}
	s.start("--on-exit", "keep")
	count(all, "at the start")
	old := s.agent
	s.start("--on-exit", "keep")
	if err := old.Stop(); err != nil {
		t.Fatal(err)
	}
	count(all, "after another agent has taken over")
	s.stop()
	count(all, "kept")
	s.start("--guard", "off", "--on-exit", "keep")
	count(0, "with an agent without the guard")
	s.stop()
	s.start("--on-exit", "keep")
	s.agent.Kill()
	count(all, "after it was killed")
	if status, out, _ := rulesRemove(t, s.Nodes[0]); status != 0 || strings.Count(out, "removed the guard of interface ") != others+all/2 {
		t.Errorf("status %d, %s", status, out)
	}
	count(0, "removed")
	s.start()
	s.stop()
	count(0, "after a graceful stop")
}

// programs counts the guard's programs on the interfaces of the node's pods.
func (s *testbed) programs(t *testing.T) (n int) {
	t.Helper()
	for _, p := range testbedPods {
		if p.node == 0 {
			n += programsAt(t, s.Nodes[0].Host, s.host(p.name).RouterDevice())
		}
	}
	return n
}

// programsAt counts the programs on an interface of the node: tc filters and, since Linux 6.6,
// programs that are attached with TCX.
func programsAt(t *testing.T, node *lab.Host, device string) (n int) {
	t.Helper()
	for _, way := range []string{"ingress", "egress"} {
		out, err := node.Output(exec.Command("tc", "filter", "show", "dev", device, way))
		if err != nil {
			t.Fatal(err)
		}
		n += strings.Count(out, "direct-action")
	}
	err := node.Do(func() error {
		found, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		for _, way := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			there, err := bpf.QueryPrograms(bpf.QueryOptions{Target: found.Index, Attach: way})
			if errors.Is(err, unix.EINVAL) {
				return nil
			} else if err != nil {
				return err
			}
			n += len(there.Programs)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Attaching the programs loses no packet: the first agent of a node starts while
// connections open as fast as possible, and every request arrives.
func TestAttachingLosesNothingOnPackets(t *testing.T) {
	for range 3 {
		s := newTestbed(t)
		s.write("policies.yaml", policies(demo1))
		l := s.newLoad(t, false)
		l.more(100)
		s.start()
		l.more(300)
		l.end()
		s.stop()
	}
}

// The rules and the guard count forged packets, and status and metrics show the counts.
func TestForgedIsCountedOnPackets(t *testing.T) {
	for _, args := range [][]string{{"--iptables", "nft"}, {"--iptables", "legacy"}, {"--iptables", "nft", "--guard", "off"}} {
		withForger(t, args, func(t *testing.T, g *forger) {
			reason := "source"
			if args[len(args)-1] == "off" {
				reason = "rule"
			}
			before := g.forgedDropped(t, reason)
			for range 3 {
				g.datagramArrives(g.addr(g.victim), g.addr(g.victim), 9)
			}
			if n := g.forgedDropped(t, reason) - before; n != 3 {
				t.Errorf("%v: %d packets are counted, want 3", args, n)
			}
		})
	}
}

// forgedDropped reads from the metrics how many forged frames were dropped for the given
// reason.
func (g *forger) forgedDropped(t *testing.T, reason string) int {
	t.Helper()
	_, page := g.scrape(t, "/metrics")
	m := regexp.MustCompile(fmt.Sprintf(`sluice_forged_dropped_total\{reason="%s"\} (\d+)`, reason)).FindStringSubmatch(page)
	if m == nil {
		t.Fatalf("nothing is counted for %s", reason)
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

// A pod that is isolated in both directions can still discover neighbours, join multicast groups
// and find a DHCP server. It cannot answer ARP requests for other pods' addresses.
func TestNeighbourDiscoveryAndDHCPOnPackets(t *testing.T) {
	withForger(t, nil, func(t *testing.T, g *forger) {
		direct := g.to.String() == g.victim.MAC().String()
		switch {
		case !direct:
			t.Skip("only neighbours on a bridge need these messages")
		case g.v6:
			from, to := g.addr(g.attacker), g.addr(g.victim)
			text := fmt.Sprintf("%-14s", g.uniqueText())
			message := append(append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, to.AsSlice()...), append([]byte{200, 2}, text...)...)
			binary.BigEndian.PutUint16(message[2:], transportSum(from, to, 58, message))
			p := ipPacket(from, to, 58, 255, message)
			if !g.arrives(append(g.frame(p), p...), strings.TrimSpace(text)) {
				t.Error("a neighbour solicitation does not arrive")
			}
			local, group := g.linkLocal(g.attacker), netip.MustParseAddr("ff02::1:ff00:7")
			text = g.uniqueText()
			report := append(append([]byte{131, 0, 0, 0, 0, 0, 0, 0}, group.AsSlice()...), text...)
			binary.BigEndian.PutUint16(report[2:], transportSum(local, group, 58, report))
			p = ipPacket(local, group, 0, 1, append([]byte{58, 0, 5, 2, 0, 0, 1, 0}, report...))
			frame := append(g.frame(p), p...)
			copy(frame, []byte{0x33, 0x33, 0xff, 0, 0, 7})
			if !g.arrives(frame, text) {
				t.Error("an MLD report does not arrive")
			}
		default:
			open := g.withVictim("bare/odd", true)
			text := g.uniqueText()
			udp := append([]byte{0, 68, 0, 67, 0, byte(8 + len(text)), 0, 0}, text...)
			p := ipPacket(netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("255.255.255.255"), 17, 64, udp)
			frame := append(open.frame(p), p...)
			copy(frame, []byte{255, 255, 255, 255, 255, 255})
			if !open.arrives(frame, text) {
				t.Error("a DHCP request does not arrive at a pod that may be a DHCP server")
			}
		}
	})
}

// No pod can answer for another pod's address in ARP or in neighbour discovery.
func TestForgedARPOnPackets(t *testing.T) {
	s := newTestbedWith(t, lab.Options{Nodes: 2, Bridged: true})
	s.start()
	attacker, victim, web := s.host(forgeAttacker), s.host(forgeVictim), s.host("default/web")
	reach := func(from *lab.Host, to netip.Addr) {
		t.Helper()
		if r := from.Connect(t.Context(), "udp", netip.AddrPortFrom(to, 53), waitTimeout); r.Outcome != lab.Reached {
			t.Fatal(r.Err)
		}
	}
	for _, family := range families {
		// learn sends the victim an answer of ARP or neighbour discovery, which claims that an
		// IP address has the attacker's link address. It returns the victim's neighbour entry
		// for this IP address.
		learn := func(of netip.Addr) string {
			if err := attacker.SendFrame(answerFor(of, attacker, victim)); err != nil {
				t.Fatal(err)
			}
			reach(attacker, family.addr(victim)) // an allowed packet, which arrives after the answer
			out, err := victim.Output(exec.Command("ip", "neigh", "show", of.String()))
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		reach(victim, family.addr(web)) // so that the victim has a neighbour entry for web
		if got := learn(family.addr(web)); strings.Contains(got, attacker.MAC().String()) {
			t.Errorf("the victim takes the attacker for web: %s", got)
		}
		if got := learn(family.addr(attacker)); !strings.Contains(got, attacker.MAC().String()) {
			t.Errorf("the victim does not know the attacker: %s", got)
		}
	}
}

// answerFor returns a frame from one host to another with an answer of ARP or neighbour
// discovery. The answer claims that addr has the link address of the sender.
func answerFor(addr netip.Addr, sender, to *lab.Host) []byte {
	frame := append(append([]byte(nil), to.MAC()...), sender.MAC()...)
	if addr.Is4() {
		frame = append(append(frame, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2), sender.MAC()...)
		return append(append(append(frame, addr.AsSlice()...), to.MAC()...), to.IPv4.AsSlice()...)
	}
	const override, targetLinkAddress = 0x20, 2
	message := append([]byte{136, 0, 0, 0, override, 0, 0, 0}, addr.AsSlice()...)
	message = append(append(message, targetLinkAddress, 1), sender.MAC()...)
	binary.BigEndian.PutUint16(message[2:], transportSum(sender.IPv6, to.IPv6, 58, message))
	return append(append(frame, 0x86, 0xdd), ipPacket(sender.IPv6, to.IPv6, 58, 255, message)...)
}
