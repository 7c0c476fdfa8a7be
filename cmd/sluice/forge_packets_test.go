//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"sluice/bench/testbed/lab"
)

// The forging tests have an attacker that writes arbitrary frames, and a victim. The
// attacker default/other may send only to port 53. The victim default/db accepts port 53
// from everywhere, and port 7 from frontends.
const (
	forgeAttacker = "default/other"
	forgeVictim   = "default/db"
)

var forgePolicies = policies(
	db("[{ports: [{protocol: UDP, port: 53}]}, {from: [{podSelector: {matchLabels: {role: frontend}}}], ports: [{protocol: UDP, port: 7}]}]"),
	"default/attacker: {podSelector: {matchLabels: {role: backend}}, policyTypes: [Egress], egress: [{ports: [{protocol: UDP, port: 53}]}]}",
)

// layouts are the ways in which the pods of a node are connected.
var layouts = []struct {
	name string
	opts lab.Options
}{
	{"routed", lab.Options{Nodes: 2}},
	{"bridged", lab.Options{Nodes: 2, Bridged: true}},
}

// forger sends frames of the attacker to a victim, and checks which frames arrive.
type forger struct {
	*testbed
	t                testing.TB
	v6               bool
	attacker, victim *lab.Host
	to               net.HardwareAddr // destination of frames: the router or the victim
	sniffer          *lab.Sniffer
	sent             *int
	withoutAgent     bool // no agent reads the queue: only what the kernel itself allows can arrive
}

// withForger runs a test in each layout and family. If pods share a bridge, it runs the test
// twice: with frames through the bridge, and with frames through the router.
func withForger(t *testing.T, args []string, f func(*testing.T, *forger)) {
	withForgerOn(t, func(*testbed, *testing.T) {}, args, f)
}

// withForgerOn is withForger with a function that prepares the node before the agent starts.
func withForgerOn(t *testing.T, prepare func(*testbed, *testing.T), args []string, f func(*testing.T, *forger)) {
	for _, layout := range layouts {
		t.Run(layout.name, func(t *testing.T) {
			s := newTestbedWith(t, layout.opts)
			prepare(s, t)
			s.write("policies.yaml", forgePolicies)
			s.start(append([]string{"--queues", "1"}, args...)...) // so that packets stay in order
			sent := 0
			for i, family := range families {
				for _, direct := range []bool{false, true} {
					if direct && !layout.opts.Bridged {
						continue
					}
					name := family.name
					if direct {
						name += " through the bridge"
					}
					t.Run(name, func(t *testing.T) {
						g := &forger{testbed: s, t: t, v6: i == 1, attacker: s.host(forgeAttacker), sent: &sent}
						f(t, g.withVictim(forgeVictim, direct))
					})
				}
			}
		})
	}
}

// withVictim returns a copy of g with another victim. If direct is set, frames go through
// the bridge, otherwise through the router.
func (g *forger) withVictim(victim string, direct bool) *forger {
	g.t.Helper()
	at := *g
	at.victim = g.host(victim)
	if at.to = at.attacker.RouterMAC(); direct {
		at.to = at.victim.MAC()
	}
	// Make the node resolve the victim's link address. Until then, the node may lose packets.
	if r := g.Nodes[0].Connect(g.t.Context(), "udp", netip.AddrPortFrom(g.addr(at.victim), 53), waitTimeout); r.Outcome != lab.Reached {
		g.t.Fatal(r.Err)
	}
	var err error
	if at.sniffer, err = at.victim.Sniff(); err != nil {
		g.t.Fatal(err)
	}
	return &at
}

// addr returns the address of a host in the family of the test.
func (g *forger) addr(h *lab.Host) netip.Addr {
	if g.v6 {
		return h.IPv6
	}
	return h.IPv4
}

// byFamily returns the address in the family of the test.
func (g *forger) byFamily(v4, v6 string) netip.Addr {
	if g.v6 {
		return netip.MustParseAddr(v6)
	}
	return netip.MustParseAddr(v4)
}

// uniqueText returns a text that no other packet contains.
func (g *forger) uniqueText() string {
	*g.sent++
	return fmt.Sprintf("packet %d.", *g.sent)
}

// frame returns the Ethernet header for a packet of the attacker.
func (g *forger) frame(packet []byte) []byte {
	kind := uint16(0x0800)
	if packet[0]>>4 == 6 {
		kind = 0x86dd
	}
	return binary.BigEndian.AppendUint16(append(bytes.Clone(g.to), g.attacker.MAC()...), kind)
}

