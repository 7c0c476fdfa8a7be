//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sluice/bench/testbed/lab"
	"sluice/bench/testbed/lab/frames"
	"sluice/filter"
	"sluice/filter/packet"
	"sluice/filter/policy"
)

// Two pods with all rights in their network namespaces send random frames. The test checks
// only the packets that arrive: each must have a source address of its sender, and the
// policies must allow it.
//
// SLUICE_FUZZ_FRAMES is the number of frames for each layout, SLUICE_FUZZ_SEED the seed.
func TestRandomFramesOnPackets(t *testing.T) {
	count, seed := 4000, uint64(1)
	if n, err := strconv.Atoi(os.Getenv("SLUICE_FUZZ_FRAMES")); err == nil {
		count = n
	}
	if n, err := strconv.ParseUint(os.Getenv("SLUICE_FUZZ_SEED"), 10, 64); err == nil {
		seed = n
	}
	for _, layout := range layouts {
		t.Run(layout.name, func(t *testing.T) {
			f := newFrameFuzz(t, layout.opts, seed)
			f.run(count)
			f.report(count)
		})
	}
}

// fuzzPolicies isolate two targets for ingress: "mine/cart" may receive nothing, "default/db"
// only packets to two ports. They isolate the sender "default/other" for egress: it may send
// only to UDP port 53. The target "bare/odd" and the sender "default/web" are not isolated.
var fuzzPolicies = policies(
	"mine/none: {podSelector: {}, policyTypes: [Ingress, Egress]}",
	db("[{ports: [{protocol: UDP, port: 53}, {port: 6379}]}]"),
	"default/one: {podSelector: {matchLabels: {role: backend}}, policyTypes: [Egress], egress: [{ports: [{protocol: UDP, port: 53}]}]}",
)

var (
	fuzzSenders = []string{"default/web", "default/other"}
	fuzzTargets = []string{"mine/cart", "default/db", "bare/odd"}
)

// frameFuzz sends frames and checks the frames that arrive.
type frameFuzz struct {
	*testbed
	t          *testing.T
	snapshot   *policy.Snapshot
	node       []netip.Addr
	senders    []*lab.Injector
	sources    []*frames.Source
	announcers []*lab.Injector // injectors of the targets, for announce
	sniffers   []*lab.Sniffer
	received   []chan uint32 // numbers of the pacing frames that have arrived, by target

	mu       sync.Mutex
	sent     map[uint32][]byte // latest frames, by number
	found    int
	tally    map[string]int
	nextPort atomic.Uint32
}

