package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// networkDebounce is the pause between a change and the reading: a pod's interface and its
	// routes come within a few milliseconds. Until then, a pod that starts is not
	// expected.
	networkDebounce = 5 * time.Millisecond
	// pauseFactor is how much longer than a reading of the network the pause after it is: it
	// bounds the CPU on a node where pods come and go all the time. A reading takes some
	// 10 ms with 250 pods.
	pauseFactor = 4
	// resubscribeBackoff is the pause before a subscription that broke off is renewed.
	resubscribeBackoff = time.Second
)

// Network is the interfaces and routes of a network namespace.
type Network struct {
	Links  []Link
	Routes []Route
}

// Link is an interface.
type Link struct {
	Index  int
	Name   string
	Kind   string // as in "bridge" or "veth"
	Master int    // index of the bridge that it is a port of; 0 if none
	// InOtherNetns says that the other end is in another network namespace, and Namespace
	// which: interfaces with the same one lead to the same pod.
	InOtherNetns bool
	NetnsID      int
	// Uplink says that a route over it has a gateway, or leads everywhere.
	Uplink bool
	// CallIPTables and CallIP6Tables are a bridge's own settings that iptables sees
	// what it forwards, whatever the sysctls of all bridges say.
	CallIPTables, CallIP6Tables bool
}

// Route is a route to a neighbour, without a gateway.
type Route struct {
	To   netip.Prefix
	Link int
}

// ReadNetwork reads the interfaces and routes of the process's network namespace.
func ReadNetwork() (*Network, error) {
	links, err := netlink.LinkList()
	// A dump that was interrupted by a change is followed by the change's event.
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list this node's interfaces: %w", err)
	}
	n := new(Network)
	for _, l := range links {
		a := l.Attrs()
		n.Links = append(n.Links, Link{Index: a.Index, Name: a.Name, Kind: l.Type(), Master: a.MasterIndex, InOtherNetns: a.NetNsID >= 0, NetnsID: a.NetNsID})
	}
	if err := n.readBridges(); err != nil {
		return nil, err
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC, Type: unix.RTN_UNICAST}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list this node's routes: %w", err)
	}
	for _, r := range routes {
		n.addRoute(&r)
	}
	return n, nil
}

// addRoute takes a route without a gateway, and notes of all others over which
// interfaces they lead.
func (n *Network) addRoute(r *netlink.Route) {
	for _, hop := range r.MultiPath {
		n.setUplink(hop.LinkIndex)
	}
	var to netip.Prefix
	if r.Dst != nil {
		addr, _ := netip.AddrFromSlice(r.Dst.IP)
		if bits, size := r.Dst.Mask.Size(); size == addr.BitLen() {
			to = netip.PrefixFrom(addr, bits)
		}
	}
	if r.Gw != nil || r.Via != nil || !to.IsValid() || to.Bits() == 0 {
		n.setUplink(r.LinkIndex)
		return
	}
	if r.LinkIndex != 0 {
		n.Routes = append(n.Routes, Route{To: to, Link: r.LinkIndex})
	}
}

func (n *Network) setUplink(index int) {
	for i := range n.Links {
		n.Links[i].Uplink = n.Links[i].Uplink || n.Links[i].Index == index && index != 0
	}
}

// readBridges reads the bridges' own settings, which the library leaves out.
func (n *Network) readBridges() error {
	for i := range n.Links {
		l := &n.Links[i]
		if l.Kind != "bridge" {
			continue
		}
		req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
		msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
		msg.Index = int32(l.Index)
		req.AddData(msg)
		answers, err := req.Execute(unix.NETLINK_ROUTE, 0)
		if errors.Is(err, unix.ENODEV) {
			continue // it has gone, which an event tells
		}
		if err != nil {
			return fmt.Errorf("read the settings of bridge %s: %w", l.Name, err)
		}
		for _, m := range answers {
			if len(m) > unix.SizeofIfInfomsg {
				l.readSettings(m[unix.SizeofIfInfomsg:])
			}
		}
	}
	return nil
}

