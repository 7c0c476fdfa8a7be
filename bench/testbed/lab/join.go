package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The gateways of every pod: the addresses of the router's end of each pod's link. They can be
// the same on all links, because they are used only between the two ends of a link.
var (
	gateway4 = netip.MustParseAddr("169.254.1.1")
	gateway6 = netip.MustParseAddr("fe80::1")
)

// Device is the name of the interface that connects a host to its router.
const Device = "eth0"

// uplink is a veth pair between a host and its router.
type uplink struct {
	router *Host
	inside netlink.Link // the host's end, eth0
	remote netlink.Link // the router's end
}

// RouterDevice returns the name of the interface at the router's end of the host's link, for
// rules that match an interface.
func (h *Host) RouterDevice() string { return h.uplink.remote.Attrs().Name }

// join connects a host to its router. The host gets addresses and a default route, and the
// router gets a route to each address.
func (h *Host) join(router *Host) error {
	name := fmt.Sprintf("to-%x", h.IPv4.AsSlice()) // a name of an interface has at most 15 bytes
	if err := router.ns.link.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: name, Index: h.lab.nextIndex()}, PeerName: Device, PeerNamespace: netlink.NsFd(h.ns.fd),
	}); err != nil {
		return fmt.Errorf("add a veth pair: %w", err)
	}
	var err error
	h.uplink.router = router
	if h.uplink.remote, err = router.ns.link.LinkByName(name); err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if h.uplink.inside, err = h.ns.link.LinkByName(Device); err != nil {
		return fmt.Errorf("find %s: %w", Device, err)
	}
	if err := errors.Join(router.ns.setUp(h.uplink.remote), h.ns.setUp(h.uplink.inside)); err != nil {
		return err
	}
	if err := errors.Join(router.ns.awaitUp(h.uplink.remote), h.ns.awaitUp(h.uplink.inside)); err != nil {
		return err
	}
	if router.bridge != nil {
		return h.joinBridge(router)
	}
	for _, f := range []struct{ addr, gateway netip.Addr }{
		{h.IPv4, h.gateway(gateway4, router.IPv4)},
		{h.IPv6, h.gateway(gateway6, router.IPv6)},
	} {
		if err := router.ns.addAddr(h.uplink.remote, f.gateway); err != nil {
			return err
		}
		if err := h.ns.addAddr(h.uplink.inside, f.addr); err != nil {
			return err
		}
		if err := h.ns.addRoute(h.uplink.inside, netip.PrefixFrom(zero(f.addr), 0), f.gateway, f.addr); err != nil {
			return err
		}
		if err := h.routeHere(netip.PrefixFrom(f.addr, f.addr.BitLen())); err != nil {
			return err
		}
	}
	return nil
}

func (n *namespace) setUp(dev netlink.Link) error {
	if err := n.link.LinkSetUp(dev); err != nil {
		return fmt.Errorf("set %s up: %w", dev.Attrs().Name, err)
	}
	return nil
}

// awaitUp waits until an interface is operational. The kernel detects in the background
// that both ends of the link are up, and drops packets until then.
func (n *namespace) awaitUp(dev netlink.Link) error {
	return await(dev.Attrs().Name+" is up", func() (bool, error) {
		now, err := n.link.LinkByIndex(dev.Attrs().Index)
		return err == nil && now.Attrs().OperState == netlink.OperUp, err
	})
}

// awaitAddr waits until an address that was added to an interface is in use. For IPv6, the
// kernel does this in the background, even if duplicate address detection is off.
func (n *namespace) awaitAddr(dev netlink.Link, a netip.Addr) error {
	return await("address "+a.String()+" is in use", func() (bool, error) {
		routes, err := n.link.RouteGetWithOptions(a.AsSlice(), &netlink.RouteGetOptions{OifIndex: dev.Attrs().Index})
		// These errors mean that there is no route yet.
		if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) {
			return false, nil
		}
		return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL, err
	})
}

// await waits until a condition holds.
func await(what string, holds func() (bool, error)) error {
	const bound = time.Minute // the wait usually takes milliseconds
	for end := time.Now().Add(bound); ; time.Sleep(100 * time.Microsecond) {
		switch ok, err := holds(); {
		case err != nil:
			return fmt.Errorf("wait until %s: %w", what, err)
		case ok:
			return nil
		case time.Now().After(end):
			return fmt.Errorf("wait until %s: not so after %v", what, bound)
		}
	}
}

// nextIndex returns an interface index for the router's end of a link. It differs from the
// index of the host's end. If both ends of a veth pair have the same index, the kernel treats
// link events as not urgent, and may take a second to see that the link is up. Until then,
// IPv6 addresses do not answer.
func (l *Lab) nextIndex() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.uplinks++
	return 1000 + l.uplinks
}