// arrives sends a frame, if any, and reports whether the victim receives the text in it. If frame
// is nil, the caller has already sent the text.
func (g *forger) arrives(frame []byte, text string) bool {
	g.t.Helper()
	send := func(frame []byte) {
		g.t.Helper()
		if err := g.attacker.SendFrame(frame); err != nil {
			g.t.Fatal(err)
		}
	}
	if frame != nil {
		send(frame)
	}
	return receives(g.t, g.sniffer, text, func(text string) {
		g.t.Helper()
		*g.sent++
		p := udpPacket(g.addr(g.attacker), g.addr(g.victim), uint16(20000+*g.sent), 53, text)
		if !g.withoutAgent {
			p = withOptions(p)
		}
		send(append(g.frame(p), p...))
	})
}

// datagramArrives sends a datagram with the given addresses and port, and reports whether it
// arrives.
func (g *forger) datagramArrives(src, dst netip.Addr, port uint16) bool {
	g.t.Helper()
	text := g.uniqueText()
	p := udpPacket(src, dst, uint16(20000+*g.sent), port, text)
	return g.arrives(append(g.frame(p), p...), text)
}

// udpPacket returns a UDP datagram with its IP header.
func udpPacket(src, dst netip.Addr, sport, dport uint16, text string) []byte {
	udp := binary.BigEndian.AppendUint16(nil, sport)
	udp = binary.BigEndian.AppendUint16(udp, dport)
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(text)))
	udp = append(append(udp, 0, 0), text...)
	sum := transportSum(src, dst, 17, udp)
	binary.BigEndian.PutUint16(udp[6:], sum)
	return ipPacket(src, dst, 17, 64, udp)
}

// transportSum returns the checksum over the pseudo header and the payload.
func transportSum(src, dst netip.Addr, protocol byte, payload []byte) uint16 {
	pseudo := append(src.AsSlice(), dst.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(payload)))
	pseudo = append(append(pseudo, 0, 0, 0, protocol), payload...)
	if len(pseudo)%2 == 1 {
		pseudo = append(pseudo, 0)
	}
	return checksum(pseudo)
}

// ipPacket puts an IP header before a payload.
func ipPacket(src, dst netip.Addr, protocol, hops byte, payload []byte) []byte {
	if src.Is6() {
		p := []byte{0x60, 0, 0, 0, byte(len(payload) >> 8), byte(len(payload)), protocol, hops}
		return append(append(append(p, src.AsSlice()...), dst.AsSlice()...), payload...)
	}
	n := 20 + len(payload)
	p := []byte{0x45, 0, byte(n >> 8), byte(n), 0, 1, 0, 0, hops, protocol, 0, 0}
	p = append(append(p, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(p[10:], checksum(p))
	return append(p, payload...)
}

// Packets whose source is the address of the node or of the receiver are dropped, through the
// bridge and through the router. Allowed packets arrive.
func TestForgedNodeAndReceiverOnPackets(t *testing.T) {
	for _, setup := range sourceSetups {
		t.Run(setup.name, func(t *testing.T) { withForger(t, setup.args, noForgedNodeOrReceiver) })
	}
}

// noForgedNodeOrReceiver checks that packets whose source is the node's or the receiver's
// address are dropped.
func noForgedNodeOrReceiver(t *testing.T, g *forger) {
	t.Helper()
	node := g.Nodes[0].Host
	sources := map[string]netip.Addr{"the node": g.addr(node), "the receiver": g.addr(g.victim), "loopback": g.byFamily("127.0.0.1", "::1")}
	if g.attacker.RouterMAC()[1] == 0x77 { // the bridge is the router
		sources["the gateway"] = g.byFamily("10.77.0.1", "fd00:77::1")
	} else {
		sources["the gateway"] = g.byFamily("169.254.1.1", "fe80::1")
	}
	for name, src := range sources {
		for _, port := range []uint16{53, 9} {
			if g.datagramArrives(src, g.addr(g.victim), port) {
				t.Errorf("a datagram to port %d arrives that claims to be from %s (%s)", port, name, src)
			}
		}
	}
	if !g.datagramArrives(g.addr(g.attacker), g.addr(g.victim), 53) {
		t.Error("an allowed datagram does not arrive")
	}
}

// A source that belongs to another pod, or to no pod, is dropped. The attacker gains
// neither the other pod's rights nor those of an unknown address.
func TestForgedOthersOnPackets(t *testing.T) {
	withForger(t, nil, func(t *testing.T, g *forger) {
		web, stranger, elsewhere := g.addr(g.host("default/web")), g.byFamily("198.51.100.7", "2001:db8:7::7"), g.addr(g.host("default/far"))
		for name, src := range map[string]netip.Addr{"web": web, "far": elsewhere} {
			for _, port := range []uint16{7, 53} {
				if g.datagramArrives(src, g.addr(g.victim), port) {
					t.Errorf("a datagram to port %d arrives that claims to be from %s", port, name)
				}
			}
		}
		open := g.withVictim("bare/odd", g.to.String() == g.victim.MAC().String())
		for name, src := range map[string]netip.Addr{"a stranger": stranger, "web": web} {
			if open.datagramArrives(src, g.addr(open.victim), 9) {
				t.Errorf("a datagram that claims to be from %s bypasses the attacker's own policy", name)
			}
		}
		if open.datagramArrives(g.addr(g.attacker), g.addr(open.victim), 9) || !open.datagramArrives(g.addr(g.attacker), g.addr(open.victim), 53) {
			t.Error("the attacker's own policy is not applied to datagrams with its own source")
		}
	})
}

// linkLocal returns a host's link-local IPv6 address.
func (g *forger) linkLocal(h *lab.Host) (found netip.Addr) {
	g.t.Helper()
	err := h.Do(func() error {
		i, err := net.InterfaceByName(lab.Device)
		if err != nil {
			return err
		}
		addrs, err := i.Addrs()
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
				found = p.Addr()
			}
		}
		return err
	})
	if err != nil || !found.IsValid() {
		g.t.Fatalf("no link-local address of %s: %v", h.Name, err)
	}
	return found
}

