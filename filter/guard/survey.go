package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	wire "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// found is the result of a survey of the node.
type found struct {
	ports   []port // pods' interfaces, and tunnels
	outside []port // the node's other interfaces at which packets may come in
	others  []int  // indexes of the remaining interfaces
	node    addresses
	local   map[int][]netip.Addr // the node's link-local IPv6 addresses, by interface
	all     addresses            // broadcast addresses of the node's networks
	peers   addresses            // other ends of the node's tunnels
	tunnels []uint16             // UDP ports of the node's tunnels
	// beyond is empty if the programs can detect every packet that comes from elsewhere with the
	// node's source. Otherwise, it is the reason why they cannot do so on this node.
	beyond string
}

// port is the node's end of a veth pair whose other end is in another network namespace, or a
// tunnel, or one of found.outside.
type port struct {
	index, master int
	name          string
	tunnel        bool
	bare, member  bool         // set only in found.outside; bare: frames have no Ethernet header; member: port of a bridge
	netns         int          // the kernel's ID of the other end's namespace
	routed        []netip.Addr // addresses with a host route to the port
	behind        []netip.Addr // addresses of the veth pair's other end
	beside        []netip.Addr // addresses of all other interfaces in the other end's network namespace
}

// survey reads the node's interfaces, addresses and routes.
func survey() (found, error) {
	f := found{node: addresses{}, all: addresses{}, peers: addresses{}, local: map[int][]netip.Addr{}}
	links, err := netlink.LinkList()
	if err = interrupted(err); err != nil {
		return f, fmt.Errorf("list the node's interfaces: %w", err)
	}
	routes, uplinks, err := hostRoutes()
	if err != nil {
		return f, err
	}
	spaces := make(map[int]map[int][]netip.Addr)
	for _, l := range links {
		a := l.Attrs()
		p := port{index: a.Index, master: a.MasterIndex, name: a.Name, netns: a.NetNsID, routed: routes[a.Index]}
		switch {
		case f.tunnel(l):
			p.tunnel = true
		case l.Type() != "veth" || a.NetNsID < 0 || uplinks[p.index]:
			f.other(l, links) // the uplink of a node that is a container is a veth too
			continue
		default:
			if spaces[p.netns] == nil {
				// An error leaves the port without addresses. It is expected if the namespace is
				// about to end, and then harmless.
				spaces[p.netns], _ = elsewhere(p.netns)
			}
			for index, addrs := range spaces[p.netns] {
				if index == a.ParentIndex {
					p.behind = addrs
				} else {
					p.beside = append(p.beside, addrs...)
				}
			}
		}
		f.ports = append(f.ports, p)
	}
	for _, ports := range [][]port{f.ports, f.outside} {
		slices.SortFunc(ports, func(a, b port) int { return a.index - b.index })
	}
	return f, errors.Join(f.own(), f.localRoutes())
}

// other records an interface that leads neither to a pod nor into a tunnel.
func (f *found) other(l netlink.Link, all []netlink.Link) {
	a, master, up := l.Attrs(), "", false
	for _, one := range all {
		switch one.Attrs().Index {
		case a.MasterIndex:
			master = one.Type()
		case a.ParentIndex: // if l is one end of a veth pair, this is the other end
			up = one.Attrs().Flags&l.Attrs().Flags&net.FlagUp != 0
		}
	}
	bridge, is := l.(*netlink.Bridge)
	switch {
	case is && bridge.VlanFiltering != nil && *bridge.VlanFiltering:
		// From outside, the programs do not check frames with a VLAN ID. But such a bridge may
		// remove the tag and pass the frame to the node.
		f.beyond = fmt.Sprintf("bridge %s filters by VLAN", a.Name)
	case l.Type() == "veth" && a.NetNsID < 0 && !up:
		// Not in use yet: one end may be about to move to a pod.
	case l.Type() == "veth" && a.NetNsID < 0:
		// Packets that the node sends at one end come in at the other end with the node's own
		// source. This source is not forged.
		f.beyond = fmt.Sprintf("both ends of %s are in the node's network namespace", a.Name)
	case is, a.Flags&net.FlagLoopback != 0, master == "bond", master == "team":
		// A frame at a bridge has passed a port of the bridge before, and is checked there. A
		// frame at a member of a bond or team passes the bond or team afterwards, and is checked
		// there. All frames on loopback come from the node itself.
	default:
		f.outside = append(f.outside, port{index: a.Index, master: a.MasterIndex, name: a.Name, bare: a.EncapType != "ether", member: master == "bridge"})
		return
	}
	f.others = append(f.others, a.Index)
}

// tunnel reports whether an interface is a tunnel, which decapsulates packets. If so, it records
// the tunnel's UDP port and peers.
func (f *found) tunnel(l netlink.Link) bool {
	switch t := l.(type) {
	case *netlink.Vxlan:
		f.tunnels = append(f.tunnels, uint16(t.Port))
		f.peers.add(t.Group)
	case *netlink.Geneve:
		f.tunnels = append(f.tunnels, t.Dport)
		f.peers.add(t.Remote)
	case *netlink.Iptun:
		f.peers.add(t.Remote)
	case *netlink.Sittun:
		f.peers.add(t.Remote)
	case *netlink.Ip6tnl:
		f.peers.add(t.Remote)
	case *netlink.Gretun:
		f.peers.add(t.Remote)
	case *netlink.Gretap:
		f.peers.add(t.Remote)
	default:
		return false
	}
	// The forwarding table lists further peers, such as the other nodes of an overlay.
	entries, err := netlink.NeighList(l.Attrs().Index, unix.AF_BRIDGE)
	if interrupted(err) == nil {
		for _, e := range entries {
			f.peers.add(e.IP)
		}
	}
	return true
}