// gateway returns the address at which a host reaches its router: the second argument if the
// host's router is the lab's, otherwise the first, which is the pods' gateway. A node cannot
// use the pods' gateway, because the node itself has this address.
func (h *Host) gateway(pods, router netip.Addr) netip.Addr {
	if h.uplink.router == h.lab.router {
		return router
	}
	return pods
}

// AddAddr gives the host one more address, which may be any address that no open host has.
// Packets have this source only if their socket is bound to it.
func (h *Host) AddAddr(a netip.Addr) error {
	h.lab.mu.Lock()
	if h.lab.used[a] {
		h.lab.mu.Unlock()
		return fmt.Errorf("add an address to %s: %s is taken: give another, or close the host that has it", h.Name, a)
	}
	h.lab.used[a] = true
	h.recordAddr(a)
	h.lab.mu.Unlock()
	if err := h.ns.addAddr(h.uplink.inside, a); err != nil {
		return fmt.Errorf("on %s: %w", h.Name, err)
	}
	return h.routeHere(netip.PrefixFrom(a, a.BitLen()))
}

// AddRange gives the host all addresses of a range, by one local route, and its router a route to
// the range through the host. So the host may stand for thousands of pods or outside hosts. Unlike
// with AddAddr, several hosts of different routers may have the same range. Packets have a source of
// the range only if their socket is bound to it.
func (h *Host) AddRange(p netip.Prefix) error {
	lo, err := h.ns.link.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("on %s: find lo: %w", h.Name, err)
	}
	route := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: ipNet(p), Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST}
	if err := h.ns.link.RouteAdd(route); err != nil {
		return fmt.Errorf("on %s: add local range %s: %w", h.Name, p, err)
	}
	if p.Addr().Is6() {
		// For IPv6, a local route is not enough to bind a socket.
		if err := h.Do(func() error { return writeSettings("net/ipv6/ip_nonlocal_bind", "1") }); err != nil {
			return err
		}
	}
	return h.routeHere(p)
}

// addAddr adds an address without duplicate address detection, so that it is usable at once.
func (n *namespace) addAddr(dev netlink.Link, a netip.Addr) error {
	return n.addPrefix(dev, netip.PrefixFrom(a, a.BitLen()))
}

// addPrefix is like addAddr for the address of p. It also makes the whole range p reachable on
// the link.
func (n *namespace) addPrefix(dev netlink.Link, p netip.Prefix) error {
	a := p.Addr()
	addr := &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD}
	if a.IsLinkLocalUnicast() {
		addr.Scope = unix.RT_SCOPE_LINK
	}
	if a.Is6() && a.IsLinkLocalUnicast() {
		addr.Mask = net.CIDRMask(64, 128)
	}
	if err := n.link.AddrAdd(dev, addr); err != nil {
		return fmt.Errorf("add address %s: %w", a, err)
	}
	return n.awaitAddr(dev, a)
}

// addRoute adds a route through a device. Without a gateway, the destination is on the link
// itself. source is the source address of sockets that are not bound to an address.
func (n *namespace) addRoute(dev netlink.Link, to netip.Prefix, gateway, source netip.Addr) error {
	r := &netlink.Route{LinkIndex: dev.Attrs().Index, Dst: ipNet(to), Src: source.AsSlice()}
	if gateway.IsValid() {
		r.Gw, r.Flags = gateway.AsSlice(), int(netlink.FLAG_ONLINK)
	} else if to.Addr().Is4() {
		r.Scope = netlink.SCOPE_LINK
	}
	if err := n.link.RouteAdd(r); err != nil {
		return fmt.Errorf("add route to %s: %w", to, err)
	}
	return nil
}

// routeHere makes the host's router send packets for a range to the host. If the host is a
// node, the range can be reached from the whole lab.
func (h *Host) routeHere(to netip.Prefix) error {
	if b := h.uplink.router.bridge; b != nil {
		return b.routeHere(h, to)
	}
	source := h.uplink.router.IPv4
	if to.Addr().Is6() {
		source = h.uplink.router.IPv6
	}
	via := netip.Addr{}
	if to.Bits() < to.Addr().BitLen() { // the host is the router of the range
		if via = h.IPv4; to.Addr().Is6() {
			via = h.IPv6
		}
	}
	return h.uplink.router.ns.addRoute(h.uplink.remote, to, via, source)
}

// removeLink removes the link to a host at once. Otherwise the kernel would remove the link only
// some time after the host's namespace has ended. Until then the router would keep its route to
// the host, which would conflict with the route to a new host with the same address.
func (w uplink) removeLink() error {
	if w.remote == nil || !w.router.ns.fd.IsOpen() {
		return nil
	}
	if err := w.router.ns.link.LinkDel(w.remote); err != nil {
		return fmt.Errorf("remove %s: %w", w.remote.Attrs().Name, err)
	}
	return nil
}

// ipNet returns the prefix in netlink's form.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// zero returns the unspecified address of the family of a.
func zero(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
