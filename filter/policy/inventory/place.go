package inventory

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/policy"
)

// private are the ranges in which the addresses of pods are, unless the objects say it
// otherwise: private use (RFC 1918, RFC 4193) and shared address space (RFC 6598).
var private = []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fd00::/8"}

// podRanges returns the ranges in which the pods of a family may have their addresses.
func (v *Inventory) podRanges(v4 bool) []netip.Prefix {
	ranges := slices.Clone(v.PodRanges)
	for _, n := range v.Nodes {
		ranges = append(ranges, n.Ranges...)
	}
	other := func(p netip.Prefix) bool { return p.Addr().Is4() != v4 }
	if ranges = slices.DeleteFunc(ranges, other); len(ranges) > 0 {
		return ranges
	}
	switch {
	case !v.uses(v4):
		return nil
	case v.beside != nil && !v.PodRangesKnown() && v.beside.PodRangesKnown():
		return v.beside.podRanges(v4)
	}
	for _, text := range private {
		ranges = append(ranges, netip.MustParsePrefix(text))
	}
	return slices.DeleteFunc(ranges, other)
}

// uses reports whether the cluster uses an address family: one of its pods, Nodes, pod ranges or
// Services has an address of it. Without any address, it is IPv4.
func (v *Inventory) uses(v4 bool) bool {
	used, known := v.addressed(v4)
	switch {
	case known:
		return used
	case v.beside != nil:
		other, known := v.beside.addressed(v4)
		return other || !known && v4
	}
	return v4
}

// PodRangesKnown reports whether the objects have the ranges that pods get their addresses from.
func (v *Inventory) PodRangesKnown() bool {
	return len(v.PodRanges) > 0 || slices.ContainsFunc(v.Nodes, func(n *policy.Node) bool { return len(n.Ranges) > 0 })
}

// addressed reports whether an object has an address of a family, and whether one has any address.
func (v *Inventory) addressed(v4 bool) (used, known bool) {
	see := func(a netip.Addr) {
		known, used = true, used || a.Is4() == v4
	}
	for _, p := range v.Objects.Pods {
		for _, a := range p.Addrs {
			see(a)
		}
	}
	for _, n := range v.Nodes {
		for _, a := range n.Addrs {
			see(a)
		}
		for _, r := range n.Ranges {
			see(r.Addr())
		}
	}
	for _, r := range v.PodRanges {
		see(r.Addr())
	}
	for a := range v.byAddress {
		see(a)
	}
	return used, known
}

