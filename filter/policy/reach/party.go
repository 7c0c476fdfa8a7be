package reach

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/near"
)

// Kind is the kind of a party.
type Kind uint8

// The kinds.
const (
	Pods     Kind = iota // pods with addresses of their own
	HostPods             // pods of the host network: policies treat them as their nodes
	Nodes
	Outside // addresses outside the cluster
)

// String returns the kind as in JSON.
func (k Kind) String() string {
	return [...]string{Pods: "pods", HostPods: "host-network", Nodes: "nodes", Outside: "outside"}[k]
}

// Party is a group of ends that policies cannot tell apart. A party of pods has pods of one workload,
// or one pod without a workload.
type Party struct {
	// Name is unique in a map: "namespace/name" of a workload or a pod, several names of pods or
	// nodes, "nodes", a range, or [inventory.World].
	Name      string
	Kind      Kind
	Namespace string     // of the pods
	Workload  policy.Ref // of the pods; zero for a pod without a workload
	// Pods are the pods, sorted by name. For a workload without pods, the inventory has made
	// one.
	Pods []*policy.Pod
	// Part reports that the workload has further pods, in other parties.
	Part bool
	// Nodes are the names of the nodes, sorted.
	Nodes []string
	// Ranges are the addresses outside the cluster: one range, but the world has one of each family.
	Ranges []inventory.Range
	// PodRange reports that the range is in a known range of pods: the party stands for pods that are not
	// known, and not for addresses outside the cluster. Its kind is Outside, since no policy isolates it.
	PodRange bool
	// Ports are the ports that the containers of the pods declare, sorted by number.
	Ports []policy.NamedPort
	// Assumed reports that the addresses of the pods are not known.
	Assumed bool

	ends  []*inventory.End
	at    map[netip.Addr]*inventory.End // ends by address; nil until pairWith is called
	class *class
}

// class is shared by all parties that policies cannot tell apart.
type class struct {
	cuts  [2]cuts // by direction: the ports in the policies that decide about the party
	named cuts    // the numbers of the party's named ports
}

// Single reports whether the party can only be one pod. A workload whose pod is made from its template
// may have more.
func (p *Party) Single() bool {
	return len(p.Pods) == 1 && (!p.Assumed || p.Workload == policy.Ref{})
}

// Policies returns the titles of the policies that decide about the pods in a direction: those that
// isolate them, and those of the tiers Admin and Baseline, in the order of their evaluation. It
// returns nothing for other parties.
func (p *Party) Policies(d filter.Direction) (isolating, ordered []string) {
	if p.Kind != Pods {
		return nil, nil
	}
	e := p.ends[0].Endpoint
	for _, t := range []policy.Tier{policy.Admin, policy.Baseline} {
		for _, name := range e.Policies(d, t) {
			ordered = append(ordered, filter.PolicyTitle(t, name))
		}
	}
	return e.Policies(d, policy.NetworkPolicy), ordered
}

// hasNodes reports whether the party has the addresses of nodes.
func (p *Party) hasNodes() bool { return p.Kind == Nodes || p.Kind == HostPods }

// pairWith returns a pod of the party and a node of another party. The pod runs on the node if own is
// true, and on another node otherwise. The results are nil if there is no such pair.
func (p *Party) pairWith(nodes *Party, own bool) (pod, node *inventory.End) {
	if nodes.at == nil {
		nodes.at = make(map[netip.Addr]*inventory.End)
		for _, n := range nodes.ends {
			for _, a := range n.Addrs {
				nodes.at[a] = n
			}
		}
	}
	for _, e := range p.ends {
		hosts := e.Endpoint.Hosts()
		if own {
			for _, h := range hosts {
				if n := nodes.at[h]; n != nil {
					return e, n
				}
			}
			continue
		}
		for _, n := range nodes.ends {
			if !slices.ContainsFunc(n.Addrs, func(a netip.Addr) bool { return slices.Contains(hosts, a) }) {
				return e, n
			}
		}
	}
	return nil, nil
}

