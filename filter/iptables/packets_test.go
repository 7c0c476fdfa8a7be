package iptables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"sluice/bench/testbed/lab"
)

// Only the first packet of a connection is queued, for UDP without replies and for TCP.
func TestRealQueuedOnce(t *testing.T) {
	withPlaces(t, func(t *testing.T, b Backend) {
		p := newPackets(t, b, Defaults)
		if err := p.b.Serve("tcp", 80); err != nil {
			t.Fatal(err)
		}
		p.families(func(a, b netip.Addr) {
			p.wantQueued(1, func() {
				f := p.flow(p.a, a, p.b, b)
				for range 5 {
					f.send()
					f.arrives()
				}
			})
			p.wantQueued(1, func() {
				if r := p.a.Connect(t.Context(), "tcp", netip.AddrPortFrom(b, 80), awaitTimeout); r.Outcome != lab.Reached {
					t.Errorf("%v: %v", r.Outcome, r.Err)
				}
			})
		})
	})
}

// Each packet without a conntrack entry is queued, exactly once.
func TestRealUntracked(t *testing.T) {
	withPlaces(t, func(t *testing.T, b Backend) {
		p := newPackets(t, b, Defaults)
		for _, f := range Families {
			p.iptables(f, "-t", "raw", "-A", "PREROUTING", "-p", "udp", "-j", "CT", "--notrack")
		}
		p.families(func(a, b netip.Addr) {
			p.wantQueued(3, func() {
				f := p.flow(p.a, a, p.b, b)
				for range 3 {
					f.send()
					f.arrives()
				}
			})
		})
	})
}

// ICMP errors about a connection reach its sender without being queued.
func TestRealErrorsPass(t *testing.T) {
	withPlaces(t, func(t *testing.T, b Backend) {
		p := newPackets(t, b, Defaults)
		p.families(func(_, b netip.Addr) {
			p.wantQueued(1, func() {
				c, err := p.a.DialUDP(netip.AddrPortFrom(b, 9)) // a port without a listener
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(awaitTimeout))
				if _, err := c.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("read: %v, want ECONNREFUSED, from the ICMP error", err)
				}
			})
		})
	})
}

// Packets of the node itself are not queued, whichever of its addresses is the source. This
// includes link-local addresses.
func TestRealNodePasses(t *testing.T) {
	withPlaces(t, func(t *testing.T, b Backend) {
		p := newPackets(t, b, Defaults)
		p.wantQueued(0, func() {
			p.families(func(_, b netip.Addr) {
				src := p.IPv4
				if b.Is6() {
					src = p.IPv6
				}
				f := p.flow(p.Host, src, p.b, b)
				f.send()
				f.arrives()
			})
			local := p.linkLocal(p.b.RouterDevice())
			f := p.flow(p.Host, local, p.b, p.b.IPv6)
			f.send()
			if src := f.arrives(); !src.Addr().IsLinkLocalUnicast() {
				t.Errorf("the source is %s, want a link-local address", src)
			}
		})
	})
}

// linkLocal waits for the node's link-local address on an interface, and returns it with its
// zone.
func (p *packets) linkLocal(device string) netip.Addr {
	p.realNode.t.Helper()
	var found netip.Addr
	await(p.realNode.t, "a link-local address on "+device, func() bool {
		p.inside(func(context.Context) error {
			i, err := net.InterfaceByName(device)
			if err != nil {
				return err
			}
			addrs, err := i.Addrs()
			for _, a := range addrs {
				if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().IsLinkLocalUnicast() {
					found = prefix.Addr().WithZone(device)
				}
			}
			return err
		})
		return found.IsValid()
	})
	return found
}

// Packets of a revoked connection are dropped in both directions.
func TestRealRevoked(t *testing.T) {
	withPlaces(t, func(t *testing.T, b Backend) {
		p := newPackets(t, b, Defaults)
		p.families(func(a, b netip.Addr) {
			f := p.flow(p.a, a, p.b, b)
			f.send()
			back := f.arrives()
			family := IPv4
			if a.Is6() {
				family = IPv6
			}
			// This rule sets the revoked mark on the next packet, before the agent's rules see it.
			revoke := []string{"PREROUTING", "-p", "udp", "-j", "CONNMARK", "--set-xmark", "0x20/0x30"}
			p.iptables(family, append([]string{"-t", table, "-A"}, revoke...)...)
			before := p.counter("-j DROP")
			p.wantQueued(0, func() {
				f.send()
				if _, err := f.to.WriteToUDPAddrPort([]byte("x"), back); err != nil {
					t.Fatal(err)
				}
				await(t, "two packets are dropped", func() bool { return p.counter("-j DROP") == before+2 })
			})
			p.iptables(family, append([]string{"-t", table, "-D"}, revoke...)...)
		})
	})
}

