package inventory

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"sluice/filter/policy"
)

// AllPods returns the pods, including those that the inventory has made for workloads, sorted by
// name.
func (v *Inventory) AllPods() []*policy.Pod {
	pods := slices.Collect(maps.Values(v.pods))
	sortPods(pods)
	return pods
}

// PodsOf returns the pods of a workload, sorted by name.
func (v *Inventory) PodsOf(workload policy.Ref) []*policy.Pod { return v.workloads[workload] }

// EndOf returns a pod as an end of a flow: as the destination if to is true, and as the source
// otherwise. Assumed addresses of the two differ. EndOf returns an error if the pod has ended, or
// if one of its addresses belongs to another pod.
func (v *Inventory) EndOf(p *policy.Pod, to bool) (*End, error) { return v.pod(p, to) }

// NodeEnds returns the nodes, sorted by name: those of Node objects, those in the status of pods,
// and a node with the name "node" for the addresses in NodeAddrs that no other node has. Each
// node has its first address of each family. Further addresses are ends of their own.
func (v *Inventory) NodeEnds() (ends []*End) {
	addrs := make(map[string][]netip.Addr)
	seen := make(map[netip.Addr]bool)
	add := func(name string, list []netip.Addr) {
		for _, a := range list {
			if e := v.Snapshot.Endpoint(a); !seen[a] && (e == nil || e.IsNode()) {
				seen[a] = true
				addrs[name] = append(addrs[name], a)
			}
		}
	}
	for _, n := range slices.SortedFunc(v.Snapshot.Nodes(), func(a, b *policy.Node) int { return strings.Compare(a.Name, b.Name) }) {
		add(n.Name, n.Addrs)
	}
	for _, p := range v.AllPods() {
		if name := p.Node; name != "" {
			add(name, p.Hosts)
			continue
		}
		for _, a := range p.Hosts {
			add(a.String(), []netip.Addr{a})
		}
	}
	add("node", v.NodeAddrs)
	for name, list := range addrs {
		ends = append(ends, v.nodeEnds(name, list)...)
	}
	slices.SortFunc(ends, func(a, b *End) int { return strings.Compare(a.Name, b.Name) })
	return ends
}

// nodeEnds returns the ends of one node: one with the first address of each family, and one for
// each further address.
func (v *Inventory) nodeEnds(name string, addrs []netip.Addr) []*End {
	first := &End{Name: name, Node: true, NodeName: name}
	ends := []*End{first}
	for _, a := range addrs {
		if !slices.ContainsFunc(first.Addrs, func(o netip.Addr) bool { return o.Is4() == a.Is4() }) {
			first.Addrs = append(first.Addrs, a)
			continue
		}
		ends = append(ends, &End{Name: name + " (" + a.String() + ")", Node: true, NodeName: name, Addrs: []netip.Addr{a}})
	}
	slices.SortFunc(first.Addrs, netip.Addr.Compare)
	for _, e := range ends {
		e.Endpoint = v.Snapshot.Endpoint(e.Addrs[0])
	}
	return ends
}
