// Package lab builds a small network in network namespaces, so that real packets
// can be sent between pods without a cluster.
//
//	pod web ── eth0 ┐                                   ┌ eth0 ── outside host
//	pod db  ── eth0 ┼── node-1 ── eth0 ──┐         ┌────┘
//	pod api ── eth0 ┘                    ├─ router ┤
//	pod far ── eth0 ─── node-2 ── eth0 ──┘         └───── eth0 ── outside host
//
// Pods are connected to their node as the ptp CNI plugin does it: by a veth pair, with a /32
// and a /128 in the pod, a default route to the node's end, and a route for each pod on the
// node. Nodes and outside hosts are connected in the same way to the lab's router. The router
// has a route to the pods of each node, and is not part of any test. There is no address
// translation. A test that needs a Service or masquerading adds it with iptables.
//
// All namespaces are anonymous. A namespace is kept alive only by file descriptors of this
// process, and by the processes started in it, which are killed when this process dies. So
// nothing is left behind, even after SIGKILL. The machine's own network is neither used nor
// changed.
//
// A lab needs root. A node with six pods is ready in about 40 ms.
package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
)

// The addresses of the lab, from ranges for documentation and private use (RFC 5737, 3849,
// 1918, 4193). Nodes and outside hosts share one range. The pods of node i, counted from 0,
// have addresses of 10.77.i.0/24 and fd00:77:0:i::/64.
var (
	Hosts4 = netip.MustParsePrefix("192.0.2.0/24")
	Hosts6 = netip.MustParsePrefix("2001:db8::/64")
	Pods4  = netip.MustParsePrefix("10.77.0.0/16")
	Pods6  = netip.MustParsePrefix("fd00:77::/48")
)

// maxNodes bounds the number of nodes. Each node has its own range of pod addresses.
const maxNodes = 256

// Options are the size and form of a lab.
type Options struct {
	Nodes int // 0 means one
	// Bridged connects the pods of a node by a Linux bridge, as the bridge CNI plugin does,
	// instead of by a route to each pod.
	Bridged bool
	// InOrder makes packets arrive in the order in which they were sent. Without it, the kernel
	// handles a packet on the CPU that sent it, and so a packet can overtake another when its
	// sender moves to another CPU. With it, one CPU handles the packets of all links, which
	// costs throughput. It needs Linux 6.3 and has no effect on older kernels.
	InOrder bool
}

// Lab is a network of nodes, pods and outside hosts. Its methods may be called concurrently.
type Lab struct {
	// Nodes are named node-1, node-2 and so on.
	Nodes []*Node
	// Outside is the first outside host, named "outside". It belongs to no node and no cluster,
	// and every node routes to it.
	Outside *Host

	router    *Host
	inOrder   bool
	datagrams atomic.Uint32 // number of source ports that Connect has tried for datagrams

	closing sync.Mutex

	mu      sync.Mutex
	hosts   []*Host
	used    map[netip.Addr]bool
	uplinks int // number of links created until now
}

// Node is a host that routes for its pods. The first node has the addresses 192.0.2.1 and
// 2001:db8::1, and the other nodes have the addresses that follow. Commands and functions that
// run on a node find the node's own BPF file system at /sys/fs/bpf.
type Node struct {
	*Host
	// Pods4 and Pods6 are the ranges from which pods get their addresses.
	Pods4, Pods6 netip.Prefix
}

// hostSettings are the kernel settings of every host. Addresses must be usable at once,
// without duplicate address detection. ICMP errors must be sent without a rate limit:
// otherwise, when a test probes a closed port twice, "refused" becomes "timed out".
var hostSettings = []string{
	"net/ipv6/conf/all/disable_ipv6", "0", "net/ipv6/conf/default/disable_ipv6", "0",
	"net/ipv6/conf/default/accept_dad", "0", "net/ipv6/conf/default/accept_ra", "0",
	"net/ipv4/icmp_ratelimit", "0", "net/ipv6/icmp/ratelimit", "0",
}

// routerSettings are the kernel settings of routers. Reverse path filtering is loose, as
// most network plugins need it.
var routerSettings = append(slices.Clone(hostSettings),
	"net/ipv4/ip_forward", "1", "net/ipv6/conf/all/forwarding", "1",
	"net/ipv4/conf/all/rp_filter", "2", "net/ipv4/conf/default/rp_filter", "2",
)

// firstCPU is the kernel setting that makes the first CPU handle all packets that a host receives.
// It is empty if the kernel does not have the setting.
var firstCPU = func() []string {
	const mask = "net/core/rps_default_mask" // since Linux 6.3
	if _, err := os.Stat("/proc/sys/" + mask); err != nil {
		return nil
	}
	return []string{mask, "1"}
}()

// New builds a lab with its nodes and one outside host, and no pods. It fails without root. The
// caller must Close it.
func New(opts Options) (*Lab, error) {
	l := &Lab{used: make(map[netip.Addr]bool), inOrder: opts.InOrder}
	if err := l.build(max(opts.Nodes, 1), opts.Bridged); err != nil {
		return nil, errors.Join(fmt.Errorf("build the lab: %w", err), l.Close())
	}
	return l, nil
}

