package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"sluice/bench/lab"
)

// The attacks of a pod that writes into its frames what it likes. The attacker is
// default/other: it may send to port 53 and nowhere else. The victim default/db takes
// port 53 from all, and port 7 from frontends.
const (
	forgeAttacker = "default/other"
	forgeVictim   = "default/db"
)

var forgePolicies = policies(
	db("[{ports: [{protocol: UDP, port: 53}]}, {from: [{podSelector: {matchLabels: {role: frontend}}}], ports: [{protocol: UDP, port: 7}]}]"),
	"default/attacker: {podSelector: {matchLabels: {role: backend}}, policyTypes: [Egress], egress: [{ports: [{protocol: UDP, port: 53}]}]}",
)

// layouts are how the pods of a node are joined.
var layouts = []struct {
	name string
	opts lab.Options
}{
	{"routed", lab.Options{Nodes: 2}},
	{"bridged", lab.Options{Nodes: 2, Bridged: true}},
}

// forger sends frames of the attacker to a victim, and tells which arrive there.
type forger struct {
	*site
	t                testing.TB
	v6               bool
	attacker, victim *lab.Host
	to               net.HardwareAddr // whom frames are sent to: the router, or the victim
	sniffer          *lab.Sniffer
	sent             *int
}

// withForger runs a test in each layout and family, and where pods share a bridge,
// through it and through the router.
func withForger(t *testing.T, args []string, f func(*testing.T, *forger)) {
	for _, layout := range layouts {
		t.Run(layout.name, func(t *testing.T) {
			s := newSiteIn(t, layout.opts)
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
						g := &forger{site: s, t: t, v6: i == 1, attacker: s.host(forgeAttacker), sent: &sent}
						f(t, g.at(forgeVictim, direct))
					})
				}
			}
		})
	}
}

// at is the same with another victim.
func (g *forger) at(victim string, direct bool) *forger {
	g.t.Helper()
	at := *g
	at.victim = g.host(victim)
	if at.to = at.attacker.RouterMAC(); direct {
		at.to = at.victim.MAC()
	}
	// The node loses a packet to a neighbour of which it does not know the link address.
	if r := g.Nodes[0].Connect(g.t.Context(), "udp", netip.AddrPortFrom(g.of(at.victim), 53), patience); r.Outcome != lab.Reached {
		g.t.Fatal(r.Err)
	}
	var err error
	if at.sniffer, err = at.victim.Sniff(); err != nil {
		g.t.Fatal(err)
	}
	return &at
}

// of is the address of a host in the family of the test.
func (g *forger) of(h *lab.Host) netip.Addr {
	if g.v6 {
		return h.IPv6
	}
	return h.IPv4
}

// pick is one of two addresses, by family.
func (g *forger) pick(v4, v6 string) netip.Addr {
	if g.v6 {
		return netip.MustParseAddr(v6)
	}
	return netip.MustParseAddr(v4)
}

// text is what no other packet holds.
func (g *forger) text() string {
	*g.sent++
	return fmt.Sprintf("packet %d.", *g.sent)
}

// frame puts a packet into a frame of the attacker.
func (g *forger) frame(packet []byte) []byte {
	kind := uint16(0x0800)
	if packet[0]>>4 == 6 {
		kind = 0x86dd
	}
	return binary.BigEndian.AppendUint16(append(bytes.Clone(g.to), g.attacker.MAC()...), kind)
}

// arrives sends a frame and says whether the victim hears the text in it. A datagram
// that is allowed follows on the same way.
func (g *forger) arrives(frame []byte, text string) bool {
	g.t.Helper()
	end := g.text()
	last := udpPacket(g.of(g.attacker), g.of(g.victim), uint16(20000+*g.sent), 53, end)
	for _, f := range [][]byte{frame, append(g.frame(last), last...)} {
		if err := g.attacker.SendFrame(f); err != nil {
			g.t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(g.t.Context(), patience)
	defer cancel()
	got, err := g.sniffer.Await(ctx, func(p []byte) bool { return bytes.Contains(p, []byte(text)) || bytes.Contains(p, []byte(end)) })
	if err != nil {
		g.t.Fatal(err)
	}
	return bytes.Contains(got, []byte(text))
}

// datagram says whether a datagram with these addresses arrives.
func (g *forger) datagram(src, dst netip.Addr, port uint16) bool {
	g.t.Helper()
	text := g.text()
	p := udpPacket(src, dst, uint16(20000+*g.sent), port, text)
	return g.arrives(append(g.frame(p), p...), text)
}

// udpPacket is a datagram with its IP header.
func udpPacket(src, dst netip.Addr, sport, dport uint16, text string) []byte {
	udp := binary.BigEndian.AppendUint16(nil, sport)
	udp = binary.BigEndian.AppendUint16(udp, dport)
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(text)))
	udp = append(append(udp, 0, 0), text...)
	sum := transportSum(src, dst, 17, udp)
	binary.BigEndian.PutUint16(udp[6:], sum)
	return ipPacket(src, dst, 17, 64, udp)
}

// transportSum is the checksum over the pseudo header and what follows it.
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

// A source that is the node's own, or the receiver's, is dropped, whichever way the
// packet takes; and what is allowed arrives.
func TestForgedNodeAndReceiverOnPackets(t *testing.T) {
	withForger(t, nil, func(t *testing.T, g *forger) {
		node := g.Nodes[0].Host
		sources := map[string]netip.Addr{"the node": g.of(node), "the receiver": g.of(g.victim), "loopback": g.pick("127.0.0.1", "::1")}
		if g.attacker.RouterMAC()[1] == 0x77 { // the bridge's
			sources["the gateway"] = g.pick("10.77.0.1", "fd00:77::1")
		} else {
			sources["the gateway"] = g.pick("169.254.1.1", "fe80::1")
		}
		for name, src := range sources {
			for _, port := range []uint16{53, 9} {
				if g.datagram(src, g.of(g.victim), port) {
					t.Errorf("a datagram to port %d arrives that claims to be from %s (%s)", port, name, src)
				}
			}
		}
		if !g.datagram(g.of(g.attacker), g.of(g.victim), 53) {
			t.Error("what is allowed does not arrive")
		}
	})
}
