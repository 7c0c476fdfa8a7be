package node

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
)

// PodBridges are the bridges that lead to pods of this node: by a route without a
// gateway that overlaps a range of them or holds the address of one. A bridge that the
// node itself has no route to, and whose pods it reaches by another way, is not among
// them.
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

// PodLinks are the interfaces by which the node reaches its pods: those bridges, and
// those of single pods.
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

// PodRanges derives where pods of this node can have their addresses from the way that
// packets to them go. An address there that no pod is known to have is a pod's that
// starts, as no other machine can have it:
//
//   - An address to which a route leads over an interface whose other end is in another
//     network namespace, and which leads to no gateway. A network plugin makes it before
//     the pod runs. Further addresses of a pod that is known, which the API does not
//     list, are not expected to become known; nor are those of a pod that is on a bridge
//     too.
//   - What a bridge is directly connected to, if a known pod is there, and if all its
//     ports lead to other network namespaces: with one that leads out of the node, other
//     machines may have addresses there.
//
// A range of a bridge that was among those before stays when its last pod is gone. What
// lies in known ranges is left out. The list is sorted.
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

// PodDevices are the interfaces that lead to one address each, of a pod of this node:
// by their index.
func (n *Network) PodDevices() map[netip.Addr]uint32 {
	found := make(map[netip.Addr]uint32)
	for _, r := range n.Routes {
		l, ok := n.link(r.Link)
		if !ok || !r.To.IsSingleIP() || !l.toPod() {
			continue
		}
		if other, ok := found[r.To.Addr()]; ok && other != uint32(l.Index) {
			found[r.To.Addr()] = 0 // which of them it is depends on the packet
			continue
		}
		found[r.To.Addr()] = uint32(l.Index)
	}
	maps.DeleteFunc(found, func(_ netip.Addr, device uint32) bool { return device == 0 })
	return found
}

// toPod reports whether an interface leads to one pod alone: its other end is in
// another network namespace, and no route over it has a gateway.
func (l Link) toPod() bool { return !l.Uplink && l.isVeth() && l.Master == 0 }

func (n *Network) link(index int) (Link, bool) {
	i := slices.IndexFunc(n.Links, func(l Link) bool { return l.Index == index })
	if i < 0 {
		return Link{}, false
	}
	return n.Links[i], true
}

// isLocal reports whether all ports of a bridge lead to other network
// namespaces on this node.
func (n *Network) isLocal(bridge Link) bool {
	return !slices.ContainsFunc(n.Links, func(l Link) bool {
		return l.Master == bridge.Index && !l.isVeth()
	})
}

// isVeth reports whether the other end is in another network namespace.
func (l Link) isVeth() bool { return l.Kind == "veth" && l.InOtherNetns }

// takenNetns are the namespaces of known pods with a route of their own, and of all that are
// on a bridge.
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

// within reports whether a range lies in one of others.
func within(p netip.Prefix, of []netip.Prefix) bool {
	return slices.ContainsFunc(of, func(o netip.Prefix) bool { return o.Bits() <= p.Bits() && o.Contains(p.Addr()) })
}