func (l *Lab) build(nodes int, bridged bool) (err error) {
	if nodes > maxNodes {
		return fmt.Errorf("%d nodes: give 1 to %d", nodes, maxNodes)
	}
	if l.router, err = l.add("router", routerSettings); err != nil {
		return err
	}
	l.router.IPv4, l.router.IPv6 = nth(Hosts4, 254), nth(Hosts6, 254)
	l.used[l.router.IPv4], l.used[l.router.IPv6] = true, true
	for i := range nodes {
		if err := l.addNode(i, bridged); err != nil {
			return err
		}
	}
	l.Outside, err = l.AddOutside("outside")
	return err
}

func (l *Lab) addNode(i int, bridged bool) error {
	h, err := l.addHost(l.router, fmt.Sprintf("node-%d", i+1), Hosts4, Hosts6, routerSettings)
	if err != nil {
		return err
	}
	if err := h.ns.ownBPF(); err != nil {
		return err
	}
	v4, v6 := Pods4.Addr().As4(), Pods6.Addr().As16()
	v4[2], v6[7] = byte(i), byte(i)
	n := &Node{h, netip.PrefixFrom(netip.AddrFrom4(v4), 24), netip.PrefixFrom(netip.AddrFrom16(v6), 64)}
	for _, pods := range []netip.Prefix{n.Pods4, n.Pods6} {
		if err := h.routeHere(pods); err != nil {
			return err
		}
	}
	if bridged {
		if err := n.addBridge(); err != nil {
			return fmt.Errorf("add a bridge to %s: %w", n.Name, err)
		}
	}
	l.Nodes = append(l.Nodes, n)
	return nil
}

// AddPod starts a pod on the first node; see [Node.AddPod].
func (l *Lab) AddPod(name string, addrs ...netip.Addr) (*Host, error) {
	return l.Nodes[0].AddPod(name, addrs...)
}

// AddPod starts a pod on the node. The name may be any text; the pod's servers send it in
// their answers. The pod gets the given addresses, which no open host may have. In a family
// without a given address, it gets the next free one. Closing the pod frees its addresses.
func (n *Node) AddPod(name string, addrs ...netip.Addr) (*Host, error) {
	return n.lab.addHost(n.Host, name, n.Pods4, n.Pods6, hostSettings, addrs...)
}

// AddOutside starts a host that belongs to no node. It gets the next free addresses of
// 192.0.2.0/24 and 2001:db8::/64, or the given addresses, which may be of any range.
func (l *Lab) AddOutside(name string, addrs ...netip.Addr) (*Host, error) {
	return l.addHost(l.router, name, Hosts4, Hosts6, hostSettings, addrs...)
}

// addHost starts a host and connects it to its router.
func (l *Lab) addHost(router *Host, name string, v4, v6 netip.Prefix, settings []string, addrs ...netip.Addr) (*Host, error) {
	h, err := l.add(name, settings)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(l.assignAddr(h, &h.IPv4, v4, addrs), l.assignAddr(h, &h.IPv6, v6, addrs)); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	if err := h.join(router); err != nil {
		return nil, errors.Join(fmt.Errorf("join %s to %s: %w", name, router.Name, err), h.Close())
	}
	return h, nil
}

// add makes a host without a connection.
func (l *Lab) add(name string, settings []string) (*Host, error) {
	if l.inOrder {
		settings = append(slices.Clone(settings), firstCPU...)
	}
	ns, err := newNamespace(settings...)
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	h := &Host{Name: name, lab: l, ns: ns}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hosts = append(l.hosts, h)
	return h, nil
}

// assignAddr sets *addr, the host's address in the family of the given range. It takes the
// given address of this family or, if there is none, the first free address of the range.
func (l *Lab) assignAddr(h *Host, addr *netip.Addr, from netip.Prefix, given []netip.Addr) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := from.Addr().Next() // skip the first address, which is the network's
	if i := slices.IndexFunc(given, func(g netip.Addr) bool { return g.Is4() == a.Is4() }); i >= 0 {
		if a = given[i]; l.used[a] {
			return fmt.Errorf("address %s of %s is taken: give another, or close the host that has it", a, h.Name)
		}
	}
	for l.used[a] {
		a = a.Next()
	}
	if len(given) == 0 && !from.Contains(a) {
		return fmt.Errorf("no address for %s: all of %s are taken", h.Name, from)
	}
	*addr, l.used[a] = a, true
	h.recordAddr(a)
	return nil
}

// Close ends the lab: it kills the processes started in it, waits for their end, closes the
// servers and releases the namespaces. The kernel removes a namespace only when the caller
// has also closed the sockets that it opened there.
func (l *Lab) Close() error {
	l.closing.Lock()
	defer l.closing.Unlock()
	l.mu.Lock()
	hosts := slices.Clone(l.hosts)
	l.mu.Unlock()
	var errs []error
	for _, h := range slices.Backward(hosts) {
		errs = append(errs, h.close(false))
	}
	return errors.Join(errs...)
}

// removeHost removes a closed host from the lab.
func (l *Lab) removeHost(h *Host, addrs []netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hosts = slices.DeleteFunc(l.hosts, func(other *Host) bool { return other == h })
	for _, a := range addrs {
		delete(l.used, a)
	}
}

// nth returns the nth address of a range. The last byte of the range's own address must be 0.
func nth(p netip.Prefix, n byte) netip.Addr {
	b := p.Addr().As16()
	b[15] = n
	return netip.AddrFrom16(b).Unmap()
}