// Packets with link-local addresses, or with others that the API does not list, do not bypass
// policies. Pods without policies can still use such addresses.
func TestUnlistedAddressesOnPackets(t *testing.T) {
	withForger(t, nil, func(t *testing.T, g *forger) {
		mine, its := g.linkLocal(g.attacker), g.linkLocal(g.victim)
		if !g.v6 {
			mine, its = netip.MustParseAddr("169.254.172.4"), netip.MustParseAddr("169.254.172.2")
			for h, a := range map[*lab.Host]netip.Addr{g.attacker: mine, g.victim: its} {
				_ = h.AddAddr(a) // fails if the test through the router has already added the address
			}
		}
		for name, p := range map[string][2]netip.Addr{
			"both": {mine, its}, "its": {g.addr(g.attacker), its}, "mine": {mine, g.addr(g.victim)},
		} {
			if g.datagramArrives(p[0], p[1], 9) {
				t.Errorf("a datagram arrives with link-local addresses: %s", name)
			}
		}
	})
}

// Frames with VLAN tags do not arrive. The kernel would forward frames with tag 0 like
// untagged frames, but without iptables.
func TestTaggedFramesOnPackets(t *testing.T) {
	withForger(t, nil, func(t *testing.T, g *forger) {
		for name, tags := range map[string][]byte{
			"one": {0x81, 0, 0, 0}, "with a priority": {0x81, 0, 0xe0, 0}, "two": {0x88, 0xa8, 0, 0, 0x81, 0, 0, 0}, "a network": {0x81, 0, 0, 7},
		} {
			text := g.uniqueText()
			p := udpPacket(g.addr(g.attacker), g.addr(g.victim), uint16(20000+*g.sent), 9, text)
			frame := g.frame(p)
			tagged := append(append(append(bytes.Clone(frame[:12]), tags...), frame[12:]...), p...)
			if g.arrives(tagged, text) {
				t.Errorf("a tagged frame arrives: %s", name)
			}
		}
	})
}

// Router advertisements and redirects of a pod do not arrive, so that no pod can act as a
// router for its neighbours.
func TestRouterMessagesOnPackets(t *testing.T) {
	withForger(t, nil, func(t *testing.T, g *forger) {
		if !g.v6 {
			text := g.uniqueText()
			inner := udpPacket(g.addr(g.victim), g.addr(g.host("default/web")), 53, 53, text)
			redirect := append([]byte{5, 1, 0, 0}, append(g.addr(g.attacker).AsSlice(), inner...)...)
			binary.BigEndian.PutUint16(redirect[2:], checksum(redirect))
			p := ipPacket(g.addr(g.attacker), g.addr(g.victim), 1, 64, redirect)
			if g.arrives(append(g.frame(p), p...), text) {
				t.Error("a redirect arrives")
			}
			return
		}
		from := g.linkLocal(g.attacker)
		for _, to := range []netip.Addr{netip.MustParseAddr("ff02::1"), g.linkLocal(g.victim), g.addr(g.victim)} {
			for _, kind := range []byte{134, 137} {
				for _, options := range []bool{false, true} {
					text := fmt.Sprintf("%-21s", g.uniqueText()) // the option has 24 bytes: type, length, 21 bytes of text, and a dot
					size := map[byte]int{134: 16, 137: 40}[kind]
					message := append(append(make([]byte, size), 200, 3), text[:21]+"."...)
					message[0] = kind
					binary.BigEndian.PutUint16(message[2:], transportSum(from, to, 58, message))
					p := ipPacket(from, to, 58, 255, message)
					if options {
						p = ipPacket(from, to, 60, 255, append([]byte{58, 0, 1, 4, 0, 0, 0, 0}, message...))
					}
					frame := g.frame(p)
					if to.IsMulticast() {
						copy(frame, []byte{0x33, 0x33, 0, 0, 0, 1})
					}
					if g.arrives(append(frame, p...), text[:9]) {
						t.Errorf("a message of type %d to %s arrives, behind options: %v", kind, to, options)
					}
				}
			}
		}
	})
}

