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

// One-way UDP is asked about once, and so is a whole TCP connection.
func TestRealJudgedOnce(t *testing.T) {
	withPlaces(t, func(t *testing.T, b Backend) {
		p := newPackets(t, b, Defaults)
		if err := p.b.Serve("tcp", 80); err != nil {
			t.Fatal(err)
		}
		p.families(func(a, b netip.Addr) {
			p.asks(1, func() {
				f := p.flow(p.a, a, p.b, b)
				for range 5 {
					f.send()
					f.arrives()
				}
			})
			p.asks(1, func() {
				if r := p.a.Connect(t.Context(), "tcp", netip.AddrPortFrom(b, 80), patience); r.Outcome != lab.Reached {
					t.Errorf("%v: %v", r.Outcome, r.Err)
				}
			})
		})
	})
}

// What the connection table does not know is asked about each time, and once.
func TestRealUntracked(t *testing.T) {
	withPlaces(t, func(t *testing.T, b Backend) {
		p := newPackets(t, b, Defaults)
		for _, f := range Families {
			p.iptables(f, "-t", "raw", "-A", "PREROUTING", "-p", "udp", "-j", "CT", "--notrack")
		}
		p.families(func(a, b netip.Addr) {
			p.asks(3, func() {
				f := p.flow(p.a, a, p.b, b)
				for range 3 {
					f.send()
					f.arrives()
				}
			})
		})
	})
}

// Errors about a connection reach who opened it, without being asked about.
func TestRealErrorsPass(t *testing.T) {
	withPlaces(t, func(t *testing.T, b Backend) {
		p := newPackets(t, b, Defaults)
		p.families(func(_, b netip.Addr) {
			p.asks(1, func() {
				c, err := p.a.DialUDP(netip.AddrPortFrom(b, 9)) // without a listener
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(patience))
				if _, err := c.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("read: %v, want what the ICMP error says", err)
				}
			})
		})
	})
}

// The node is not asked about, from whichever of its addresses it sends: not
// from its link-local ones either.
func TestRealNodePasses(t *testing.T) {
	withPlaces(t, func(t *testing.T, b Backend) {
		p := newPackets(t, b, Defaults)
		p.asks(0, func() {
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
				t.Errorf("it came from %s", src)
			}
		})
	})
}

// linkLocal is the node's link-local address on an interface, with its zone.
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

// Both directions of a revoked connection end.
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
			// Whatever comes next is revoked before it reaches our rules.
			revoke := []string{"PREROUTING", "-p", "udp", "-j", "CONNMARK", "--set-xmark", "0x20/0x30"}
			p.iptables(family, append([]string{"-t", table, "-A"}, revoke...)...)
			before := p.counter("-j DROP")
			p.asks(0, func() {
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

// All packets between two addresses come to one queue, whichever way the
// connection goes and whatever its ports are.
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
		asked := p.queues[before:]
		if len(asked) != 20 {
			t.Errorf("%d packets were asked about, want 20", len(asked))
		}
		for _, q := range asked {
			if q != asked[0] {
				t.Errorf("from %s to %s: queues %v", a, b, asked)
				break
			}
		}
		used[asked[0]] = true
	})
	t.Logf("queues used: %v", used)
}

// What a source has beyond its share comes to the crowd's queue, and nobody else
// there. Its share it goes on to have.
func TestRealCrowd(t *testing.T) {
	withPlaces(t, func(t *testing.T, b Backend) {
		opts := Defaults
		opts.SourceShare = 1
		p := newPackets(t, b, opts)
		crowd := func(from int) (n int) {
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
			p.asks(1, func() { once(p.a, a, p.b, b) })
			if n := crowd(before); n != 0 {
				t.Error("the first packet of a source is beyond its share")
			}
			await(t, "a packet beyond the share", func() bool { once(p.a, a, p.b, b); return crowd(before) > 0 })
			await(t, "the share of the next second", func() bool {
				before := p.count()
				once(p.a, a, p.b, b)
				return crowd(before) == 0
			})
			before = p.count()
			p.asks(1, func() { once(p.b, b, p.a, a) })
			if n := crowd(before); n != 0 {
				t.Error("another source is set apart")
			}
		})
	})
}