func newFrameFuzz(t *testing.T, opts lab.Options, seed uint64) *frameFuzz {
	t.Helper()
	s := newTestbedWith(t, opts)
	s.write("policies.yaml", fuzzPolicies)
	f := &frameFuzz{testbed: s, t: t, sent: make(map[uint32][]byte), tally: make(map[string]int)}
	m, err := readManifests(nil, s.dir)
	if err != nil {
		t.Fatal(err)
	}
	f.snapshot = m.inventory.Snapshot
	for i, family := range []struct{ addr, device string }{{"10.99.0.1/32", "vxlan.4"}, {"fd00:99::1/128", "vxlan.6"}} {
		local := s.Nodes[0].Addrs()[i]
		for _, args := range [][]string{
			{"link", "add", family.device, "address", "02:00:00:00:09:01", "type", "vxlan", "id", "9", "dstport", fmt.Sprint(8472 + i), "local", local.String(), "udp6zerocsumrx"},
			{"address", "add", family.addr, "dev", family.device}, {"link", "set", family.device, "up"},
		} {
			if err := s.Nodes[0].Run("ip", args...); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, name := range fuzzTargets {
		if err := s.host(name).AddAddr(f.unlisted(name)); err != nil {
			t.Fatal(err)
		}
	}
	s.start("--queues", "1", "--source-share", "0", "--queue-len", "65000")
	f.open(seed)
	return f
}

// unlisted returns an address of a target that the API does not list.
func (f *frameFuzz) unlisted(name string) netip.Addr {
	return netip.AddrFrom4([4]byte{169, 254, 172, byte(2 + slices.Index(fuzzTargets, name))})
}

// end returns a host, with all its addresses, as a source or destination of random frames.
func (f *frameFuzz) end(name string) frames.End {
	h := f.host(name)
	e := frames.End{MAC: h.MAC(), Addrs: append(h.Addrs(), (&forger{testbed: f.testbed, t: f.t}).linkLocal(h))}
	if slices.Contains(fuzzTargets, name) {
		e.Addrs = append(e.Addrs, f.unlisted(name))
	}
	return e
}

func (f *frameFuzz) open(seed uint64) {
	f.t.Helper()
	node := frames.End{MAC: f.host(fuzzSenders[0]).RouterMAC(), Addrs: append(f.Nodes[0].Addrs(), netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("fd00:77::1"), netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("fe80::1"))}
	f.node = node.Addrs
	var targets []frames.End
	for _, name := range fuzzTargets {
		targets = append(targets, f.end(name))
		sniffer, err := f.host(name).Sniff()
		if err == nil {
			sniffer.Outside = true
			err = sniffer.SetBufferSize(64 << 20)
		}
		if err != nil {
			f.t.Fatal(err)
		}
		received := make(chan uint32, 1024)
		f.sniffers, f.received = append(f.sniffers, sniffer), append(f.received, received)
		f.announcers = append(f.announcers, f.inject(name))
		go f.listen(name, sniffer, received)
	}
	for i, name := range fuzzSenders {
		others := []frames.End{node, f.end(fuzzSenders[1-i]), f.end("default/far")}
		others[0].MAC = f.host(name).RouterMAC()
		f.senders = append(f.senders, f.inject(name))
		f.sources = append(f.sources, frames.New(seed+uint64(i), frames.Options{
			Sender: f.end(name), Targets: targets, Others: others, Ports: []uint16{53, 6379, 80, 9, 67, 68, 546, 547, 5353},
			Tunnels: map[uint16]net.HardwareAddr{8472: {2, 0, 0, 0, 9, 1}, 8473: {2, 0, 0, 0, 9, 1}},
		}))
	}
}

func (f *frameFuzz) inject(name string) *lab.Injector {
	f.t.Helper()
	i, err := f.host(name).Inject()
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = i.Close() })
	return i
}

// batch is the number of random frames that run() sends before it calls wait().
const batch = 200

// pacingFlag is a bit in the number of a frame. It marks a pacing frame: an allowed datagram
// that wait() sends.
const pacingFlag = 1 << 31

func (f *frameFuzz) run(count int) {
	f.t.Helper()
	f.wait(0)
	for n := 1; n <= count; n++ {
		id := uint32(n)
		frame := f.sources[n%len(f.sources)].Next(id)
		f.mu.Lock()
		f.sent[id] = frame
		delete(f.sent, id-20*batch)
		f.mu.Unlock()
		if err := f.senders[n%len(f.senders)].Send(frame); err != nil {
			f.t.Fatal(err)
		}
		if n%batch == 0 || n == count {
			f.wait(id)
		}
	}
}

// wait waits until the node has processed all earlier frames. It sends an allowed datagram, the
// pacing frame, to each target that policies let it reach, and waits until the datagram arrives.
// It may have to send the datagram several times: an earlier frame with the target's link address
// as its forged source makes the bridge forward to the wrong port, until the target itself sends
// a frame (see announce).
func (f *frameFuzz) wait(id uint32) {
	f.t.Helper()
	for i, name := range fuzzTargets {
		for n := range 2 {
			h := f.host(name)
			from, to := f.host(fuzzSenders[0]), h.Addrs()[n]
			if name == "mine/cart" { // the policies allow no sender to reach mine/cart
				continue
			}
			mark := pacingFlag | id
			begin := time.Now()
			for received := false; !received; {
				if time.Since(begin) > waitTimeout {
					f.t.Fatalf("after %d frames, a datagram that is allowed does not arrive at %s %s", id, name, to)
				}
				f.announce(i)
				p := withOptions(udpPacket(from.Addrs()[n], to, uint16(30000+f.nextPort.Add(1)%30000), 53, string(frames.Fill(mark, 24))))
				frame := append(append(append([]byte(nil), from.RouterMAC()...), from.MAC()...), []byte{8, 0}...)
				if n == 1 {
					copy(frame[12:], []byte{0x86, 0xdd})
				}
				if err := f.senders[0].Send(append(frame, p...)); err != nil {
					f.t.Fatal(err)
				}
				received = f.receives(i, mark)
			}
		}
	}
}

