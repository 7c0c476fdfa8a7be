package inventory

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"sluice/filter/policy"
	"sluice/filter/policy/near"
)

// End is one end of a flow: pods of a workload that no policy can tell apart, a node, or an
// address.
type End struct {
	// Name is the end as people write it: "namespace/name" of a pod or a workload, an address, or
	// a range.
	Name string
	// Addrs are the addresses, at most one of each family, IPv4 first. For several pods, they
	// are those of Pod. For a range, Addrs has one address of the range.
	Addrs []netip.Addr
	// Assumed reports that the pod has no address yet, so that Addrs are made up.
	Assumed bool
	// Pod is the pod with these addresses; nil for addresses of a node or outside the cluster.
	Pod *policy.Pod
	// Pods are all pods of the end, Pod first; empty if Pod is nil.
	Pods []*policy.Pod
	// Workload is the workload of the pods; zero if there is none.
	Workload policy.Ref
	// Endpoint is the pod or this node in the snapshot; nil for other addresses.
	Endpoint *policy.Endpoint
	// Node is set for a node, and for a pod of the host network: such a pod has the addresses
	// of its node, and policies treat it as the node.
	Node bool
	// NodeName is the name of the Node whose status has the address. Without such a Node, it is
	// "of " and the name of a pod in whose status the address is that of the host; empty if there is
	// no such pod either.
	NodeName string
	// Range is set for a range of addresses outside the cluster, all of which get the same
	// verdicts.
	Range *Range
	// PodRange reports that the address, or the range, is in a known range of pods, but that no known pod
	// has it. Policies of such a pod are not known.
	PodRange bool
}

// ByAddress reports whether the end is named by its address.
func (e *End) ByAddress() bool { return len(e.Addrs) == 1 && e.Name == e.Addrs[0].String() }

// Text returns the name of the end.
func (e *End) Text() string {
	if e == nil {
		return ""
	}
	return e.Name
}

// address returns the end that has an address: a pod, a node, or the address itself.
func (v *Inventory) address(addr netip.Addr) *End {
	e := &End{Name: addr.String(), Addrs: []netip.Addr{addr}, Endpoint: v.Snapshot.Endpoint(addr)}
	switch {
	case e.Endpoint.IsNode():
		e.Node = true
	case e.Endpoint != nil:
		e.Pod = v.pods[e.Endpoint.String()]
		e.Pods, e.Workload = []*policy.Pod{e.Pod}, v.workloadOf[e.Pod]
		return e
	}
	if n := v.Snapshot.NodeAt(addr); n != nil && v.byAddress[addr] == nil {
		e.Node, e.NodeName = true, n.Name
	}
	e.PodRange = !e.Node && v.isPodRange(addr)
	return e
}

// asNodeOf returns e as a node if the address of e is a host address in the status of the pod.
// Otherwise it returns e unchanged.
func (e *End) asNodeOf(pod *End) *End {
	if e.Pod != nil || e.Node || e.Range != nil || pod.Pod == nil || !slices.Contains(pod.Pod.Hosts, e.Addrs[0]) {
		return e
	}
	node := *e
	node.Node, node.NodeName = true, "of "+pod.Name
	return &node
}

// pod returns a pod with its addresses. If they are not known, it assumes them: those of a
// destination if to is true, and those of a source otherwise. pod returns an error if the pod has
// ended, or if one of its addresses has another owner in the snapshot.
func (v *Inventory) pod(p *policy.Pod, to bool) (*End, error) {
	name := p.String()
	e := &End{Name: name, Pod: p, Pods: []*policy.Pod{p}, Workload: v.workloadOf[p]}
	if p.HostNetwork {
		e.Pod, e.Pods, e.Node = nil, nil, true
	}
	switch {
	case p.Ended != "":
		return nil, fmt.Errorf("pod %s has ended (%s) and has no address: ask for a running pod", name, p.Ended)
	case Assumed(p), p.HostNetwork && len(addressesOf(p)) == 0:
		e.Addrs, e.Assumed, e.Endpoint = v.assume(to, e.Node), true, v.endpoints[p]
		return e, nil
	}
	for _, addr := range addressesOf(p) {
		owner := v.Snapshot.Endpoint(addr)
		if !e.Node && owner.String() != name {
			return nil, fmt.Errorf("the address %s of pod %s belongs to %s: ask for that one, or correct status.podIPs", addr, name, cmp.Or(owner.String(), "no pod"))
		}
		if !slices.ContainsFunc(e.Addrs, func(a netip.Addr) bool { return a.Is4() == addr.Is4() }) {
			e.Addrs = append(e.Addrs, addr)
		}
		e.Endpoint = owner
	}
	slices.SortFunc(e.Addrs, netip.Addr.Compare)
	return e, nil
}

func addressesOf(p *policy.Pod) []netip.Addr {
	if p.HostNetwork {
		return slices.Concat(p.Addrs, p.Hosts)
	}
	return p.Addrs
}

// group returns the ends of several pods. Pods of a workload that no policy can tell apart
// become one end, which has the name of the workload if it contains all live pods of the workload.
// group leaves out pods that have ended, unless all have ended.
func (v *Inventory) group(pods []*policy.Pod, to bool) ([]*End, error) {
	if slices.ContainsFunc(pods, alive) {
		pods = slices.DeleteFunc(slices.Clone(pods), func(p *policy.Pod) bool { return !alive(p) })
	}
	type key struct {
		workload policy.Ref
		class    Class
	}
	known := make(map[key]*End)
	var ends []*End
	var first error
	for _, p := range pods {
		e, err := v.pod(p, to)
		if err != nil {
			first = cmp.Or(first, err)
			continue
		}
		k := key{e.Workload, v.ClassOf(e)}
		if o := known[k]; o != nil {
			o.Pods = append(o.Pods, p)
			continue
		}
		if e.Workload != (policy.Ref{}) && e.Pod != nil {
			known[k] = e
		}
		ends = append(ends, e)
	}
	if len(ends) == 0 {
		return nil, first
	}
	for _, e := range ends {
		v.rename(e)
	}
	return ends, nil
}

// rename gives an end of several pods the name of their workload. If the workload has other live
// pods, the name of the end is a list of its pods.
func (v *Inventory) rename(e *End) {
	if len(e.Pods) < 2 {
		return
	}
	all := v.workloads[e.Workload]
	if n := len(slices.DeleteFunc(slices.Clone(all), func(p *policy.Pod) bool { return !alive(p) })); n == len(e.Pods) {
		e.Name = e.Workload.Namespace + "/" + e.Workload.Name
		return
	}
	names := make([]string, len(e.Pods))
	for i, p := range e.Pods {
		names[i] = p.String()
	}
	e.Name = near.List(names, 3, ", ")
}