// Shutdown: with the queues paused nothing new enters them, and what waits in
// them is not lost, whether the rules go or stay.
func TestRealShutdown(t *testing.T) {
	withPlaces(t, func(t *testing.T, b Backend) {
		for _, open := range []bool{true, false} {
			for _, remove := range []bool{true, false} {
				opts := Defaults
				opts.FailOpen = open
				p := newPackets(t, b, opts)
				for _, f := range Families { // see Remove
					p.iptables(f, "-t", "filter", "-A", "FORWARD", "-m", "conntrack", "--ctstate", "NEW", "-j", "ACCEPT")
				}
				p.keep()
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
				p.newOnesWhilePaused(open)
				if remove {
					p.inside(p.Remove)
				}
				p.release()
				for _, f := range waiting {
					if !remove || !p.own { // a table of our own goes as a whole, and its hook with it
						f.arrives()
					}
				}
				if !remove {
					p.inside(p.Apply)
				}
				p.afterwards(remove, waiting)
			}
		}
	})
}

// newOnesWhilePaused sends packets of new connections.
func (p *packets) newOnesWhilePaused(open bool) {
	p.realNode.t.Helper()
	p.asks(0, func() {
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

// afterwards looks whether new connections are asked about when they should be,
// and old ones go on.
func (p *packets) afterwards(removed bool, old []*flow) {
	p.realNode.t.Helper()
	asked := 1
	if removed {
		asked = 0
	}
	p.families(func(a, b netip.Addr) {
		p.asks(asked, func() {
			f := p.flow(p.a, a, p.b, b)
			f.send()
			f.arrives()
		})
	})
	p.asks(0, func() {
		for _, f := range old {
			if !removed { // their verdict came when there was nobody to save it
				f.send()
				f.arrives()
			}
		}
	})
}

// A message of neighbour discovery that has been forwarded is none.
func TestRealForwardedNeighbourDiscovery(t *testing.T) {
	p := newPackets(t, NFT, Defaults)
	p.asks(1, func() {
		if err := p.a.Send(solicitation(p.a.IPv6, p.b.IPv6)); err != nil {
			t.Fatal(err)
		}
		await(t, "the message is asked about", func() bool { return p.count() > 0 })
	})
}

// solicitation is a neighbour solicitation (RFC 4861, 4.3) with a hop limit of
// 255.
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

// The data connection of FTP is judged by itself, although the kernel gives it
// the mark of the connection that announced it.
func TestRealExpectedConnection(t *testing.T) {
	p := newPackets(t, NFT, Defaults)
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
	p.asks(1, func() {
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
		said := fmt.Sprintf("227 Entering Passive Mode (%s,%d,%d)\r\n", strings.ReplaceAll(at.Addr().String(), ".", ","), at.Port()>>8, at.Port()&0xff)
		_ = client.SetReadDeadline(time.Now().Add(patience))
		for _, line := range []string{"220 Ready\r\n", said} { // the helper wants to have seen the end of a line
			if _, err := server.Write([]byte(line)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(client, make([]byte, len(line))); err != nil {
				t.Fatal(err)
			}
		}
	})
	p.iptables(IPv4, "-t", table, "-A", "PREROUTING", "-p", "tcp", "--dport", fmt.Sprint(at.Port()), "-m", "conntrack", "--ctstate", "RELATED", "-m", "connmark", "--mark", "0x10/0x10")
	p.asks(1, func() {
		c, err := p.a.DialTCP(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	})
	if text := p.output("iptables-nft", "-t", table, "-vS", "PREROUTING"); !strings.Contains(text, "-c 1 ") {
		t.Errorf("the connection was not expected, or began without the mark:\n%s", text)
	}
}
