package guard

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// At interfaces that lead to no pod, sluice_from_pod drops exactly the frames that forgedAt
// reports: the source is the node's own or equals the destination, and the node or a bridge
// accepts the frame's link address.
func TestOutsideDropsOnlyForgedSources(t *testing.T) {
	g := openGuard(t)
	r := rand.New(rand.NewPCG(3, 4))
	const ports, each = 100, 500
	dropped := 0
	for range ports {
		st := randomPort(r)
		flags := outsidePort | pick(r, 0, barePort, memberPort, barePort|memberPort)
		st.ports[loopback] = portValue{Flags: flags}
		for at := range st.own {
			st.own[at] = pick(r, nodes, extra, listed)
		}
		for range each {
			frame := randomFrame(r)
			if r.IntN(2) == 0 {
				copy(frame, make([]byte, 6)) // the link address of the interface
			}
			if r.IntN(3) == 0 { // up to four VLAN tags with ID 0; in some frames, the last has ID 7
				tags := bytes.Repeat([]byte{0x81, 0, 0x20, 0}, r.IntN(5))
				if len(tags) > 0 && r.IntN(4) == 0 {
					tags[len(tags)-1] = 7
				}
				frame = slices.Insert(frame, 12, tags...)
			}
			want := int32(-1)
			if forgedAt(st, frame) {
				want = 2
				dropped++
			}
			if got := outcomeAt(t, g, g.objs.SluiceFromPod, st, frame); got.verdict != want || got.mark != 0 {
				t.Fatalf("%x at %+v: %+v, want %d", frame, st, got, want)
			}
		}
	}
	if dropped < ports*each/100 {
		t.Errorf("only %d of %d frames should be dropped: the random frames test too little", dropped, ports*each)
	}
}

// forgedAt reports whether a frame must be dropped at an interface that leads to no pod. It is a
// plain reference implementation of from_outside in program.c.
func forgedAt(st state, frame []byte) bool {
	at, tags := 12, 0
	for binary.BigEndian.Uint16(frame[at:]) == 0x8100 {
		if tags == 3 {
			return true // more tags than the programs read
		}
		if len(frame) < at+6 || binary.BigEndian.Uint16(frame[at+2:])&0xfff != 0 {
			return false
		}
		at, tags = at+4, tags+1
	}
	if other := frame[0]&1 == 0 && !bytes.Equal(frame[:6], make([]byte, 6)); other && st.ports[loopback].Flags&memberPort == 0 {
		return false
	}
	var src, dst netip.Addr
	switch ip := frame[at+2:]; {
	case binary.BigEndian.Uint16(frame[at:]) == unix.ETH_P_IP && len(ip) >= 20:
		src, _ = netip.AddrFromSlice(ip[12:16])
		dst, _ = netip.AddrFromSlice(ip[16:20])
	case binary.BigEndian.Uint16(frame[at:]) == unix.ETH_P_IPV6 && len(ip) >= 40:
		src, _ = netip.AddrFromSlice(ip[8:24])
		dst, _ = netip.AddrFromSlice(ip[24:40])
	default:
		return false
	}
	switch {
	case src == dst, src.Is4() && src.IsLoopback():
		return true
	case src.Is6() && src.IsLinkLocalUnicast():
		return st.own[place{src.As16(), loopback}] == nodes
	}
	return st.known[src.As16()]&ofNode != 0
}

// The survey lists the interfaces at which packets may enter the node, and detects when the
// programs cannot recognise all forged sources.
func TestOtherInterfaces(t *testing.T) {
	attrs := func(index, master int) netlink.LinkAttrs {
		a := netlink.NewLinkAttrs()
		a.Index, a.MasterIndex, a.NetNsID, a.EncapType, a.Flags = index, master, -1, "ether", net.FlagUp
		return a
	}
	loop, tun, pair, filtering := attrs(1, 0), attrs(8, 0), attrs(9, 0), true
	loop.Flags |= net.FlagLoopback
	tun.EncapType = "none"
	uplink := attrs(10, 0)
	uplink.NetNsID = 3
	pair.ParentIndex = 11
	links := []netlink.Link{
		&netlink.Device{LinkAttrs: loop}, &netlink.Bridge{LinkAttrs: attrs(2, 0)}, &netlink.Bond{LinkAttrs: attrs(3, 0)},
		&netlink.Device{LinkAttrs: attrs(4, 3)}, &netlink.Device{LinkAttrs: attrs(5, 2)}, &netlink.Vlan{LinkAttrs: attrs(6, 0)},
		&netlink.GenericLink{LinkAttrs: attrs(7, 0), LinkType: "netkit"}, &netlink.Tuntap{LinkAttrs: tun}, &netlink.Veth{LinkAttrs: uplink},
	}
	surveyOf := func(links ...netlink.Link) (f found) {
		for _, l := range links {
			f.other(l, links)
		}
		return f
	}
	f := surveyOf(links...)
	if got, want := indexes(f.outside), []int{3, 5, 6, 7, 8, 10}; !slices.Equal(got, want) {
		t.Errorf("outside %v, want %v", got, want)
	}
	if want := []int{1, 2, 4}; !slices.Equal(f.others, want) || f.beyond != "" {
		t.Errorf("others %v, want %v; beyond %q, want none", f.others, want, f.beyond)
	}
	for _, p := range f.outside {
		if p.bare != (p.index == 8) || p.member != (p.index == 5) {
			t.Errorf("bare or member is wrong: %+v", p)
		}
	}
	end := attrs(11, 0)
	end.ParentIndex = 9
	two := []netlink.Link{&netlink.Veth{LinkAttrs: pair}, &netlink.Veth{LinkAttrs: end}}
	if f := surveyOf(two...); f.beyond == "" || len(f.outside) > 0 {
		t.Errorf("a veth pair with both ends on the node: %+v", f)
	}
	end.Flags = 0
	two[1] = &netlink.Veth{LinkAttrs: end}
	if f := surveyOf(two...); f.beyond != "" || len(f.outside) > 0 {
		t.Errorf("a veth pair of which one end is down: %+v", f)
	}
	if f := surveyOf(&netlink.Bridge{LinkAttrs: attrs(2, 0), VlanFiltering: &filtering}); f.beyond == "" {
		t.Error("a bridge that filters by VLAN is treated like other bridges")
	}
}

// The function wanted returns, for each interface that leads to no pod, its flags and the node's
// link-local addresses at it. For a port of a bridge, these are the addresses of the bridge.
func TestWantedOutside(t *testing.T) {
	f := found{
		outside: []port{{index: 1}, {index: 2, master: 9, member: true}, {index: 3, bare: true}},
		local:   map[int][]netip.Addr{1: addrs("fe80::1"), 9: addrs("fe80::9")},
	}
	st := wanted(f, nil, snapshotOf(t, ""))
	for index, want := range map[uint32]uint32{1: outsidePort, 2: outsidePort | memberPort, 3: outsidePort | barePort} {
		if got := st.ports[index].Flags; got != want {
			t.Errorf("interface %d has flags %d, want %d", index, got, want)
		}
	}
	for _, tt := range []struct {
		addr string
		port uint32
		want uint32
	}{{"fe80::1", 1, nodes}, {"fe80::9", 2, nodes}, {"fe80::1", 2, 0}, {"fe80::9", 1, 0}} {
		if got := st.own[place{netip.MustParseAddr(tt.addr).As16(), tt.port}]; got != tt.want {
			t.Errorf("%s at interface %d: %d, want %d", tt.addr, tt.port, got, tt.want)
		}
	}
}
