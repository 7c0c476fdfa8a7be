package iptables

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/florianl/go-nfqueue/v2"

	"sluice/bench/testbed/lab"
)

// reader reads the queues and allows every packet. While the flag "hold" is set, it holds
// arriving packets until release() is called.
type reader struct {
	t    testing.TB
	mark uint32

	mu     sync.Mutex
	hold   bool
	held   []func() error // the verdicts of held packets
	queues []int          // the queue of each packet, in order of arrival
}

// read starts a reader of a node's queues, which ends with the test.
func read(n *realNode, opts Options) *reader {
	n.t.Helper()
	r := &reader{t: n.t, mark: opts.AllowedMark}
	for i := range opts.Span() {
		q, err := nfqueue.Open(&nfqueue.Config{
			NetNS: n.NetNS(), NfQueue: opts.FirstQueue + uint16(i), MaxPacketLen: 128, Copymode: nfqueue.NfQnlCopyPacket,
		})
		if err != nil {
			n.t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		err = q.RegisterWithErrorFunc(ctx, func(a nfqueue.Attribute) int { r.got(i, q, *a.PacketID); return 0 }, func(error) int {
			if ctx.Err() != nil {
				return 1
			}
			return 0
		})
		if err != nil {
			n.t.Fatal(err)
		}
		n.t.Cleanup(func() {
			cancel()
			_ = q.Close()
		})
	}
	return r
}

func (r *reader) got(queue int, q *nfqueue.Nfqueue, id uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queues = append(r.queues, queue)
	answer := func() error {
		return q.SetVerdictWithOption(id, nfqueue.NfRepeat, nfqueue.WithMark(r.mark))
	}
	if r.hold {
		r.held = append(r.held, answer)
		return
	}
	if err := answer(); err != nil {
		r.t.Errorf("answer: %v", err)
	}
}

// count returns the number of packets that were queued.
func (r *reader) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.queues)
}

// setHold makes the reader hold packets from now on.
func (r *reader) setHold() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hold = true
}

// release allows all held packets and ends the hold.
func (r *reader) release() {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, answer := range r.held {
		if err := answer(); err != nil {
			r.t.Errorf("answer: %v", err)
		}
	}
	r.held, r.hold = nil, false
}

// packets is a node with two pods and a reader.
type packets struct {
	*realNode
	*reader
	a, b *lab.Host
}

func newPackets(t *testing.T, b Backend, opts Options) *packets {
	t.Helper()
	return newRealNode(t, b, opts).withPods(opts)
}

// withPods adds two pods and a reader of the queues, and applies the rules.
func (n *realNode) withPods(opts Options) *packets {
	n.t.Helper()
	p := &packets{realNode: n}
	var err error
	if p.a, err = n.AddPod("a"); err == nil {
		p.b, err = n.AddPod("b")
	}
	if err != nil {
		n.t.Fatal(err)
	}
	p.reader = read(n, opts)
	n.inside(n.Apply)
	return p
}

// counter adds up the packet counters of rules of Chain, in both families. It counts only the rules
// whose text has the given ending.
func (p *packets) counter(end string) (n int) {
	p.realNode.t.Helper()
	if p.own {
		return p.ownCounter(end)
	}
	for _, f := range Families {
		for line := range strings.Lines(p.output(f.command()+"-"+string(p.backend), "-t", table, "-vS", Chain)) {
			// -A CHAIN ... -c PACKETS BYTES -j TARGET
			rule, counts, ok := strings.Cut(strings.TrimSpace(line), " -c ")
			var packets, bytes int
			if _, err := fmt.Sscan(counts, &packets, &bytes); !ok || err != nil {
				continue
			}
			if strings.HasSuffix(rule+strings.TrimPrefix(counts, fmt.Sprintf("%d %d", packets, bytes)), end) {
				n += packets
			}
		}
	}
	return n
}

// flow is a pair of UDP sockets, one in each of two hosts.
type flow struct {
	t        testing.TB
	from, to *net.UDPConn
	peer     netip.AddrPort
}

func (p *packets) flow(from *lab.Host, src netip.Addr, to *lab.Host, dst netip.Addr) *flow {
	t := p.realNode.t
	t.Helper()
	server, err := to.ListenUDP(netip.AddrPortFrom(dst, 0))
	if err != nil {
		t.Fatal(err)
	}
	peer := server.LocalAddr().(*net.UDPAddr).AddrPort()
	client, err := from.ListenUDP(netip.AddrPortFrom(src, 0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = client.Close(), server.Close() })
	return &flow{t, client, server, peer}
}

func (f *flow) send() {
	f.t.Helper()
	if _, err := f.from.WriteToUDPAddrPort([]byte("x"), f.peer); err != nil {
		f.t.Fatal(err)
	}
}

// arrives waits for one packet and returns its source.
func (f *flow) arrives() netip.AddrPort {
	f.t.Helper()
	if err := f.to.SetReadDeadline(time.Now().Add(awaitTimeout)); err != nil {
		f.t.Fatal(err)
	}
	_, src, err := f.to.ReadFromUDPAddrPort(make([]byte, 16))
	if err != nil {
		f.t.Fatal(err)
	}
	return src
}

// families calls f twice: with the IPv4 addresses of the two pods, then with their IPv6 addresses.
func (p *packets) families(f func(a, b netip.Addr)) {
	f(p.a.IPv4, p.b.IPv4)
	f(p.a.IPv6, p.b.IPv6)
}

// wantQueued fails the test unless exactly the wanted number of packets is queued while f()
// runs.
func (p *packets) wantQueued(want int, f func()) {
	p.realNode.t.Helper()
	before := p.count()
	f()
	if got := p.count() - before; got != want {
		p.realNode.t.Errorf("%d packets were queued, want %d", got, want)
	}
}
