package node

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
)

// PodBridges returns the bridges over which the node reaches its pods. The node has a route
// over such a bridge, without a gateway, and the destination of the route overlaps one of
// ranges (pod ranges) or contains one of pods (addresses of pods).
func (n *Network) PodBridges(ranges []netip.Prefix, pods []netip.Addr) []Link {
	var found []Link
	for _, l := range n.Links {
		if l.Kind == "bridge" && slices.ContainsFunc(n.Routes, func(r Route) bool {
			return r.Link == l.Index && (holdsAny(r.To, pods) || slices.ContainsFunc(ranges, r.To.Overlaps))
		}) {
			found = append(found, l)
		}
	}
	return found
}

// PodLinks returns the interfaces over which the node reaches its pods: the bridges that
// PodBridges returns, and the veth interfaces of single pods.
func (n *Network) PodLinks(ranges []netip.Prefix, pods []netip.Addr) []Link {
	found := n.PodBridges(ranges, pods)
	for _, l := range n.Links {
		if l.isVeth() && l.Master == 0 && slices.ContainsFunc(n.Routes, func(r Route) bool {
			return r.Link == l.Index && r.To.IsSingleIP() && (slices.Contains(pods, r.To.Addr()) || within(r.To, ranges))
		}) {
			found = append(found, l)
		}
	}
	return found
}

// PodRanges derives the possible addresses of this node's pods from the routes to them. No
// other machine can have such an address, so an address in these ranges that is not known
// belongs to a starting pod. There are two cases:
//
//   - A single address that has a route without a gateway, over an interface that leads
//     to another network namespace. A network plugin adds the route before the pod
//     runs. Two kinds of addresses are excluded: further addresses of a known pod,
//     because the API does not list them and they would never become known; and
//     addresses of a pod that is also on a bridge.
//   - The network directly connected to a bridge with a known pod, if all ports
//     of the bridge lead to other network namespaces. If a port leads out of the
//     node, other machines may have addresses there.
//
// known holds the pod ranges that are already set; PodRanges omits ranges within these.
// The parameter "before" is the result of the previous call: if it contains the network of a
// bridge, the network stays in the result even when the last pod of the bridge has ended. pods
// holds the addresses of known pods. The result is sorted.
func (n *Network) PodRanges(known, before []netip.Prefix, pods []netip.Addr) []netip.Prefix {
	var found []netip.Prefix
	taken := n.takenNetns(pods)
	for _, r := range n.Routes {
		l, ok := n.link(r.Link)
		if !ok || l.Uplink || within(r.To, known) || r.To.Addr().IsLinkLocalUnicast() || r.To.Addr().IsMulticast() {
			continue
		}
		switch {
		case r.To.IsSingleIP() && l.isVeth() && l.Master == 0 && (slices.Contains(pods, r.To.Addr()) || !taken[l.NetnsID]),
			l.Kind == "bridge" && n.isLocal(l) && (holdsAny(r.To, pods) || slices.Contains(before, r.To.Masked())):
			found = append(found, r.To.Masked())
		}
	}
	slices.SortFunc(found, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.Compact(found)
}

// PodDevices maps each address of a pod of this node to the index of the interface that
// leads only to that pod. Addresses with routes over several such interfaces are omitted.
func (n *Network) PodDevices() map[netip.Addr]uint32 {
	found := make(map[netip.Addr]uint32)
	for _, r := range n.Routes {
		l, ok := n.link(r.Link)
		if !ok || !r.To.IsSingleIP() || !l.toPod() {
			continue
		}
		if other, ok := found[r.To.Addr()]; ok && other != uint32(l.Index) {
			found[r.To.Addr()] = 0 // two routes: which one a packet takes depends on the packet
			continue
		}
		found[r.To.Addr()] = uint32(l.Index)
	}
	maps.DeleteFunc(found, func(_ netip.Addr, device uint32) bool { return device == 0 })
	return found
}

// toPod reports whether an interface leads to exactly one pod: its other end is in another
// network namespace, it is not a port of a bridge, and no route over it has a gateway.
func (l Link) toPod() bool { return !l.Uplink && l.isVeth() && l.Master == 0 }

func (n *Network) link(index int) (Link, bool) {
	i := slices.IndexFunc(n.Links, func(l Link) bool { return l.Index == index })
	if i < 0 {
		return Link{}, false
	}
	return n.Links[i], true
}

// isLocal reports whether all ports of a bridge lead to other network namespaces.
func (n *Network) isLocal(bridge Link) bool {
	return !slices.ContainsFunc(n.Links, func(l Link) bool {
		return l.Master == bridge.Index && !l.isVeth()
	})
}

// isVeth reports whether l is a veth interface with its other end in another network
// namespace.
func (l Link) isVeth() bool { return l.Kind == "veth" && l.InOtherNetns }

// takenNetns returns the IDs of the network namespaces that do not belong to a starting pod.
// They are of two kinds: those with an interface on a bridge, and those to which a host route for
// the address of a known pod leads; pods holds these addresses. If a host route for an unknown
// address leads to one of these namespaces, the address is a further address of the pod there.
func (n *Network) takenNetns(pods []netip.Addr) map[int]bool {
	taken := make(map[int]bool)
	for _, l := range n.Links {
		if l.isVeth() && l.Master != 0 {
			taken[l.NetnsID] = true
		}
	}
	for _, r := range n.Routes {
		if l, ok := n.link(r.Link); ok && l.isVeth() && r.To.IsSingleIP() && slices.Contains(pods, r.To.Addr()) {
			taken[l.NetnsID] = true
		}
	}
	return taken
}

func holdsAny(p netip.Prefix, addrs []netip.Addr) bool { return slices.ContainsFunc(addrs, p.Contains) }

// within reports whether one of the ranges contains p.
func within(p netip.Prefix, ranges []netip.Prefix) bool {
	return slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Bits() <= p.Bits() && r.Contains(p.Addr()) })
}
