// Package inventory holds a cluster that people ask about: its pods and the workloads that make
// them, its Services, Nodes and policies, and the snapshot compiled from them. It finds the ends
// of flows by the names that people use, as in "deploy/web" or "svc/db".
//
// Manifests in Git have no pods of workloads, and the Pods that they do have lack an address. The
// inventory makes a pod for each workload without pods, and assumes an address for each pod without
// one: one of each family that any object mentions, see [Inventory.LeftOut]. If a policy has a range that may or may not contain such a pod, [Inventory.Elsewhere] returns
// the flow for the other addresses that may get another verdict.
package inventory

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/kuberoute"
)

// Objects are the objects of a cluster, with the defaults of the API server applied.
type Objects struct {
	Namespaces []*corev1.Namespace
	Pods       []*policy.Pod
	Nodes      []*policy.Node
	Workloads  []*kubepod.Workload
	Policies   []*policy.Policy

	// Services and EndpointSlices lead from the names and addresses of Services to endpoints.
	Services       []*corev1.Service
	EndpointSlices []*discoveryv1.EndpointSlice
	// Routing are the objects that lead from outside the cluster to Services.
	Routing kuberoute.Objects

	// NodeAddrs are addresses of the node that the pods run on, in addition to those in the
	// status of pods and Nodes.
	NodeAddrs []netip.Addr
	// PodRanges are ranges from which pods get their addresses, in addition to the ranges of
	// the Nodes.
	PodRanges []netip.Prefix
	// NamespacesUnread reports that not all Namespaces could be read, so that one that is missing
	// in Namespaces may exist.
	NamespacesUnread bool
	// Unread are the other kinds of which not all objects could be read.
	Unread []Unread
	// Limits bound the memory of policies; nil means the default limits.
	Limits *policy.Limits
}

// Inventory is a cluster that people ask about. It must not be used concurrently.
type Inventory struct {
	Objects
	// Snapshot decides about flows. It has each pod whose address is assumed under a placeholder
	// that no packet can have: call Inventory.Decide, which knows these pods.
	Snapshot *policy.Snapshot
	// Problems are the parts of policies that the readers cannot understand, sorted by policy.
	Problems []policy.Problem
	// Clashes are the addresses that several live pods claim.
	Clashes []policy.Clash

	namespaces map[string]labels.Set
	pods       map[string]*policy.Pod   // pods by "namespace/name"
	podsIn     map[string][]*policy.Pod // by namespace, not sorted; nil until it is first used
	endpoints  map[*policy.Pod]*policy.Endpoint
	workloads  map[policy.Ref][]*policy.Pod // the pods of each workload, sorted by name
	workloadOf map[*policy.Pod]policy.Ref
	services   map[string]*service // by "namespace/name"
	byAddress  map[netip.Addr]*service
	byOuter    map[netip.Addr]*service // by the addresses of load balancers and by external addresses
	exposures  []*Exposure             // nil until Exposures is called
	sendersBy  map[string]Senders      // by the key of once, such as the class of an Ingress
	marks      marks
	hosts      map[netip.Addr]bool // the addresses of nodes in the status of pods
	nodesAt    map[netip.Addr][]*policy.Node

	families      [2]bool             // the address families that the cluster uses, IPv4 first
	podsAddressed bool                // a pod has an address, so that families does not depend on policies
	inPodRanges   []netip.Prefix      // the known ranges of pods, disjoint and sorted
	beside        *Inventory          // the inventory that this one is compared with; nil if there is none
	nodeSelectors []labels.Selector   // the node selectors of the policies, each once, sorted
	places        [2][]Range          // by family, IPv4 first: the ranges of pods, as findPlaces cuts them
	hostPlaces    [2][]Range          // like places, for pods of the host network
	assumed       map[netip.Addr]bool // the addresses that assume returns
}

// New returns an inventory of the objects, with the snapshot compiled from them.
func New(o Objects) *Inventory {
	v := &Inventory{
		Objects:    o,
		namespaces: make(map[string]labels.Set, len(o.Namespaces)),
		pods:       make(map[string]*policy.Pod, len(o.Pods)),
		endpoints:  make(map[*policy.Pod]*policy.Endpoint),
		workloads:  make(map[policy.Ref][]*policy.Pod),
		workloadOf: make(map[*policy.Pod]policy.Ref),
		services:   make(map[string]*service),
		byAddress:  make(map[netip.Addr]*service),
		byOuter:    make(map[netip.Addr]*service),
		marks:      marksOf(o.Policies),
		hosts:      make(map[netip.Addr]bool),
		nodesAt:    nodesByAddress(o.Nodes),

		nodeSelectors: nodeSelectorsOf(o.Policies),
	}
	for _, ns := range o.Namespaces {
		v.namespaces[ns.Name] = ns.Labels
	}
	for _, p := range o.Pods {
		v.pods[p.String()] = p
		for _, a := range p.Hosts {
			v.hosts[a] = true
		}
		if p.HostNetwork {
			for _, a := range p.Addrs {
				v.hosts[a] = true
			}
		}
	}
	v.addWorkloads()
	v.addServices()
	v.compile()
	v.place()
	return v
}

// compile sets the snapshot, the problems and the clashes.
func (v *Inventory) compile() {
	w := policy.NewStore()
	w.AssumeNodeAddrs()
	if v.Limits != nil {
		w.SetLimits(*v.Limits)
	}
	w.SetNode(v.NodeAddrs)
	for _, ns := range v.Namespaces {
		w.SetNamespace(ns.Name, ns.Labels)
		denial, wrong := policy.NamespaceDenial(ns.Name, ns.Annotations)
		w.SetNamespaceDenial(ns.Name, denial, wrong)
		w.SetNamespaceLog(ns.Name, policy.ReadNamespaceLog(ns.Name, ns.Annotations))
	}
	for _, n := range v.Nodes {
		w.SetNodeObject(n)
	}
	placeholders := make(map[*policy.Pod]netip.Addr)
	next := netip.MustParseAddr("100::") // a prefix that nothing is routed to (RFC 6666)
	for _, p := range v.pods {
		if !Assumed(p) {
			w.SetPod(p)
			continue
		}
		next = next.Next()
		placeholders[p] = next
		stored := *p
		stored.Addrs = []netip.Addr{next}
		w.SetPod(&stored)
	}
	for _, p := range v.Policies {
		w.SetPolicy(p)
	}
	v.Snapshot, _ = w.Commit()
	v.Problems, v.Clashes = w.Problems(), w.Clashes()
	for p, addr := range placeholders {
		v.endpoints[p] = v.Snapshot.Endpoint(addr)
	}
}

// Assumed reports whether the address of a pod is assumed: the pod has none of its own, but will
// have one when it runs.
func Assumed(p *policy.Pod) bool {
	return len(p.Addrs) == 0 && !p.HostNetwork && p.Ended == ""
}

// NamespaceLabels returns the labels of a namespace, including the label with the namespace's name
// that every namespace has.
func (v *Inventory) NamespaceLabels(name string) labels.Set {
	return labels.Merge(v.namespaces[name], labels.Set{corev1.LabelMetadataName: name})
}

// HasNamespace reports whether there is a Namespace object of a name.
func (v *Inventory) HasNamespace(name string) bool {
	_, has := v.namespaces[name]
	return has
}

// Pod returns the pod of a name, "namespace/name"; nil if there is none.
func (v *Inventory) Pod(name string) *policy.Pod { return v.pods[name] }