// notNodes are the ranges in which a node cannot have its address: the kubelet rejects loopback,
// link-local and multicast addresses (validateNodeIP).
var notNodes = []string{"127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "::1/128", "fe80::/10", "ff00::/8"}

// canBeNode reports whether a node may have its address in a range.
func canBeNode(r Range) bool {
	return !slices.ContainsFunc(notNodes, func(text string) bool {
		p := netip.MustParsePrefix(text)
		return p.Bits() <= r.Prefix.Bits() && p.Contains(r.Prefix.Addr())
	})
}

// onNodes reports whether pods of the host network, if their addresses are not known, have those of
// the Nodes. Where it is known on which node a pod runs, they may be on the same node or on another:
// the verdicts differ, so they get addresses that are not those of Nodes.
func (v *Inventory) onNodes() bool {
	return v.NodesKnown() && !slices.ContainsFunc(v.Objects.Pods, func(p *policy.Pod) bool { return p.Node != "" || len(p.Hosts) > 0 })
}

// hostRanges returns the ranges in which pods of the host network have the addresses of a family:
// the addresses of the Nodes, or any, but first those for private use.
func (v *Inventory) hostRanges(v4 bool) (ranges []netip.Prefix) {
	if v.onNodes() {
		for _, n := range v.Nodes {
			for _, a := range n.Addrs {
				if a.Is4() == v4 && v.Snapshot.Endpoint(a) == nil {
					ranges = append(ranges, netip.PrefixFrom(a, a.BitLen()))
				}
			}
		}
	}
	if len(ranges) > 0 || !v.uses(v4) {
		return ranges
	}
	for _, text := range append(slices.Clone(private), "0.0.0.0/0", "::/0") {
		if p := netip.MustParsePrefix(text); p.Addr().Is4() == v4 {
			ranges = append(ranges, p)
		}
	}
	return ranges
}

// findPlaces cuts ranges. It keeps one range of those that are in the same ranges of policies, and
// whose nodes the same policies select. The first is in the fewest of them: the usual place of a pod.
func (v *Inventory) findPlaces(ranges []netip.Prefix, host bool) []Range {
	type place struct {
		Range
		depth int // the number of ranges and selectors of policies around it
	}
	var found []place
	seen := make(map[string]bool)
	for _, r := range ranges {
		for _, c := range v.marks.cut(r) {
			if host && !canBeNode(c) {
				continue
			}
			if key := v.around(c.first()); !seen[key] {
				seen[key] = true
				found = append(found, place{c, strings.Count(key, " ")})
			}
		}
	}
	slices.SortStableFunc(found, func(a, b place) int { return cmp.Compare(a.depth, b.depth) })
	var places []Range
	for _, p := range found {
		places = append(places, p.Range)
	}
	return places
}

// addrIn returns an address of the range that nothing has, or, for a pod of the host network, that a
// Node has. If there are several, it skips the first, so that the two ends of a flow can have
// different ones.
func (v *Inventory) addrIn(r Range, host bool, skip int) netip.Addr {
	var found netip.Addr
	for a := range r.Addrs {
		onNode := host && len(v.nodesAt[a]) > 0 && v.Snapshot.Endpoint(a) == nil && v.onNodes()
		if v.taken(a) && !onNode {
			continue
		}
		found = a
		if skip--; skip < 0 {
			break
		}
	}
	return found
}

// addrBeside is like addrIn, but returns another address than that of the other end. It is
// invalid if there is none.
func (v *Inventory) addrBeside(r Range, host bool, skip int, other netip.Addr) netip.Addr {
	for i := range 2 {
		if a := v.addrIn(r, host, skip+i); a != other {
			return a
		}
	}
	if a := v.addrIn(r, host, 0); a != other {
		return a
	}
	return netip.Addr{}
}

// assume returns addresses for a pod without one, one of each family that the cluster uses. The
// parameter to tells the destination of a flow from its source, and host a pod of the host network.
func (v *Inventory) assume(to, host bool) (addrs []netip.Addr) {
	skip := 0
	if to {
		skip = 1
	}
	for _, places := range v.placesOf(host) {
		if len(places) > 0 {
			if a := v.addrIn(places[0], host, skip); a.IsValid() {
				addrs = append(addrs, a)
			}
		}
	}
	return addrs
}

// Beside returns the inventory for a comparison with another one: it also tells apart the
// addresses and the nodes that policies of the other tell apart. If it knows no address, or no
// ranges of pods, it assumes those of the other.
func (v *Inventory) Beside(o *Inventory) *Inventory {
	out := *v
	out.beside, out.exposures, out.sendersBy = o, nil, nil
	out.marks = newMarks(slices.Concat(v.marks.prefixes, o.marks.prefixes))
	out.nodeSelectors = distinct(slices.Concat(v.nodeSelectors, o.nodeSelectors))
	out.place()
	return &out
}

// addressless reports whether the address of a pod, or of its node, is assumed.
func addressless(p *policy.Pod) bool {
	return Assumed(p) || p.HostNetwork && alive(p) && len(addressesOf(p)) == 0
}

// place finds the places of pods, if one has no address.
func (v *Inventory) place() {
	v.assumed = make(map[netip.Addr]bool)
	if !slices.ContainsFunc(v.AllPods(), addressless) {
		return
	}
	for i, v4 := range []bool{true, false} {
		v.places[i] = v.findPlaces(v.podRanges(v4), false)
		v.hostPlaces[i] = v.findPlaces(v.hostRanges(v4), true)
	}
	for _, to := range []bool{false, true} {
		for _, a := range append(v.assume(to, false), v.assume(to, true)...) {
			v.assumed[a] = true
		}
	}
}

// placesOf returns the places of pods by family, or of pods of the host network.
func (v *Inventory) placesOf(host bool) *[2][]Range {
	if host {
		return &v.hostPlaces
	}
	return &v.places
}

// PlaceOf returns what policies say about an address, as text that is equal for addresses in the
// same ranges of policies and for nodes that the same policies select.
func (v *Inventory) PlaceOf(a netip.Addr) string { return v.around(a) }

// Alternative is a flow with another address for an end whose address is assumed.
type Alternative struct {
	Flow
	To    bool  // the address of the destination is another one
	Range Range // where the address is
}

// Elsewhere returns the flow with each other address that a policy may tell apart from the
// assumed one. It returns nothing if the addresses of both ends are known. Only pods have policies,
// so the address of one end matters only if the other end is a pod.
func (v *Inventory) Elsewhere(f Flow) (all []Alternative) {
	src, dst := f.Key.SrcAddr(), f.Key.DstAddr()
	family := 0
	if !src.Is4() {
		family = 1
	}
	if f.From.Assumed && f.To.judges() {
		for _, r := range v.placesOf(f.From.Node)[family] {
			if a := v.addrBeside(r, f.From.Node, 0, dst); a.IsValid() && !r.Contains(src) {
				all = append(all, f.at(a, dst, Alternative{Range: r}))
			}
		}
	}
	if f.To.Assumed && f.From.judges() {
		for _, r := range v.placesOf(f.To.Node)[family] {
			if a := v.addrBeside(r, f.To.Node, 1, src); a.IsValid() && !r.Contains(dst) {
				all = append(all, f.at(src, a, Alternative{To: true, Range: r}))
			}
		}
	}
	return all
}

// judges reports whether policies of the end may decide about the address of the other end.
func (e *End) judges() bool { return e.Endpoint != nil && !e.Endpoint.IsNode() }

// at returns the alternative with the flow between other addresses.
func (f Flow) at(src, dst netip.Addr, a Alternative) Alternative {
	f.Key = filter.NewKey(src, dst, f.Key.Protocol, f.Key.Port)
	a.Flow = f
	return a
}
