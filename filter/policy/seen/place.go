package seen

import (
	"net/netip"
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/flow"
	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/reach"
)

// maxKnown bounds the ends of flows that a placer remembers. They take at most some 20 MB.
const maxKnown = 100_000

// nowhere is the index of the unit of an end that is not found.
const nowhere = -1

// placer finds the units of the two ends of a flow: of its source and of its destination.
type placer struct {
	units     []Unit
	pods      map[string]int32   // by "namespace/name"
	nodeOf    map[string]string  // nodes of pods, by "namespace/name"
	workloads map[string][]int32 // by "namespace/name", of any kind
	inside    map[string][]int32 // units of pods, by namespace
	byAddress map[netip.Addr]int32
	nodes     map[string]int32     // by name
	nodeAt    map[netip.Addr]int32 // by address: nodes and pods of the host network
	onlyNodes int32                // the unit of the nodes, if there is only one
	ranges    []int32              // units outside the cluster, except the world
	world     int32
	services  map[netip.Addr]string // by cluster IP

	known map[string]int32 // units by the name of an end
}

func newPlacer(m *reach.Map, byPod bool) *placer {
	p := &placer{
		pods: make(map[string]int32), nodeOf: make(map[string]string), workloads: make(map[string][]int32), inside: make(map[string][]int32),
		byAddress: make(map[netip.Addr]int32), nodes: make(map[string]int32), nodeAt: make(map[netip.Addr]int32),
		onlyNodes: nowhere, world: nowhere, services: servicesOf(m.Inventory()), known: make(map[string]int32),
	}
	nodes := 0
	for _, party := range m.Parties {
		switch {
		case party.Kind == reach.Nodes:
			p.onlyNodes = p.addUnit(Unit{party, nil})
			nodes++
			for _, name := range party.Nodes {
				p.nodes[name] = p.onlyNodes
			}
		case party.Kind == reach.Outside:
			p.addOutside(party)
		case byPod:
			for _, pod := range party.Pods {
				p.addPods(Unit{party, pod}, []*policy.Pod{pod})
			}
		default:
			p.addPods(Unit{party, nil}, party.Pods)
		}
	}
	if nodes != 1 {
		p.onlyNodes = nowhere
	}
	p.addNodeAddresses(m.Inventory())
	return p
}

func (p *placer) addUnit(u Unit) int32 {
	p.units = append(p.units, u)
	return int32(len(p.units) - 1)
}

func (p *placer) addOutside(party *reach.Party) {
	at := p.addUnit(Unit{party, nil})
	if party.Name == inventory.World {
		p.world = at
		return
	}
	p.ranges = append(p.ranges, at)
}

// addPods adds a unit of pods.
func (p *placer) addPods(u Unit, pods []*policy.Pod) {
	at := p.addUnit(u)
	p.inside[u.Namespace] = append(p.inside[u.Namespace], at)
	if u.Workload != (policy.Ref{}) {
		name := u.Namespace + "/" + u.Workload.Name
		p.workloads[name] = append(p.workloads[name], at)
	}
	for _, pod := range pods {
		p.pods[pod.String()], p.nodeOf[pod.String()] = at, pod.Node
		for _, a := range pod.Addrs {
			if pod.HostNetwork {
				p.nodeAt[a] = at
			} else {
				p.byAddress[a] = at
			}
		}
	}
}

// addNodeAddresses maps the addresses of nodes to their units. If a pod of the host network has the
// address of a node, the address counts for the node.
func (p *placer) addNodeAddresses(v *inventory.Inventory) {
	for _, e := range v.NodeEnds() {
		at, is := p.nodes[e.Name]
		if !is {
			continue
		}
		for _, a := range e.Addrs {
			p.nodeAt[a] = at
		}
	}
}

// servicesOf returns the names of Services by their cluster IPs.
func servicesOf(v *inventory.Inventory) map[netip.Addr]string {
	all := make(map[netip.Addr]string)
	for _, s := range v.Services {
		for _, text := range append(slices.Clone(s.Spec.ClusterIPs), s.Spec.ClusterIP) {
			if a, err := netip.ParseAddr(text); err == nil { // it may be empty or "None"
				all[a.Unmap()] = s.Namespace + "/" + s.Name
			}
		}
	}
	return all
}