// readSettings reads a bridge's settings from the attributes of its link.
func (l *Link) readSettings(attrs []byte) {
	for _, path := range attributes(attrs, unix.IFLA_LINKINFO) {
		for _, data := range attributes(path, nl.IFLA_INFO_DATA) {
			for _, v := range attributes(data, nl.IFLA_BR_NF_CALL_IPTABLES) {
				l.CallIPTables = len(v) > 0 && v[0] != 0
			}
			for _, v := range attributes(data, nl.IFLA_BR_NF_CALL_IP6TABLES) {
				l.CallIP6Tables = len(v) > 0 && v[0] != 0
			}
		}
	}
}

// attributes are the values of the attributes of one type. What is malformed is left
// out.
func attributes(raw []byte, typ uint16) (values [][]byte) {
	all, err := nl.ParseRouteAttr(raw)
	if err != nil {
		return nil
	}
	for _, a := range all {
		if a.Attr.Type&nl.NLA_TYPE_MASK == typ {
			values = append(values, a.Value)
		}
	}
	return values
}

// FollowNetwork calls changed with the network of the process's namespace, and again
// soon after it changes, until ctx ends. It does not fail: without events, the network
// is read every minute.
func FollowNetwork(ctx context.Context, log *slog.Logger, changed func(*Network)) {
	events := make(chan struct{}, 1)
	var wait sync.WaitGroup
	defer wait.Wait()
	wait.Go(func() {
		all := func(netlink.LinkUpdate) bool { return true }
		follow(ctx, log, events, all, func(ctx context.Context, lost func(error)) (<-chan netlink.LinkUpdate, error) {
			c := make(chan netlink.LinkUpdate, 64)
			return c, netlink.LinkSubscribeWithOptions(c, ctx.Done(), netlink.LinkSubscribeOptions{ErrorCallback: lost})
		})
	})
	wait.Go(func() {
		follow(ctx, log, events, concerns, func(ctx context.Context, lost func(error)) (<-chan netlink.RouteUpdate, error) {
			c := make(chan netlink.RouteUpdate, 64)
			return c, netlink.RouteSubscribeWithOptions(c, ctx.Done(), netlink.RouteSubscribeOptions{ErrorCallback: lost})
		})
	})
	said := ""
	for ctx.Err() == nil {
		began := time.Now()
		n, err := ReadNetwork()
		switch {
		case err == nil:
			said = ""
			changed(n)
		case err.Error() != said:
			said = err.Error()
			log.Warn("this node's interfaces and routes are not known; those from before count", "err", err)
		}
		if !sleep(ctx, pauseFactor*time.Since(began)) {
			return
		}
		select {
		case <-ctx.Done():
		case <-events:
			sleep(ctx, networkDebounce)
		case <-time.After(resyncInterval):
		}
	}
}

// concerns reports whether a route that came or went may lead to pods, or the way to them
// out of the node. Routes by gateways, of which a node may learn very many, do not, but
// for that which leads everywhere.
func concerns(u netlink.RouteUpdate) bool {
	everywhere := u.Dst == nil || u.Dst.IP.IsUnspecified()
	return u.Route.Type == unix.RTN_UNICAST && (everywhere || u.Gw == nil && u.Via == nil && len(u.MultiPath) == 0)
}

// follow puts a token into events for what a subscription brings that matters, and subscribes again
// when it breaks off: the kernel ends one that lags behind. What was missed meanwhile
// counts as an event.
func follow[T any](ctx context.Context, log *slog.Logger, events chan<- struct{}, matters func(T) bool, subscribe func(context.Context, func(error)) (<-chan T, error)) {
	signal := func() {
		select {
		case events <- struct{}{}:
		default:
		}
	}
	for ctx.Err() == nil {
		// Its end closes the socket, which a subscription that breaks off leaves open.
		inner, end := context.WithCancel(ctx)
		c, err := subscribe(inner, func(err error) {
			if inner.Err() == nil {
				log.Debug("changes of this node's network were missed; reading all of it", "err", err)
			}
		})
		if err != nil {
			log.Warn("changes of this node's interfaces and routes are seen late", "err", err, "every", resyncInterval)
		}
		signal()
		for open := err == nil; open; {
			select {
			case <-ctx.Done():
				open = false
			case event, ok := <-c:
				if open = ok; !ok || matters(event) {
					signal()
				}
			}
		}
		end()
		sleep(ctx, resubscribeBackoff)
	}
}

// sleep is false if ctx has ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
