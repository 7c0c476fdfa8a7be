package inventory

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/policy"
)

// private are the ranges in which pods are assumed to have their addresses if no object has pod
// ranges: those for private use (RFC 1918, RFC 4193) and the shared address space (RFC 6598).
var private = []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fd00::/8"}

// podRanges returns the ranges in which pods may have their addresses: of IPv4 if v4 is true, and
// of IPv6 otherwise.
func (v *Inventory) podRanges(v4 bool) []netip.Prefix {
	other := func(p netip.Prefix) bool { return p.Addr().Is4() != v4 }
	ranges := slices.DeleteFunc(v.KnownPodRanges(), other)
	if len(ranges) == 0 && v.beside != nil && !v.PodRangesKnown() {
		ranges = slices.DeleteFunc(v.beside.KnownPodRanges(), other)
	}
	if len(ranges) > 0 || !v.mayUse(v4) {
		return ranges
	}
	for _, text := range private {
		ranges = append(ranges, netip.MustParsePrefix(text))
	}
	return slices.DeleteFunc(ranges, other)
}

// PodRangesKnown reports whether the objects state the ranges from which pods get their addresses.
func (v *Inventory) PodRangesKnown() bool {
	return len(v.PodRanges) > 0 || slices.ContainsFunc(v.Nodes, func(n *policy.Node) bool { return len(n.Ranges) > 0 })
}

// notNodes are the ranges in which a node cannot have its address: the kubelet rejects loopback,
// link-local and multicast addresses (validateNodeIP).
var notNodes = []string{"127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "::1/128", "fe80::/10", "ff00::/8"}

// notPods are the ranges in which no pod has its address, although they are for private use: AWS has
// reserved this one for its own services, such as the instance metadata at fd00:ec2::254.
var notPods = []string{"fd00:ec2::/32"}

// canBe reports whether an address in a range may be that of a pod, or of a node if host is true.
func canBe(r Range, host bool) bool {
	not := notPods
	if host {
		not = slices.Concat(notNodes, notPods)
	}
	return !slices.ContainsFunc(not, func(text string) bool {
		p := netip.MustParsePrefix(text)
		return p.Bits() <= r.Prefix.Bits() && p.Contains(r.Prefix.Addr())
	})
}

// onNodes reports whether a pod of the host network without a known address is assumed to have that
// of a Node. This is false if it is known on which node some pod runs: the verdict depends on whether
// both run on the same node, so pods of the host network then get addresses that no Node has.
func (v *Inventory) onNodes() bool {
	return v.NodesKnown() && !slices.ContainsFunc(v.Objects.Pods, func(p *policy.Pod) bool { return p.Node != "" || len(p.Hosts) > 0 })
}

// nodesHave reports whether a Node has an address of a family.
func (v *Inventory) nodesHave(v4 bool) bool {
	for a := range v.nodesAt {
		if a.Is4() == v4 {
			return true
		}
	}
	return false
}

// hostRanges returns the ranges in which pods of the host network may have their addresses of a
// family: the addresses of the Nodes, which may have none of it, if onNodes is true; otherwise all, those for private use first.
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
	if v.onNodes() && !v.nodesHave(v4) {
		return nil
	}
	if len(ranges) > 0 || !v.mayUse(v4) {
		return ranges
	}
	for _, text := range append(slices.Clone(private), "0.0.0.0/0", "::/0") {
		if p := netip.MustParsePrefix(text); p.Addr().Is4() == v4 {
			ranges = append(ranges, p)
		}
	}
	return ranges
}