// place returns the key of a flow. If the flow is left out, why is the reason, and example is what the
// output names for it. Otherwise why is empty.
func (p *placer) place(r *flow.Record) (k key, why flow.Skip, example string) {
	proto, known := filter.ParseProtocol(r.Protocol)
	switch {
	case r.Event == flow.Denied.String() && r.Reason != "" && r.Reason != filter.EgressDenied.String() && r.Reason != filter.IngressDenied.String():
		return k, LeftReason, r.Reason
	case r.Transport != "", known && proto.HasPorts() && r.DstPort == 0:
		return k, LeftPorts, ""
	case !known:
		return k, LeftProtocol, r.Protocol
	}
	if k.proto, k.port = proto, r.DstPort; !proto.HasPorts() {
		k.proto, k.port = filter.ICMP, 0
	}
	if name, is := p.services[r.Dst]; is && (r.Into == nil || r.Into.Kind != flow.PodEnd) {
		return k, LeftService, name
	}
	if k.from = p.find(r.From, r.Src); k.from == nowhere {
		return k, LeftEnds, endText(r.From, r.Src)
	}
	if k.to = p.find(r.Into, r.Dst); k.to == nowhere {
		return k, LeftEnds, endText(r.Into, r.Dst)
	}
	k.own = p.onNode(r.From, r.Into) || p.onNode(r.Into, r.From)
	return k, "", ""
}

// onNode reports whether a pod runs on a host.
func (p *placer) onNode(pod, host *flow.End) bool {
	if pod == nil || host == nil || pod.Kind != flow.PodEnd || host.Kind == flow.PodEnd || host.Node == "" {
		return false
	}
	if pod.Node != "" {
		return pod.Node == host.Node
	}
	return p.nodeOf[pod.Namespace+"/"+pod.Pod] == host.Node
}

// endText names an end that is not found.
func endText(e *flow.End, addr netip.Addr) string {
	switch {
	case e != nil && e.Kind == flow.PodEnd && e.Workload != nil:
		return e.Namespace + "/" + e.Workload.Name
	case e != nil && e.Kind == flow.PodEnd:
		return e.Namespace + "/" + e.Pod
	case e != nil && e.Node != "":
		return "node " + e.Node
	case addr.IsValid():
		return addr.String()
	}
	return "an end without a name and an address"
}

// find returns the unit of an end. It looks for the name of the end before its address, because the
// address may have another owner now.
func (p *placer) find(e *flow.End, addr netip.Addr) int32 {
	name := addr.String()
	switch {
	case e == nil:
	case e.Kind == flow.PodEnd:
		name = e.Namespace + "/" + e.Pod
		if e.Pod == "" && e.Workload != nil {
			name = "workload " + e.Namespace + "/" + e.Workload.Name
		}
	default:
		name = e.Kind + " " + e.Node + " " + name
	}
	at, known := p.known[name]
	if !known {
		at = p.look(e, addr)
		if len(p.known) >= maxKnown {
			clear(p.known)
		}
		p.known[name] = at
	}
	return at
}

func (p *placer) look(e *flow.End, addr netip.Addr) int32 {
	switch {
	case e != nil && e.Kind == flow.PodEnd:
		return p.pod(e)
	case e != nil && e.Kind != flow.WorldEnd:
		return p.node(e, addr)
	case e == nil:
		if at, is := p.byAddress[addr]; is {
			return at
		}
	}
	if at, is := p.nodeAt[addr]; is {
		return at
	}
	return p.outside(addr)
}

// node returns the unit of a node. A node that is not in the manifests gets the unit of the other nodes,
// if these have only one unit because policies treat them all alike.
func (p *placer) node(e *flow.End, addr netip.Addr) int32 {
	if at, is := p.nodes[e.Node]; is {
		return at
	}
	if at, is := p.nodeAt[addr]; is {
		return at
	}
	return p.onlyNodes
}

