package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// BridgeDevice is the name of the bridge that connects the pods of a node with Options.Bridged.
const BridgeDevice = "br0"

// bridgeSettings make bridged frames pass through iptables, as Kubernetes requires of every
// node. They also disable ICMP redirects: while the kernel resolves the link address of the
// redirect's receiver, NFQUEUE drops the packet that caused the redirect (nf_ct_drop_unconfirmed).
var bridgeSettings = []string{
	"net/ipv4/conf/all/send_redirects", "0", "net/ipv4/conf/default/send_redirects", "0",
	"net/bridge/bridge-nf-call-iptables", "1", "net/bridge/bridge-nf-call-ip6tables", "1",
}

// bridge connects the pods of a node. On the bridge, the node has the first address of each
// range, which is the pods' gateway.
type bridge struct {
	link     netlink.Link
	gateways [2]netip.Addr
	ranges   [2]netip.Prefix
}

// addBridge creates the node's bridge.
func (n *Node) addBridge() error {
	mac := net.HardwareAddr{0x02, 0x77, 0, 0, 0, 1} // fixed, because the kernel's default changes with the ports
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: BridgeDevice, Index: n.lab.nextIndex(), HardwareAddr: mac}}
	if err := n.ns.do(func() error { return writeSettings(bridgeSettings...) }); err != nil {
		return err
	}
	if err := n.ns.link.LinkAdd(link); err != nil {
		return err
	}
	made, err := n.ns.link.LinkByName(BridgeDevice)
	if err != nil {
		return err
	}
	if err := n.ns.setUp(made); err != nil {
		return err
	}
	b := &bridge{link: made, ranges: [2]netip.Prefix{n.Pods4, n.Pods6}}
	for i, pods := range b.ranges {
		b.gateways[i] = pods.Addr().Next()
		n.lab.used[b.gateways[i]] = true
		if err := n.ns.addPrefix(made, netip.PrefixFrom(b.gateways[i], pods.Bits())); err != nil {
			return err
		}
	}
	n.bridge = b
	return nil
}

// joinBridge makes the host's link a port of its router's bridge, so that the host is on the
// same network as the hosts at the other ports.
func (h *Host) joinBridge(router *Host) error {
	b := router.bridge
	if err := router.ns.link.LinkSetMaster(h.uplink.remote, b.link); err != nil {
		return fmt.Errorf("make %s a port of %s: %w", h.RouterDevice(), BridgeDevice, err)
	}
	for i, a := range h.Addrs() {
		bits := b.ranges[i].Bits()
		if !b.ranges[i].Contains(a) {
			bits = a.BitLen()
		}
		if err := errors.Join(h.ns.addPrefix(h.uplink.inside, netip.PrefixFrom(a, bits)), b.routeHere(h, netip.PrefixFrom(a, a.BitLen()))); err != nil {
			return err
		}
		if err := h.ns.addRoute(h.uplink.inside, netip.PrefixFrom(zero(a), 0), b.gateways[i], a); err != nil {
			return err
		}
	}
	return nil
}

// routeHere makes the node route a range to the bridge, unless the range is already on the
// bridge.
func (b *bridge) routeHere(h *Host, to netip.Prefix) error {
	if b.ranges[0].Contains(to.Addr()) || b.ranges[1].Contains(to.Addr()) || to.Addr().IsLinkLocalUnicast() && to.Addr().Is6() {
		return nil
	}
	source := b.gateways[0]
	if to.Addr().Is6() {
		source = b.gateways[1]
	}
	return h.uplink.router.ns.addRoute(b.link, to, netip.Addr{}, source)
}

// RouterMAC returns the link address at which the host's router receives packets to forward.
func (h *Host) RouterMAC() net.HardwareAddr {
	if b := h.uplink.router.bridge; b != nil {
		return b.link.Attrs().HardwareAddr
	}
	return h.uplink.remote.Attrs().HardwareAddr
}

// MAC returns the link address of the host.
func (h *Host) MAC() net.HardwareAddr { return h.uplink.inside.Attrs().HardwareAddr }

// SendFrame sends a frame on the host's link, unchanged. The frame begins with its link
// header.
func (h *Host) SendFrame(frame []byte) error {
	i, err := h.Inject()
	if err == nil {
		err = errors.Join(i.Send(frame), i.Close())
	}
	return err
}

// Injector sends many frames on a host's link.
type Injector struct {
	host *Host
	fd   int
}

// Inject opens an injector. The caller must close it.
func (h *Host) Inject() (*Injector, error) {
	fd, err := h.packetSocket(unix.SOCK_RAW, 0)
	if err != nil {
		return nil, fmt.Errorf("send frames from %s: %w", h.Name, err)
	}
	return &Injector{h, fd}, nil
}

// Send sends a frame, unchanged. The frame begins with its link header.
func (i *Injector) Send(frame []byte) error {
	to := &unix.SockaddrLinklayer{Ifindex: i.host.uplink.inside.Attrs().Index}
	for {
		switch err := unix.Sendto(i.fd, frame, 0, to); err {
		case nil:
			return nil
		case unix.EAGAIN, unix.ENOBUFS, unix.EINTR:
			runtime.Gosched() // the link's buffer is full; try again
		default:
			return fmt.Errorf("send a frame from %s: %w", i.host.Name, err)
		}
	}
}

// Close closes the injector.
func (i *Injector) Close() error { return unix.Close(i.fd) }