// Multicast and broadcast packets of a pod, such as mDNS, do not reach isolated pods. They
// reach all others.
func TestBroadcastOnPackets(t *testing.T) {
	withForger(t, nil, func(t *testing.T, g *forger) {
		direct := g.to.String() == g.victim.MAC().String()
		if !direct {
			t.Skip("a router does not forward multicast and broadcast packets")
		}
		free := *g
		free.attacker = g.host("default/web") // no policy isolates it
		send := func(g *forger, dst netip.Addr, mac net.HardwareAddr) bool {
			src := g.addr(g.attacker)
			if dst.Is6() {
				src = g.linkLocal(g.attacker)
			}
			text := g.uniqueText()
			p := udpPacket(src, dst, uint16(20000+*g.sent), 5353, text)
			frame := append(g.frame(p), p...)
			copy(frame, mac)
			return g.arrives(frame, text)
		}
		group, mac := netip.MustParseAddr("224.0.0.251"), net.HardwareAddr{1, 0, 0x5e, 0, 0, 0xfb}
		if g.v6 {
			group, mac = netip.MustParseAddr("ff02::fb"), net.HardwareAddr{0x33, 0x33, 0, 0, 0, 0xfb}
		}
		all := net.HardwareAddr{255, 255, 255, 255, 255, 255}
		targets := map[netip.Addr]net.HardwareAddr{group: mac}
		if !g.v6 {
			targets[netip.MustParseAddr("255.255.255.255")] = all
			targets[netip.MustParseAddr("10.77.0.255")] = all
		}
		for dst, mac := range targets {
			if send(&free, dst, mac) {
				t.Errorf("a datagram to %s arrives at an isolated pod", dst)
			}
			open := free.withVictim("bare/odd", true)
			if !send(open, dst, mac) {
				t.Errorf("a datagram to %s does not arrive at a pod without policies", dst)
			}
			open.attacker = g.attacker
			if send(open, dst, mac) {
				t.Errorf("a datagram to %s bypasses the sender's policy", dst)
			}
		}
	})
}

// Any pod may send to its node, but the node must not decapsulate a pod's datagram for a
// tunnel: the inner packet could have any source.
func TestTunnelledSourcesOnPackets(t *testing.T) {
	withForger(t, nil, func(t *testing.T, g *forger) {
		node := g.Nodes[0]
		device, port := "vxlan.4", uint16(8472)
		if g.v6 {
			device, port = "vxlan.6", 8473
		}
		if err := node.Run("ip", "link", "show", device); err != nil { // the test through the router may have created it
			for _, args := range [][]string{
				{"link", "add", device, "address", "02:00:00:00:09:01", "type", "vxlan", "id", "9", "dstport", fmt.Sprint(port), "local", g.addr(node.Host).String()},
				{"address", "add", "10.99.0.1/32", "dev", device}, // rp_filter looks up a route only if the device has an address
				{"link", "set", device, "up"},
			} {
				if err := node.Run("ip", args...); err != nil {
					t.Fatal(err)
				}
			}
		}
		at := netip.AddrPortFrom(g.addr(node.Host), port)
		conn, err := g.attacker.DialUDP(at)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		send := func(text string) {
			inner := udpPacket(g.addr(g.host("default/far")), g.addr(g.victim), uint16(20000+*g.sent), 7, text)
			frame := append([]byte{8, 0, 0, 0, 0, 0, 9, 0, 2, 0, 0, 0, 9, 1}, g.frame(inner)[6:]...)
			if _, err := conn.Write(append(frame, inner...)); err != nil {
				t.Fatal(err)
			}
		}
		g.eventually(t, "the guard knows the tunnel", func() bool {
			text := g.uniqueText()
			send(text)
			return !g.arrives(nil, text)
		})
		for range 3 {
			text := g.uniqueText()
			send(text)
			if g.arrives(nil, text) {
				t.Error("the inner packet arrives")
			}
		}
	})
}
