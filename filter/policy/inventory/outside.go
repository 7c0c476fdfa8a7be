package inventory

import (
	"fmt"
	"net/netip"
	"slices"

	"sluice/filter/policy"
)

// atAddress returns the owner of an address: a Service, a pod or a node. If the owner is not known,
// it returns the address itself as an end.
func (v *Inventory) atAddress(addr netip.Addr) target {
	if s := v.byAddress[addr]; s != nil && v.Snapshot.Endpoint(addr) == nil {
		return target{service: s, addr: addr}
	}
	if s := v.byOuter[addr]; s != nil && v.Snapshot.Endpoint(addr) == nil && v.Snapshot.NodeAt(addr) == nil {
		return target{service: s, addr: addr}
	}
	return target{ends: []*End{v.address(addr)}}
}

// world returns all addresses outside the cluster, as ranges in which all addresses get the same
// verdicts. The addresses of pods, nodes and Services are not outside, nor are the known ranges of pods.
func (v *Inventory) world() []*End {
	return slices.DeleteFunc(v.Outside(), func(e *End) bool { return e.PodRange })
}

// Outside returns all addresses outside the cluster, as ranges in which all addresses get the same
// verdicts. The first range of each family has the addresses in no range of a policy; its name is World.
// Ranges of policies inside the ranges of pods follow, with PodRange set: a policy may let in pods that
// are not known.
func (v *Inventory) Outside() (ends []*End) {
	var unknown []*End
	for i, all := range []string{"0.0.0.0/0", "::/0"} {
		if !v.families[i] {
			continue
		}
		for _, r := range v.marks.cut(netip.MustParsePrefix(all)) {
			e := v.outside(r)
			switch {
			case e == nil || e.PodRange && r.Prefix.Bits() == 0:
			case e.PodRange:
				e.Name = "unknown pods in " + e.Name
				unknown = append(unknown, e)
			default:
				if r.Prefix.Bits() == 0 {
					e.Name = World
				}
				ends = append(ends, e)
			}
		}
	}
	return append(ends, unknown...)
}

// outside returns the addresses of a range that are outside the cluster. If there are none, it returns
// those in the ranges of pods that no known pod has; nil if there are none of these either.
func (v *Inventory) outside(r Range) *End {
	e := &End{Name: r.String(), Range: &r}
	addr := v.addrOutside(r.without(v.inPodRanges))
	if !addr.IsValid() {
		addr, e.PodRange = v.addrOutside(r), true
	}
	if !addr.IsValid() {
		return nil
	}
	e.Addrs = []netip.Addr{addr}
	return e
}

// isPodRange reports whether an address is in a known range of pods.
func (v *Inventory) isPodRange(a netip.Addr) bool {
	return slices.ContainsFunc(v.inPodRanges, func(p netip.Prefix) bool { return p.Contains(a) })
}

// setPodRanges sets the known ranges of pods: in a comparison, those of both inventories, so that the
// same addresses are outside both.
func (v *Inventory) setPodRanges() {
	ranges := v.KnownPodRanges()
	if v.beside != nil {
		ranges = append(ranges, v.beside.KnownPodRanges()...)
	}
	v.inPodRanges = newMarks(ranges).outermost()
}

// documentation are addresses that are reserved for examples (RFC 5737, RFC 3849).
var documentation = []string{"203.0.113.9", "198.51.100.9", "192.0.2.9", "2001:db8::9"}

// addrOutside returns an address in a range that is neither taken nor assumed; invalid if there is
// none. It prefers an address for documentation, because people recognize it as an example.
func (v *Inventory) addrOutside(r Range) netip.Addr {
	outside := func(a netip.Addr) bool { return !v.taken(a) && !v.assumed[a] }
	for _, text := range documentation {
		if a := netip.MustParseAddr(text); r.Contains(a) && outside(a) {
			return a
		}
	}
	for a := range r.Addrs {
		if outside(a) {
			return a
		}
	}
	return netip.Addr{}
}

// taken reports whether a pod, a node or a Service has an address.
func (v *Inventory) taken(a netip.Addr) bool {
	return v.Snapshot.Endpoint(a) != nil || v.byAddress[a] != nil || v.byOuter[a] != nil || v.hosts[a] || v.Snapshot.NodeAt(a) != nil
}

// inRange returns the ends in a range of addresses: its pods, its nodes, and its addresses outside
// the cluster, as ranges in which all addresses get the same verdicts.
func (v *Inventory) inRange(p netip.Prefix, to bool) (target, error) {
	p = p.Masked()
	var pods []*policy.Pod
	for _, pod := range v.pods {
		if slices.ContainsFunc(pod.Addrs, p.Contains) && alive(pod) && !pod.HostNetwork {
			pods = append(pods, pod)
		}
	}
	sortPods(pods)
	var ends []*End
	if len(pods) > 0 {
		var err error
		if ends, err = v.group(pods, to); err != nil {
			return target{}, err
		}
	}
	for n := range v.Snapshot.Nodes() {
		for _, a := range n.Addrs {
			if p.Contains(a) && v.Snapshot.Endpoint(a) == nil {
				ends = append(ends, v.address(a))
			}
		}
	}
	for _, r := range v.marks.cut(p) {
		if e := v.outside(r); e != nil {
			ends = append(ends, e)
		}
	}
	if len(ends) == 0 {
		return target{}, fmt.Errorf("nothing can be said about %s: it has only addresses of Services: ask for a Service", p)
	}
	return target{ends: ends}, nil
}