// findPlaces cuts ranges where policies tell addresses apart. Of the pieces that the same ranges and
// node selectors of policies match, it keeps only one. The first piece matches the fewest of them, as
// most pods do. It leaves out addresses that a pod, or a node if host is true, cannot have.
func (v *Inventory) findPlaces(ranges []netip.Prefix, host bool) []Range {
	type place struct {
		Range
		depth int // the number of ranges and node selectors of policies that match it
	}
	var found []place
	seen := make(map[string]bool)
	for _, r := range ranges {
		for _, c := range v.marks.cut(r) {
			if !canBe(c, host) {
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

// addrIn returns an address in r that is not taken or, if host and onNodes are true, that a Node has.
// It skips the first skip addresses if there are more, so that the two ends of a flow can have
// different ones. The address is invalid if there is none.
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

// addrBeside is like addrIn, but never returns other, the address of the other end of the flow.
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

// assume returns addresses for a pod without one, one of each family that the cluster uses. They
// differ for a destination (to is true) and a source, and for pods of the host network (host is true).
func (v *Inventory) assume(to, host bool) (addrs []netip.Addr) {
	for i, used := range v.families {
		if a := v.assumeIn(i, to, host); used && a.IsValid() {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// assumeIn returns the address of one family for a pod without one: IPv4 if family is 0, IPv6 if it is
// 1. It is invalid if pods can have none.
func (v *Inventory) assumeIn(family int, to, host bool) netip.Addr {
	skip := 0
	if to {
		skip = 1
	}
	places := v.placesOf(host)[family]
	if len(places) == 0 {
		return netip.Addr{}
	}
	return v.addrIn(places[0], host, skip)
}

// Beside returns a copy of the inventory for a comparison with o: it also tells apart the addresses
// and the nodes that policies of o tell apart, it assumes the address families of both, and the pod
// ranges of o if it has none.
func (v *Inventory) Beside(o *Inventory) *Inventory {
	out := *v
	out.beside, out.exposures, out.sendersBy = o, nil, nil
	out.marks = newMarks(slices.Concat(v.marks.prefixes, o.marks.prefixes))
	out.nodeSelectors = distinct(slices.Concat(v.nodeSelectors, o.nodeSelectors))
	out.place()
	return &out
}

// addressless reports whether the inventory must assume an address for a pod, or for its node if it
// is a pod of the host network.
func addressless(p *policy.Pod) bool {
	return Assumed(p) || p.HostNetwork && alive(p) && len(addressesOf(p)) == 0
}

// place sets places, hostPlaces and assumed, if a pod has no address.
func (v *Inventory) place() {
	v.setFamilies()
	v.setPodRanges()
	v.assumed = make(map[netip.Addr]bool)
	if !slices.ContainsFunc(v.AllPods(), addressless) {
		return
	}
	for i, v4 := range []bool{true, false} {
		v.places[i] = v.findPlaces(v.podRanges(v4), false)
		v.hostPlaces[i] = v.findPlaces(v.hostRanges(v4), true)
	}
	for family := range v.places {
		for _, to := range []bool{false, true} {
			v.assumed[v.assumeIn(family, to, false)], v.assumed[v.assumeIn(family, to, true)] = true, true
		}
	}
}

// placesOf returns, by family, the ranges of pods of the host network if host is true, and of other
// pods otherwise.
func (v *Inventory) placesOf(host bool) *[2][]Range {
	if host {
		return &v.hostPlaces
	}
	return &v.places
}

// PlaceOf returns, as text, which ranges and node selectors of policies match an address. Addresses
// with equal text get the same verdicts.
func (v *Inventory) PlaceOf(a netip.Addr) string { return v.around(a) }

// Alternative is a flow with another address for an end whose address is assumed.
type Alternative struct {
	Flow
	To    bool  // reports that the destination has the other address, and not the source
	Range Range // contains the other address
}

// Elsewhere returns alternatives of a flow between ends with assumed addresses: one for each range
// whose addresses policies may tell apart from the assumed one. It returns none if the addresses of
// both ends are known. Only pods have policies, so the address of an end matters only if the other
// end is a pod.
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

// judges reports whether the end is a pod, so that its policies may match the other end's address.
func (e *End) judges() bool { return e.Endpoint != nil && !e.Endpoint.IsNode() }

// at returns a with the flow f between the addresses src and dst.
func (f Flow) at(src, dst netip.Addr, a Alternative) Alternative {
	f.Key = filter.NewKey(src, dst, f.Key.Protocol, f.Key.Port)
	a.Flow = f
	return a
}
