package inventory

import (
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
	case v.beside != nil && v.unplaced() && !v.beside.unplaced():
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

// unplaced reports whether nothing says in which ranges the pods have their addresses.
func (v *Inventory) unplaced() bool {
	return len(v.PodRanges) == 0 && !slices.ContainsFunc(v.Nodes, func(n *policy.Node) bool { return len(n.Ranges) > 0 })
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

// hostRanges returns the ranges in which the nodes of a family may have their addresses: any, but first
// those for private use.
func (v *Inventory) hostRanges(v4 bool) (ranges []netip.Prefix) {
	if !v.uses(v4) {
		return nil
	}
	for _, text := range append(slices.Clone(private), "0.0.0.0/0", "::/0") {
		if p := netip.MustParsePrefix(text); p.Addr().Is4() == v4 {
			ranges = append(ranges, p)
		}
	}
	return ranges
}

// findPlaces cuts ranges. It keeps one range of those that are in the same ranges of policies. The
// first is in the fewest of them: the usual place of a pod.
func (v *Inventory) findPlaces(ranges []netip.Prefix) []Range {
	var found []Range
	seen := make(map[string]bool)
	for _, r := range ranges {
		for _, c := range v.marks.cut(r) {
			for a := range c.Addrs {
				if key := v.marks.around(a); !seen[key] {
					seen[key] = true
					found = append(found, c)
				}
				break
			}
		}
	}
	depth := func(r Range) int {
		for a := range r.Addrs {
			return strings.Count(v.marks.around(a), " ")
		}
		return 0
	}
	slices.SortStableFunc(found, func(a, b Range) int { return depth(a) - depth(b) })
	return found
}

// addrIn returns an address of the range that nothing has. If there are several, it skips the
// first, so that the two ends of a flow can have different ones.
func (v *Inventory) addrIn(r Range, skip int) netip.Addr {
	var found netip.Addr
	for a := range r.Addrs {
		if v.taken(a) {
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
func (v *Inventory) addrBeside(r Range, skip int, other netip.Addr) netip.Addr {
	for i := range 2 {
		if a := v.addrIn(r, skip+i); a != other {
			return a
		}
	}
	if a := v.addrIn(r, 0); a != other {
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
			if a := v.addrIn(places[0], skip); a.IsValid() {
				addrs = append(addrs, a)
			}
		}
	}
	return addrs
}

// Beside returns the inventory for a comparison with another one: it also tells apart the
// addresses that policies of the other tell apart. If it knows no address, or no ranges of pods, it
// assumes those of the other.
func (v *Inventory) Beside(o *Inventory) *Inventory {
	out := *v
	out.beside, out.exposures = o, nil
	out.marks = slices.Concat(v.marks, o.marks).sorted()
	out.place()
	return &out
}

// addressless reports whether the address of a pod, or of its node, is assumed.
func addressless(p *policy.Pod) bool {
	return Assumed(p) || p.HostNetwork && alive(p) && len(addressesOf(p)) == 0
}

// place finds the places of pods, if one has no address. For 100,000 ranges in policies it takes
// minutes.
func (v *Inventory) place() {
	v.assumed = make(map[netip.Addr]bool)
	if !slices.ContainsFunc(v.AllPods(), addressless) {
		return
	}
	for i, v4 := range []bool{true, false} {
		v.places[i] = v.findPlaces(v.podRanges(v4))
		v.hostPlaces[i] = v.findPlaces(v.hostRanges(v4))
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

// PlaceOf returns what the ranges of policies say about an address, as text that is equal for
// addresses in the same ranges.
func (v *Inventory) PlaceOf(a netip.Addr) string { return v.marks.around(a) }

// Alternative is a flow with another address for an end whose address is assumed.
type Alternative struct {
	Flow
	To    bool  // the address of the destination is another one
	Range Range // where the address is
}

// Elsewhere returns the flow with each other address that a policy may tell apart from the
// assumed one. It returns nothing if the addresses of both ends are known.
func (v *Inventory) Elsewhere(f Flow) (all []Alternative) {
	src, dst := f.Key.SrcAddr(), f.Key.DstAddr()
	family := 0
	if !src.Is4() {
		family = 1
	}
	if f.From.Assumed {
		for _, r := range v.placesOf(f.From.Node)[family] {
			if a := v.addrBeside(r, 0, dst); a.IsValid() && !r.Contains(src) {
				all = append(all, f.at(a, dst, Alternative{Range: r}))
			}
		}
	}
	if f.To.Assumed {
		for _, r := range v.placesOf(f.To.Node)[family] {
			if a := v.addrBeside(r, 1, src); a.IsValid() && !r.Contains(dst) {
				all = append(all, f.at(src, a, Alternative{To: true, Range: r}))
			}
		}
	}
	return all
}

// at returns the alternative with the flow between other addresses.
func (f Flow) at(src, dst netip.Addr, a Alternative) Alternative {
	f.Key = filter.NewKey(src, dst, f.Key.Protocol, f.Key.Port)
	a.Flow = f
	return a
}