// addPods adds the parties of pods.
func (m *Map) addPods() {
	type key struct {
		workload policy.Ref
		pod      string // name of a pod without a workload
		host     bool
		class    inventory.Class
	}
	groups := make(map[key]*Party)
	for _, pod := range m.inventory.AllPods() {
		e, err := m.inventory.EndOf(pod, false)
		if err != nil {
			m.LeftOut = append(m.LeftOut, LeftOut{pod, err})
			continue
		}
		k := key{workload: e.Workload, host: pod.HostNetwork, class: m.inventory.ClassOf(e)}
		if e.Workload == (policy.Ref{}) {
			k.pod = pod.String()
		}
		p := groups[k]
		if p == nil {
			p = &Party{Namespace: pod.Namespace, Workload: e.Workload, Assumed: e.Assumed, class: m.classOf(e)}
			if pod.HostNetwork {
				p.Kind = HostPods
			}
			groups[k] = p
			m.Parties = append(m.Parties, p)
		}
		p.Pods, p.ends = append(p.Pods, pod), append(p.ends, e)
		p.declare(pod.Ports)
	}
	m.namePods()
	slices.SortStableFunc(m.Parties, func(a, b *Party) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
}

// declare adds the ports that a pod declares.
func (p *Party) declare(ports []policy.NamedPort) {
	for _, port := range ports {
		if !slices.ContainsFunc(p.Ports, func(o policy.NamedPort) bool { return o.Number == port.Number && o.Protocol == port.Protocol }) {
			p.Ports = append(p.Ports, port)
		}
	}
	slices.SortFunc(p.Ports, func(a, b policy.NamedPort) int {
		return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Protocol, b.Protocol))
	})
}

// namePods names each party of pods after the workload or, if the workload has pods in other parties,
// after its own pods. If workloads of several kinds have the same name, the names contain the kind.
func (m *Map) namePods() {
	parts := make(map[policy.Ref]int)
	named := make(map[string]policy.Ref)
	clash := make(map[string]bool)
	for _, p := range m.Parties {
		parts[p.Workload]++
		name := p.Namespace + "/" + cmp.Or(p.Workload.Name, p.Pods[0].Name)
		if o, known := named[name]; known && o != p.Workload {
			clash[name] = true
		}
		named[name] = p.Workload
	}
	for _, p := range m.Parties {
		whole := p.Namespace + "/" + p.Workload.Name
		switch {
		case p.Workload == policy.Ref{}:
			p.Name = p.Pods[0].String()
		case parts[p.Workload] > 1:
			p.Part = true
			p.Name = podNames(p.Pods)
		case clash[whole]:
			p.Name = p.Namespace + "/" + strings.ToLower(p.Workload.Kind) + "/" + p.Workload.Name
		default:
			p.Name = whole
		}
	}
}

// maxNames bounds the number of pods or nodes in the name of a party.
const maxNames = 3

func podNames(pods []*policy.Pod) string {
	names := make([]string, len(pods))
	for i, p := range pods {
		names[i] = p.String()
	}
	return near.List(names, maxNames, ", ")
}

// addNodes adds the parties of nodes.
func (m *Map) addNodes() {
	groups := make(map[inventory.Class]*Party)
	var all []*Party
	for _, e := range m.inventory.NodeEnds() {
		k := m.inventory.ClassOf(e)
		p := groups[k]
		if p == nil {
			p = &Party{Kind: Nodes, class: m.classOf(e)}
			groups[k] = p
			all = append(all, p)
		}
		p.ends = append(p.ends, e)
		p.Nodes = append(p.Nodes, e.Name)
	}
	for _, p := range all {
		p.Name = near.List(p.Nodes, maxNames, ", ")
		if len(all) == 1 && len(p.Nodes) > 1 {
			p.Name = "nodes"
		}
	}
	m.Parties = append(m.Parties, all...)
}

// addOutside adds the addresses outside the cluster.
func (m *Map) addOutside() {
	var world *Party
	var others []*Party
	for _, e := range m.inventory.Outside() {
		if e.Name == inventory.World && world != nil {
			both := *world.ends[0]
			both.Addrs = append(slices.Clip(both.Addrs), e.Addrs...)
			world.ends[0], world.Ranges = &both, append(world.Ranges, *e.Range)
			continue
		}
		p := &Party{Name: e.Name, Kind: Outside, PodRange: e.PodRange, Ranges: []inventory.Range{*e.Range}, ends: []*inventory.End{e}, class: &class{}}
		if e.Name == inventory.World {
			world = p
			continue
		}
		others = append(others, p)
	}
	if world != nil {
		m.Parties = append(m.Parties, world)
	}
	m.Parties = append(m.Parties, others...)
}