// receives waits briefly for a target to receive the pacing frame with the given number, and
// reports whether it did.
func (f *frameFuzz) receives(target int, number uint32) bool {
	timer := time.NewTimer(300 * time.Millisecond)
	defer timer.Stop()
	for {
		select {
		case got := <-f.received[target]:
			if got == number {
				return true
			}
		case <-timer.C:
			return false
		}
	}
}

// announce makes a target send a packet to its router, so that the bridge learns the
// target's port.
func (f *frameFuzz) announce(target int) {
	h := f.host(fuzzTargets[target])
	p := udpPacket(h.IPv4, f.Nodes[0].IPv4, 9, 9, "here I am")
	frame := append(append(append([]byte(nil), h.RouterMAC()...), h.MAC()...), 8, 0)
	if err := f.announcers[target].Send(append(frame, p...)); err != nil {
		f.t.Error(err)
	}
}

// listen checks all packets that arrive at a target.
func (f *frameFuzz) listen(name string, sniffer *lab.Sniffer, received chan<- uint32) {
	l := &listener{decoder: packet.NewDecoder(), parts: make(map[string]bool)}
	for {
		p, err := sniffer.Next(f.t.Context())
		switch {
		case errors.Is(err, context.Canceled), errors.Is(err, os.ErrClosed):
			return
		case err != nil:
			f.t.Error(err)
			return
		}
		id, found := frames.Find(p)
		switch {
		case !found:
		case id&pacingFlag != 0:
			select {
			case received <- id:
			default:
			}
		default:
			f.arrived(name, id, p, l)
		}
	}
}

// listener is the state for the packets that arrive at one target.
type listener struct {
	decoder *packet.Decoder
	parts   map[string]bool // identifiers (see part) of the packets whose first fragment was allowed
}

