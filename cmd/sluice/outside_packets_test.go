//go:build linux

package main

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	bpf "github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"sluice/bench/testbed/lab"
)

// sourceSetups are flags of agents that drop packets with forged sources in the guard, or in
// the rules of iptables.
var sourceSetups = []struct {
	name string
	args []string
}{
	{"guard", []string{"--iptables", "nft"}},
	{"guard with legacy tables", []string{"--iptables", "legacy"}},
	{"rules", []string{"--iptables", "nft", "--guard", "off"}},
}

// tcx reports whether the kernel has TCX. Without TCX, the rules drop forged sources in all
// setups.
func tcx(t *testing.T) bool {
	t.Helper()
	_, err := bpf.QueryPrograms(bpf.QueryOptions{Target: 1, Attach: ebpf.AttachTCXIngress})
	return !errors.Is(err, unix.EINVAL) && !errors.Is(err, ebpf.ErrNotSupported)
}

// fromOutside returns a copy of g whose attacker is a machine outside the cluster.
func (g *forger) fromOutside(attacker *lab.Host) *forger {
	out := *g
	out.attacker, out.to = attacker, attacker.RouterMAC()
	return &out
}

// direct reports whether the attacker sends its frames through the bridge directly to the victim.
// Otherwise, it sends them to the router.
func (g *forger) direct() bool { return g.to.String() == g.victim.MAC().String() }

// sourcesDropped returns the number of packets that the rules and the guard have dropped
// because of a forged source.
func (g *forger) sourcesDropped(t *testing.T) int {
	t.Helper()
	_, page := g.scrape(t, "/metrics")
	if !strings.Contains(page, `{reason="source"}`) {
		return g.forgedDropped(t, "rule")
	}
	return g.forgedDropped(t, "rule") + g.forgedDropped(t, "source")
}

// hasSourceChain reports whether the rules of both families drop forged sources.
func (s *testbed) hasSourceChain(t *testing.T) bool {
	t.Helper()
	n := 0
	for _, command := range []string{"iptables", "ip6tables"} {
		for _, backend := range []string{"nft", "legacy"} {
			text, err := s.Nodes[0].Output(exec.Command(command+"-"+backend+"-save", "-t", "mangle"))
			if err != nil {
				t.Fatal(err)
			}
			n += strings.Count(text, "-A PREROUTING -j SLUICE-SOURCE\n")
			if strings.Contains(text, ":SLUICE-SOURCE") != strings.Contains(text, "-A PREROUTING -j SLUICE-SOURCE\n") {
				t.Errorf("only one of chain and jump exists:\n%s", text)
			}
		}
	}
	if n == 1 {
		return s.hasSourceChain(t) // try again: the agent has written one family, and is about to write the other
	}
	return n > 0
}

// Packets from outside the cluster are dropped and counted if their source is the address of
// the node or of the receiver. If the guard drops them, the rules have no chain in PREROUTING.
func TestForgedFromOutsideOnPackets(t *testing.T) {
	for _, setup := range sourceSetups {
		t.Run(setup.name, func(t *testing.T) {
			withForger(t, setup.args, func(t *testing.T, g *forger) {
				if g.direct() {
					t.Skip("packets from outside always go through the router")
				}
				if got, want := g.hasSourceChain(t), setup.name == "rules" || !tcx(t); got != want {
					t.Fatalf("the chain exists: %v, want %v", got, want)
				}
				pod := g.attacker
				g = g.fromOutside(g.Outside)
				sources := map[string]netip.Addr{"the node": g.addr(g.Nodes[0].Host), "the receiver": g.addr(g.victim)}
				if pod.RouterMAC()[1] == 0x77 {
					sources["the bridge"] = g.byFamily("10.77.0.1", "fd00:77::1")
				}
				before, sent := g.sourcesDropped(t), 0
				for name, src := range sources {
					for _, port := range []uint16{53, 9} {
						sent++
						if g.datagramArrives(src, g.addr(g.victim), port) {
							t.Errorf("a datagram to port %d arrives that claims to be from %s (%s)", port, name, src)
						}
					}
				}
				if n := g.sourcesDropped(t) - before; n != sent {
					t.Errorf("%d packets are counted, want %d", n, sent)
				}
				// Packets with other sources may arrive from outside: a load balancer may
				// send a pod's packet back.
				if !g.datagramArrives(g.addr(pod), g.addr(g.victim), 53) {
					t.Error("a pod's packet that comes from outside does not arrive")
				}
			})
		})
	}
}