// All packets between two addresses go to the same queue, whatever their direction and ports.
func TestRealQueueBalance(t *testing.T) {
	opts := Defaults
	opts.Queues = 8
	p := newPackets(t, NFT, opts)
	used := map[int]bool{}
	p.families(func(a, b netip.Addr) {
		before := p.count()
		for range 10 {
			there, back := p.flow(p.a, a, p.b, b), p.flow(p.b, b, p.a, a)
			there.send()
			there.arrives()
			back.send()
			back.arrives()
		}
		p.reader.mu.Lock()
		defer p.reader.mu.Unlock()
		queues := p.queues[before:]
		if len(queues) != 20 {
			t.Errorf("%d packets were queued, want 20", len(queues))
		}
		for _, q := range queues {
			if q != queues[0] {
				t.Errorf("from %s to %s: queues %v", a, b, queues)
				break
			}
		}
		used[queues[0]] = true
	})
	t.Logf("queues used: %v", used)
}

// Packets of a source beyond its limit go to the overflow queue. Its packets within the limit, and
// packets of other sources, stay in the balanced queues.
func TestRealOverflow(t *testing.T) {
	withPlaces(t, func(t *testing.T, b Backend) {
		opts := Defaults
		opts.SourceShare = 1
		p := newPackets(t, b, opts)
		overflowed := func(from int) (n int) {
			p.reader.mu.Lock()
			defer p.reader.mu.Unlock()
			for _, q := range p.queues[from:] {
				if q == opts.Queues {
					n++
				}
			}
			return n
		}
		once := func(from *lab.Host, src netip.Addr, to *lab.Host, dst netip.Addr) {
			f := p.flow(from, src, to, dst)
			f.send()
			f.arrives()
		}
		p.families(func(a, b netip.Addr) {
			before := p.count()
			p.wantQueued(1, func() { once(p.a, a, p.b, b) })
			if n := overflowed(before); n != 0 {
				t.Error("the first packet of a source went to the overflow queue")
			}
			await(t, "a packet beyond the limit", func() bool { once(p.a, a, p.b, b); return overflowed(before) > 0 })
			await(t, "a packet within the limit of the next second", func() bool {
				before := p.count()
				once(p.a, a, p.b, b)
				return overflowed(before) == 0
			})
			before = p.count()
			p.wantQueued(1, func() { once(p.b, b, p.a, a) })
			if n := overflowed(before); n != 0 {
				t.Error("the first packet of another source went to the overflow queue")
			}
		})
	})
}

// At shutdown, no packet is queued after Pause. The packets that are already queued are not
// lost, unless Remove deletes a separate table.
func TestRealShutdown(t *testing.T) {
	withPlaces(t, func(t *testing.T, b Backend) {
		for _, open := range []bool{true, false} {
			for _, remove := range []bool{true, false} {
				opts := Defaults
				opts.FailOpen = open
				p := newPackets(t, b, opts)
				for _, f := range Families { // after Remove, this rule still uses conntrack, so that the kernel drops no queued packets
					p.iptables(f, "-t", "filter", "-A", "FORWARD", "-m", "conntrack", "--ctstate", "NEW", "-j", "ACCEPT")
				}
				p.startManager()
				p.setHold()
				var waiting []*flow
				p.families(func(a, b netip.Addr) { waiting = append(waiting, p.flow(p.a, a, p.b, b)) })
				for i, f := range waiting {
					f.send()
					await(t, "the packet waits", func() bool { return p.count() == i+1 })
				}
				packets := DropUnqueued
				if open {
					packets = PassUnqueued
				}
				p.inside(func(ctx context.Context) error { return p.Pause(ctx, packets) })
				p.sendWhilePaused(open)
				if remove {
					p.inside(p.Remove)
				}
				p.release()
				for _, f := range waiting {
					if !remove || !p.own { // removing the separate table drops the queued packets
						f.arrives()
					}
				}
				if !remove {
					p.inside(p.Apply)
				}
				p.checkAfterPause(remove, waiting)
			}
		}
	})
}