// add adds an address, unless it is empty, invalid or unspecified.
func (a addresses) add(ip []byte) {
	if addr, ok := netip.AddrFromSlice(ip); ok && !addr.IsUnspecified() {
		a[addr.Unmap()] = true
	}
}

// own records the node's addresses, including loopback, and its networks' broadcast addresses.
func (f *found) own() error {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err = interrupted(err); err != nil {
		return fmt.Errorf("list the node's addresses: %w", err)
	}
	for _, a := range list {
		f.node.add(a.IP)
		if addr, ok := netip.AddrFromSlice(a.IP); ok && addr.Is6() && addr.IsLinkLocalUnicast() {
			f.local[a.LinkIndex] = append(f.local[a.LinkIndex], addr)
		}
		// A network has up to three broadcast addresses: the configured one, the last address,
		// and the first address, which is an obsolete form (RFC 1122, 3.3.6).
		f.all.add(a.Broadcast)
		if ones, bits := a.Mask.Size(); bits == 32 && ones < 31 {
			f.all.add(a.IP.Mask(a.Mask))
			f.all.add(last(a.IPNet))
		}
	}
	return nil
}

// localRoutes adds the destinations of local routes to the node's addresses, because iptables'
// match addrtype (LOCAL) includes them too. The programs can look up only single addresses. So
// localRoutes sets f.beyond if a destination is a range and not in 127.0.0.0/8.
func (f *found) localRoutes() error {
	all, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
	if err = interrupted(err); err != nil {
		return fmt.Errorf("list the node's local routes: %w", err)
	}
	for _, r := range all {
		if r.Dst == nil {
			f.beyond = "all addresses are the node's by a local route"
			continue
		}
		ones, bits := r.Dst.Mask.Size()
		switch addr, _ := netip.AddrFromSlice(r.Dst.IP); {
		case ones == bits:
			f.node.add(r.Dst.IP)
		case addr.Unmap().Is4() && addr.Unmap().IsLoopback():
		default:
			f.beyond = fmt.Sprintf("%s is the node's by a local route", r.Dst)
		}
	}
	return nil
}

// last returns the broadcast address of an IPv4 network.
func last(n *net.IPNet) net.IP {
	ip := slices.Clone(n.IP.To4())
	for i := range ip {
		ip[i] |= ^n.Mask[i]
	}
	return ip
}

// hostRoutes returns, by interface index, the addresses with a host route to the interface, and the
// interfaces that lead to a gateway.
func hostRoutes() (routes map[int][]netip.Addr, uplinks map[int]bool, err error) {
	all, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err = interrupted(err); err != nil {
		return nil, nil, fmt.Errorf("list the node's routes: %w", err)
	}
	routes, uplinks = make(map[int][]netip.Addr), make(map[int]bool)
	for _, r := range all {
		if r.Gw != nil || r.Via != nil {
			uplinks[r.LinkIndex] = true
		}
		for _, hop := range r.MultiPath {
			uplinks[hop.LinkIndex] = true
		}
		if r.Dst == nil || r.Gw != nil || r.Type != unix.RTN_UNICAST {
			continue
		}
		if ones, bits := r.Dst.Mask.Size(); ones != bits {
			continue
		}
		if addr, ok := netip.AddrFromSlice(r.Dst.IP); ok {
			routes[r.LinkIndex] = append(routes[r.LinkIndex], addr.Unmap())
		}
	}
	return routes, uplinks, nil
}

// interrupted returns err, or nil if err only means that something changed during the dump. An
// event follows such a change, and makes the guard survey the node again.
func interrupted(err error) error {
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil
	}
	return err
}

// elsewhere returns the addresses in another network namespace, by interface, except loopback
// addresses. The kernel requires administrative privilege in that namespace.
func elsewhere(netns int) (map[int][]netip.Addr, error) {
	c, err := wire.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetOption(wire.GetStrictCheck, true); err != nil { // otherwise the kernel ignores the namespace
		return nil, err
	}
	attrs := wire.NewAttributeEncoder()
	attrs.Int32(unix.IFA_TARGET_NETNSID, int32(netns))
	encoded, err := attrs.Encode()
	if err != nil {
		return nil, err
	}
	answers, err := c.Execute(wire.Message{
		Header: wire.Header{Type: unix.RTM_GETADDR, Flags: wire.Request | wire.Dump},
		Data:   append(make([]byte, unix.SizeofIfAddrmsg), encoded...),
	})
	if err != nil {
		return nil, err
	}
	found := make(map[int][]netip.Addr)
	for _, m := range answers {
		if index, addr := ifAddress(m.Data); addr.IsValid() && !addr.IsLoopback() {
			found[index] = append(found[index], addr)
		}
	}
	return found, nil
}

// ifAddress decodes a message about an interface's address; addr is invalid if it has none.
func ifAddress(data []byte) (index int, addr netip.Addr) {
	if len(data) < unix.SizeofIfAddrmsg {
		return 0, addr
	}
	attrs, err := wire.NewAttributeDecoder(data[unix.SizeofIfAddrmsg:])
	if err != nil {
		return 0, addr
	}
	for attrs.Next() {
		switch {
		case attrs.Type() == unix.IFA_LOCAL, attrs.Type() == unix.IFA_ADDRESS && !addr.IsValid():
			if a, ok := netip.AddrFromSlice(attrs.Bytes()); ok {
				addr = a.Unmap()
			}
		}
	}
	return int(binary.NativeEndian.Uint32(data[4:])), addr
}