// When the node gets an address, forged packets with this source are dropped. When the node
// loses the address, packets with this source arrive again.
func TestForgedNewAddressOnPackets(t *testing.T) {
	for _, setup := range sourceSetups {
		t.Run(setup.name, func(t *testing.T) {
			withForger(t, setup.args, func(t *testing.T, g *forger) {
				if g.direct() {
					t.Skip("uses the same interfaces as the test through the router")
				}
				vip, err := g.AddOutside("vip")
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = vip.Close() }()
				// The host Outside forges the address of the host vip. Both are on the same
				// network.
				pod, out, src := g, g.fromOutside(g.Outside), g.addr(vip)
				arrives := func() bool { return out.datagramArrives(src, g.addr(g.victim), 53) }
				if !arrives() {
					t.Fatal("a packet of another machine does not arrive")
				}
				at := src.String() + "/128"
				if src.Is4() {
					at = src.String() + "/32"
				}
				for _, how := range [][]string{{"address", "add", at, "dev", "lo"}, {"route", "add", "local", at, "dev", "lo"}} {
					if err := g.Nodes[0].Run("ip", append([]string{map[bool]string{true: "-4", false: "-6"}[src.Is4()]}, how...)...); err != nil {
						t.Fatal(err)
					}
					g.eventually(t, "a packet from the node's new address is dropped", func() bool { return !arrives() })
					if pod.datagramArrives(src, g.addr(g.victim), 53) || pod.datagramArrives(src, g.addr(g.victim), 9) {
						t.Error("a pod's datagram arrives that claims to be from the node's new address")
					}
					how[1] = strings.Replace(how[1], "add", "del", 1)
					if err := g.Nodes[0].Run("ip", append([]string{map[bool]string{true: "-4", false: "-6"}[src.Is4()]}, how...)...); err != nil {
						t.Fatal(err)
					}
					g.eventually(t, "a packet from an address that the node no longer has arrives", arrives)
				}
			})
		})
	}
}

