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
	// networkDebounce is the pause between an event and the reading of the network. A pod's
	// interface and its routes appear within a few milliseconds, so that after the pause one
	// reading covers them all. The pause delays the detection of starting pods.
	networkDebounce = 5 * time.Millisecond
	// pauseFactor × (duration of a reading of the network) is the pause after that reading.
	// So readings take at most 1/5 of the time, even on a node where pods come and go all the
	// time. A reading takes about 10 ms with 250 pods.
	pauseFactor = 4
	// resubscribeBackoff is the pause before a broken subscription is opened again.
	resubscribeBackoff = time.Second
)

// Network contains the interfaces and routes of a network namespace.
type Network struct {
	Links  []Link
	Routes []Route
}

// Link is an interface.
type Link struct {
	Index  int
	Name   string
	Kind   string // for example "bridge" or "veth"
	Master int    // index of the bridge that has this interface as a port; 0 if none
	// InOtherNetns is set if the interface is one end of a pair, and the other end is in another
	// network namespace. NetnsID identifies that namespace: interfaces with the same ID lead to
	// the same pod.
	InOtherNetns bool
	NetnsID      int
	// Uplink is set if a route over the interface has a gateway or is a default route.
	Uplink bool
	// CallIPTables and CallIP6Tables are a bridge's own settings. If set, the bridge passes
	// its packets to iptables, regardless of the sysctls for all bridges.
	CallIPTables, CallIP6Tables bool
}

// Route is a route without a gateway: its destinations are neighbors on the link.
type Route struct {
	To   netip.Prefix
	Link int // index of the interface of the route
}

// ReadNetwork reads the interfaces and routes of the process's network namespace. It may miss a
// change that happens meanwhile, but an event about that change follows.
func ReadNetwork() (*Network, error) {
	links, err := netlink.LinkList()
	// An interrupted dump is not an error: an event follows about the change that interrupted
	// the dump.
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

// addRoute adds r to n.Routes if it has one interface and no gateway. Otherwise, it only marks
// the interfaces of the route as uplinks.
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

// readBridges reads the settings of each bridge, which the netlink library does not return.
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
			continue // the bridge has been deleted, and an event follows
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

// attributes returns the values of all attributes of one type, or nil if raw is malformed.
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

// FollowNetwork calls changed() with the network of the process's namespace, and again soon
// after each change, until ctx ends. It does not fail: if it receives no events, it still reads
// the network every minute.
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
	logged := ""
	for ctx.Err() == nil {
		began := time.Now()
		n, err := ReadNetwork()
		switch {
		case err == nil:
			logged = ""
			changed(n)
		case err.Error() != logged:
			logged = err.Error()
			log.Warn("cannot read this node's interfaces and routes; the last known ones stay in use", "err", err)
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

// concerns reports whether a route is a default route or has no gateway: a route without a
// gateway may lead to pods. The agent ignores events of all other routes, because a routing
// daemon may cause very many.
func concerns(u netlink.RouteUpdate) bool {
	everywhere := u.Dst == nil || u.Dst.IP.IsUnspecified()
	return u.Route.Type == unix.RTN_UNICAST && (everywhere || u.Gw == nil && u.Via == nil && len(u.MultiPath) == 0)
}

// follow calls matters() with each event that it receives. If matters() returns true, follow
// puts a token into the channel "events", unless the channel is full. If follow reads too
// slowly, the kernel ends the subscription. follow then subscribes again, and puts one token
// for all events that it may have missed.
func follow[T any](ctx context.Context, log *slog.Logger, events chan<- struct{}, matters func(T) bool, subscribe func(context.Context, func(error)) (<-chan T, error)) {
	signal := func() {
		select {
		case events <- struct{}{}:
		default:
		}
	}
	for ctx.Err() == nil {
		// Canceling the context "inner" closes the socket, which a broken subscription leaves
		// open.
		inner, cancel := context.WithCancel(ctx)
		c, err := subscribe(inner, func(err error) {
			if inner.Err() == nil {
				log.Debug("changes of this node's network missed; reading all of it", "err", err)
			}
		})
		if err != nil {
			log.Warn("changes of this node's interfaces and routes are seen late", "err", err, "interval_ms", resyncInterval.Milliseconds())
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
		cancel()
		sleep(ctx, resubscribeBackoff)
	}
}

// sleep waits for d. It returns false if ctx ends first.
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