// sendWhilePaused sends the first packets of new connections. It checks that they are not queued,
// and that they arrive if the parameter "open" is set and are dropped otherwise.
func (p *packets) sendWhilePaused(open bool) {
	p.realNode.t.Helper()
	p.wantQueued(0, func() {
		p.families(func(a, b netip.Addr) {
			f := p.flow(p.a, a, p.b, b)
			before := p.counter("-j DROP")
			f.send()
			if open {
				f.arrives()
				return
			}
			await(p.realNode.t, "the packet is dropped", func() bool { return p.counter("-j DROP") == before+1 })
		})
	})
}

// checkAfterPause checks that new connections are queued unless the rules are removed, and that
// the old connections continue.
func (p *packets) checkAfterPause(removed bool, old []*flow) {
	p.realNode.t.Helper()
	queued := 1
	if removed {
		queued = 0
	}
	p.families(func(a, b netip.Addr) {
		p.wantQueued(queued, func() {
			f := p.flow(p.a, a, p.b, b)
			f.send()
			f.arrives()
		})
	})
	p.wantQueued(0, func() {
		for _, f := range old {
			if !removed { // after Remove, the rules that save the allowed mark are gone, so there is nothing to check
				f.send()
				f.arrives()
			}
		}
	})
}

// A forwarded neighbour discovery message is queued: its hop limit is below 255, so its
// receiver must ignore it (RFC 4861).
func TestRealForwardedNeighbourDiscovery(t *testing.T) {
	p := newPackets(t, NFT, Defaults)
	p.wantQueued(1, func() {
		if err := p.a.Send(solicitation(p.a.IPv6, p.b.IPv6)); err != nil {
			t.Fatal(err)
		}
		await(t, "the message is queued", func() bool { return p.count() > 0 })
	})
}

// solicitation returns a neighbour solicitation (RFC 4861, 4.3) with a hop limit of 255.
func solicitation(src, dst netip.Addr) []byte {
	body := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, dst.AsSlice()...)
	sum := uint32(len(body)) + 58
	for _, part := range [][]byte{src.AsSlice(), dst.AsSlice(), body} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(body[2:], ^uint16(sum))
	packet := []byte{0x60, 0, 0, 0, 0, byte(len(body)), 58, 255}
	return append(append(append(packet, src.AsSlice()...), dst.AsSlice()...), body...)
}

// The data connection of FTP gets its own verdict, although the kernel gives it the mark of
// the control connection. This is also so while packets are judged in FORWARD.
func TestRealExpectedConnection(t *testing.T) {
	for name, o := range map[string]Options{"drop": Defaults, "reject": withReject()} {
		t.Run(name, func(t *testing.T) { testExpectedConnection(t, o) })
	}
}

func testExpectedConnection(t *testing.T, o Options) {
	p := newPackets(t, NFT, o)
	if err := p.Node.Run("iptables-nft", "-t", "raw", "-A", "PREROUTING", "-p", "tcp", "--dport", "21", "-j", "CT", "--helper", "ftp"); err != nil {
		t.Skipf("needs the kernel's helper for FTP: %v", err)
	}
	data, err := p.b.ListenTCP(netip.AddrPortFrom(p.b.IPv4, 0))
	if err != nil {
		t.Fatal(err)
	}
	defer data.Close()
	control, err := p.b.ListenTCP(netip.AddrPortFrom(p.b.IPv4, 21))
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	at := data.Addr().(*net.TCPAddr).AddrPort()
	p.wantQueued(1, func() {
		client, err := p.a.DialTCP(t.Context(), netip.AddrPortFrom(p.b.IPv4, 21))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.Close() })
		server, err := control.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = server.Close() })
		reply := fmt.Sprintf("227 Entering Passive Mode (%s,%d,%d)\r\n", strings.ReplaceAll(at.Addr().String(), ".", ","), at.Port()>>8, at.Port()&0xff)
		_ = client.SetReadDeadline(time.Now().Add(awaitTimeout))
		for _, line := range []string{"220 Ready\r\n", reply} { // the helper parses a line only after it has seen the end of the previous one
			if _, err := server.Write([]byte(line)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(client, make([]byte, len(line))); err != nil {
				t.Fatal(err)
			}
		}
	})
	p.iptables(IPv4, "-t", table, "-A", "PREROUTING", "-p", "tcp", "--dport", fmt.Sprint(at.Port()), "-m", "conntrack", "--ctstate", "RELATED", "-m", "connmark", "--mark", "0x10/0x10")
	p.wantQueued(1, func() {
		c, err := p.a.DialTCP(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	})
	if text := p.output("iptables-nft", "-t", table, "-vS", "PREROUTING"); !strings.Contains(text, "-c 1 ") {
		t.Errorf("the connection was not RELATED, or began without the mark:\n%s", text)
	}
}