// The node receives its own packets to a multicast group that it has joined.
func TestNodesOwnMulticastOnPackets(t *testing.T) {
	for _, setup := range sourceSetups {
		t.Run(setup.name, func(t *testing.T) {
			s := newTestbed(t)
			s.write("policies.yaml", forgePolicies)
			s.start(setup.args...)
			err := s.Nodes[0].Do(func() error {
				device, err := net.InterfaceByName("eth0")
				if err != nil {
					return err
				}
				for network, group := range map[string]string{"udp4": "224.0.0.99", "udp6": "ff02::99"} {
					at := &net.UDPAddr{IP: net.ParseIP(group), Port: 4711, Zone: device.Name}
					listener, err := net.ListenMulticastUDP(network, device, at)
					if err != nil {
						return err
					}
					defer listener.Close()
					raw, err := listener.SyscallConn() // to enable loopback, which ListenMulticastUDP disables
					if err != nil {
						return err
					}
					err = errors.Join(err, raw.Control(func(fd uintptr) {
						level, option := unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP
						if network == "udp4" {
							level, option = unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP
						}
						if err := unix.SetsockoptInt(int(fd), level, option, 1); err != nil {
							t.Error(err)
						}
					}))
					if err != nil {
						return err
					}
					if _, err := listener.WriteToUDP([]byte("to the group"), at); err != nil {
						return err
					}
					if err := listener.SetReadDeadline(time.Now().Add(waitTimeout)); err != nil {
						return err
					}
					got := make([]byte, 100)
					n, err := listener.Read(got)
					if err != nil || !bytes.Equal(got[:n], []byte("to the group")) {
						t.Errorf("to %s: the node receives %q, %v, want its own datagram", group, got[:n], err)
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

// When the guard can no longer check sources, the rules check them, and no forged packet
// arrives during the change. The test changes to an agent without a guard and back, adds a
// pair of interfaces on which the node can send to itself, attaches another program before
// the guard's, and ends the agent.
func TestSourceCheckMovesBetweenGuardAndRulesOnPackets(t *testing.T) {
	if !tcx(t) {
		t.Skip("needs TCX, which Linux has since 6.6: without it, the rules drop forged sources all the time")
	}
	s := newTestbed(t)
	s.write("policies.yaml", forgePolicies)
	s.start("--guard", "off", "--on-exit", "keep")
	sent := 0
	g := (&forger{testbed: s, t: t, attacker: s.host(forgeAttacker), sent: &sent}).withVictim(forgeVictim, false)
	out := g.fromOutside(s.Outside)
	node := s.Nodes[0]
	checkNoForged := func() {
		t.Helper()
		for _, from := range []*forger{g, out} {
			for _, src := range []netip.Addr{node.IPv4, g.victim.IPv4} {
				if from.datagramArrives(src, g.victim.IPv4, 9) {
					t.Errorf("a datagram of %s arrives that claims to be from %s", from.attacker.Name, src)
				}
			}
		}
	}
	expect := func(what string, chain bool) {
		t.Helper()
		s.eventually(t, what, func() bool {
			checkNoForged()
			// Check both: the agent adds the chain first, and detaches the guard's program a
			// moment later.
			return s.hasSourceChain(t) == chain && (programsAt(t, node.Host, "eth0") > 0) != chain
		})
		checkNoForged()
	}
	takeOver := func(args ...string) {
		t.Helper()
		next := s.startAnother(append(args, "--on-exit", "keep")...)
		checkNoForged()
		s.stop()
		s.agent = next
	}
	expect("without a guard, the chain is there", true)
	for range 2 {
		takeOver()
		expect("with the guard, the chain is not there", false)
		takeOver()
		expect("with the guard of the next agent, the chain is not there", false)
		takeOver("--guard", "off")
		expect("an agent without a guard has the chain", true)
	}
	takeOver()
	expect("with the guard again, the chain is not there", false)
	for _, args := range [][]string{
		{"link", "add", "one", "type", "veth", "peer", "name", "two"},
		{"link", "set", "one", "up"}, {"link", "set", "two", "up"},
	} {
		if err := node.Run("ip", args...); err != nil {
			t.Fatal(err)
		}
	}
	expect("with a pair of interfaces of its own, the node has the chain", true)
	if err := node.Run("ip", "link", "del", "one"); err != nil {
		t.Fatal(err)
	}
	expect("without the pair, the chain is not there", false)

	detach := s.attachBefore(t, "eth0")
	s.eventually(t, "behind another program, the chain is there", func() bool { return s.hasSourceChain(t) })
	checkNoForged()
	detach()
	expect("when the other program is gone, the chain is not there", false)

	// In one transaction: the agent removes a chain with its name at any time.
	s.nft(t, "add chain %s mangle PREROUTING { type filter hook prerouting priority mangle; }\n"+
		"add chain %s mangle SLUICE-SOURCE\ninsert rule %s mangle PREROUTING jump SLUICE-SOURCE")
	expect("a foreign jump to the chain is removed", false)

	s.stop()
	g.withoutAgent, out.withoutAgent = true, true
	expect("without an agent, the kept rules have the chain", true)
	s.start("--on-exit", "keep")
	g.withoutAgent, out.withoutAgent = false, false
	expect("with the guard of a new agent, the chain is not there", false)
	s.agent.Kill()
	if s.hasSourceChain(t) || programsAt(t, node.Host, "eth0") == 0 {
		t.Error("after the agent was killed, the guard's program is gone or the chain exists")
	}
	g.withoutAgent, out.withoutAgent = true, true
	checkNoForged()
	s.start("--on-exit", "remove")
	s.stop()
	if s.hasSourceChain(t) || programsAt(t, node.Host, "eth0") > 0 {
		t.Error("the chain or a program is left at the end")
	}
}

// attachBefore attaches a program of another owner before the guard's program. The attached
// program passes all packets on to the guard's.
func (s *testbed) attachBefore(t *testing.T, device string) (detach func()) {
	t.Helper()
	var l bpf.Link
	err := s.Nodes[0].Do(func() error {
		found, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Type: ebpf.SchedCLS, License: "MIT", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
		})
		if err != nil {
			return err
		}
		defer program.Close()
		l, err = bpf.AttachTCX(bpf.TCXOptions{Interface: found.Index, Program: program, Attach: ebpf.AttachTCXIngress, Anchor: bpf.Head()})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return func() { _ = l.Close() }
}