func (p *placer) outside(addr netip.Addr) int32 {
	if !addr.IsValid() {
		return p.world
	}
	for _, at := range p.ranges {
		if slices.ContainsFunc(p.units[at].Ranges, func(r inventory.Range) bool { return r.Contains(addr) }) {
			return at
		}
	}
	return p.world
}

// volatile are the labels that differ between the pods of a workload, or between its versions.
var volatile = []string{
	"pod-template-hash", "controller-revision-hash", "pod-template-generation", "statefulset.kubernetes.io/pod-name",
	"apps.kubernetes.io/pod-index", "controller-uid", "batch.kubernetes.io/controller-uid", "job-name", "batch.kubernetes.io/job-name",
}

// pod returns the unit of a pod. It looks for the name of the pod, then for the name of its workload. If
// the workload is not given, it takes the beginning of the pod's name as the name of the workload. Last,
// it compares labels.
func (p *placer) pod(e *flow.End) int32 {
	if at, is := p.pods[e.Namespace+"/"+e.Pod]; is && e.Pod != "" {
		return at
	}
	if e.Workload != nil {
		if at := p.workload(e); at != nowhere {
			return at
		}
	}
	// The name of a Deployment's pod is that of the Deployment and two more parts. Names of other pods
	// have one more part than those of their workloads.
	const parts = 2
	short := e.Pod
	for range parts {
		dash := strings.LastIndexByte(short, '-')
		if dash <= 0 {
			break
		}
		short = short[:dash]
		units := p.workloads[e.Namespace+"/"+short]
		if at, is := p.pods[e.Namespace+"/"+short]; is && len(units) == 0 {
			units = []int32{at} // a pod that stands for its workload, as in examples
		}
		if at := p.among(units, e, 0); at != nowhere {
			return at
		}
	}
	return p.among(p.inside[e.Namespace], e, 1)
}

// workload returns the unit of the workload that an end names. If policies treat the pods of the workload
// differently, the labels of the end decide.
func (p *placer) workload(e *flow.End) int32 {
	var units []int32
	for _, at := range p.workloads[e.Namespace+"/"+e.Workload.Name] {
		if e.Workload.Kind == "" || p.units[at].Workload.Kind == e.Workload.Kind {
			units = append(units, at)
		}
	}
	if len(units) == 0 {
		return nowhere
	}
	other := func(at int32) bool { return p.units[at].Party != p.units[units[0]].Party }
	if slices.ContainsFunc(units, other) {
		return p.among(units, e, 0)
	}
	return units[0]
}

// among returns the unit whose pods have the most labels in common with an end. It considers only units
// whose pods have at least least labels in common with the end, and no label that the end lacks. If
// several units have the most labels in common, it returns one of them if all are pods of the same party,
// which policies treat alike. Otherwise it returns nowhere.
func (p *placer) among(units []int32, e *flow.End, least int) int32 {
	best, most, tied := int32(nowhere), least-1, false
	for _, at := range units {
		n, fits := p.common(at, e)
		switch {
		case !fits || n < most || n < least:
		case n > most:
			best, most, tied = at, n, false
		case p.units[at].Party != p.units[best].Party:
			tied = true
		}
	}
	if tied {
		return nowhere
	}
	return best
}

// common returns how many labels the pods of a unit and an end have in common. fits is false if the end
// has labels, and the pods have a label that the end lacks.
func (p *placer) common(at int32, e *flow.End) (n int, fits bool) {
	u := p.units[at]
	pod := u.Pod
	if pod == nil {
		pod = u.Pods[0] // the pods of a party have the labels that policies look at in common
	}
	if len(e.Labels) == 0 {
		return 0, true
	}
	for k, v := range pod.Labels {
		if slices.Contains(volatile, k) {
			continue
		}
		if have, has := e.Labels[k]; !has || have != v {
			return 0, false
		}
		n++
	}
	return n, true
}