// arrived checks a frame that has arrived.
func (f *frameFuzz) arrived(name string, id uint32, p []byte, l *listener) {
	sender := fuzzSenders[int(id)%len(fuzzSenders)]
	which, later := part(p)
	if later && l.parts[which] {
		return
	}
	why := f.denies(sender, name, p, l.decoder)
	if which != "" && why == "" {
		l.parts[which] = true
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tally[name]++
	if why == "" {
		return
	}
	if f.found++; f.found <= 10 {
		f.t.Errorf("frame %d of %s arrives at %s, which is not allowed: %s\n  sent    %s\n  arrived % x", id, sender, name, why, frames.Describe(f.sent[id]), p[:min(len(p), 100)])
	}
}

// denies returns the reason why a packet must not arrive; empty if it may.
func (f *frameFuzz) denies(sender, name string, p []byte, decoder *packet.Decoder) string {
	if essential(p) {
		return ""
	}
	got, err := decoder.Decode(p)
	from, to := f.snapshot.Endpoint(f.host(sender).IPv4), f.snapshot.Endpoint(f.host(name).IPv4)
	isolated := from.Isolation(filter.Egress) != nil || to.Isolation(filter.Ingress) != nil
	if err != nil {
		if isolated {
			return err.Error()
		}
		return ""
	}
	src, dst := got.Key.SrcAddr(), got.Key.DstAddr()
	if slices.Contains(f.node, src) {
		return "" // an ICMP error from the node about the frame
	}
	switch own := slices.Contains(f.host(sender).Addrs(), src); {
	case to.Isolation(filter.Ingress) == nil && asksDHCP(got):
		return ""
	case to.Isolation(filter.Ingress) == nil && f.isSender(dst):
		// p is an answer to a sender. The bridge has flooded it to all ports, also the target's.
		return ""
	case !own && isolated:
		return fmt.Sprintf("it claims to come from %s", src)
	case !own && !src.IsLinkLocalUnicast() && !src.IsUnspecified():
		return fmt.Sprintf("it claims to come from %s, which no policy forbids, but is not its sender's", src)
	case !isolated:
		return ""
	case to.Isolation(filter.Ingress) != nil && !slices.Contains(f.host(name).Addrs(), dst):
		return fmt.Sprintf("it is sent to %s", dst)
	}
	if v := f.snapshot.Decide(got.Key); v.Action != filter.Allow && !related(p) {
		return v.Reason.String()
	}
	return ""
}

// part returns an identifier of the packet to which the fragment p belongs; empty if p is
// not a fragment. The second result reports whether p is a fragment other than the first.
func part(p []byte) (which string, later bool) {
	switch {
	case len(p) < 20:
	case p[0]>>4 == 4 && (p[6]&0x3f != 0 || p[7] != 0):
		return string(p[4:6]) + string(p[12:20]), p[6]&0x1f != 0 || p[7] != 0
	case p[0]>>4 == 6 && len(p) >= 48 && p[6] == 44:
		return string(p[44:48]) + string(p[8:40]), p[42] != 0 || p[43]&0xf8 != 0
	}
	return "", false
}

// isSender reports whether an address belongs to one of the senders.
func (f *frameFuzz) isSender(a netip.Addr) bool {
	return slices.ContainsFunc(fuzzSenders, func(name string) bool { return slices.Contains(f.host(name).Addrs(), a) })
}

// essential reports whether p always passes: it is neighbour discovery directly behind the IP
// header, or a message about the membership of a multicast group (IGMP, MLD).
func essential(p []byte) bool {
	switch {
	case len(p) < 24:
		return false
	case p[0]>>4 == 4:
		return p[9] == 2 && p[16]>>4 == 14
	case len(p) < 56:
		return false
	case p[6] == 58:
		kind := p[40]
		return p[7] == 255 && (kind == 133 || kind == 135 || kind == 136) || p[24] == 0xff && (kind >= 130 && kind <= 132 || kind == 143)
	case p[6] == 0 && p[24] == 0xff:
		at := 40 + (int(p[41])+1)*8
		return p[40] == 58 && at < len(p) && (p[at] >= 130 && p[at] <= 132 || p[at] == 143)
	}
	return false
}

// asksDHCP reports whether a packet is a DHCP client's broadcast to any server.
func asksDHCP(p packet.Packet) bool {
	switch p.Key.DstAddr().String() {
	case "255.255.255.255":
		return p.Key.Protocol == filter.UDP && p.SrcPort == 68 && p.Key.Port == 67
	case "ff02::1:2":
		return p.Key.Protocol == filter.UDP && p.SrcPort == 546 && p.Key.Port == 547
	}
	return false
}

// related reports whether a packet is an ICMP error. The kernel lets such a packet pass if its
// connection is allowed.
func related(p []byte) bool {
	if p[0]>>4 == 4 {
		at := int(p[0]&15) * 4
		return p[9] == 1 && at < len(p) && slices.Contains([]byte{3, 4, 11, 12}, p[at])
	}
	next, at := p[6], 40
	for slices.Contains([]byte{0, 43, 44, 60}, next) && at+8 <= len(p) {
		size := (int(p[at+1]) + 1) * 8
		if next == 44 {
			size = 8
		}
		next, at = p[at], at+size
	}
	return next == 58 && at < len(p) && p[at] < 5
}

// report logs the number of packets that arrived, and checks that the listeners missed none.
func (f *frameFuzz) report(count int) {
	f.t.Helper()
	for i, s := range f.sniffers {
		if lost, err := s.Lost(); err != nil || lost > 0 {
			f.t.Errorf("the listener at %s lost %d packets (%v)", fuzzTargets[i], lost, err)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.t.Logf("%d frames, %d findings; arrived: %v", count, f.found, f.tally)
	for _, name := range []string{"default/db", "bare/odd"} {
		if f.tally[name] == 0 {
			f.t.Errorf("nothing arrives at %s, so the test shows nothing", name)
		}
	}
}
