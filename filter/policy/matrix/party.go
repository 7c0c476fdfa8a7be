package matrix

import (
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/reach"
)

// Party is a row or a column: pods, nodes, or addresses outside the cluster.
type Party struct {
	Name      string   `json:"name"` // "shop/web"; "shop/*" for a namespace
	Kind      string   `json:"kind"` // "namespace", "pods", "host-network", "nodes" or "outside"
	Namespace string   `json:"namespace,omitempty"`
	Workload  string   `json:"workload,omitempty"` // as in "Deployment shop/web"
	Pods      []string `json:"pods,omitempty"`
	Nodes     []string `json:"nodes,omitempty"`
	Ranges    []string `json:"ranges,omitempty"`
	// Addresses are the addresses of the pods; empty if none is known.
	Addresses []string `json:"addresses,omitempty"`
	Ports     []Port   `json:"ports,omitempty"` // declared by the containers of the pods

	Egress  []string `json:"egressPolicies,omitempty"`  // policies that isolate the pods in egress
	Ingress []string `json:"ingressPolicies,omitempty"` // policies that isolate the pods in ingress
	// The policies of the tiers Admin and Baseline that may decide about the pods, in the order
	// of their evaluation.
	OrderedEgress  []string `json:"orderedEgressPolicies,omitempty"`
	OrderedIngress []string `json:"orderedIngressPolicies,omitempty"`

	// Outside describes the ways on which the pods are reached from outside the cluster, such as
	// Ingresses.
	Outside []string `json:"reachedFromOutside,omitempty"`

	members []member
}

// member is a part of a party that policies treat alike: a party of package reach, or one of its pods.
type member struct {
	*reach.Party
	pod *policy.Pod // if not nil, the member is only this pod of the Party
}

func (m member) name() string {
	if m.pod != nil {
		return m.pod.String()
	}
	return m.Name
}

// pods returns the pods of the member.
func (m member) pods() []*policy.Pod {
	if m.pod != nil {
		return []*policy.Pod{m.pod}
	}
	return m.Pods
}

// ports returns the ports that the containers of the member declare.
func (m member) ports() []policy.NamedPort {
	if m.pod != nil {
		return m.pod.Ports
	}
	return m.Ports
}

// single reports whether the member is one pod.
func (m member) single() bool { return m.pod != nil || m.Single() }

// partiesOf returns the rows and columns of a matrix.
func partiesOf(r *reach.Map, by By) (all []*Party) {
	namespaces := make(map[string]*Party)
	for _, p := range r.Parties {
		switch {
		case by == ByNamespace && p.Namespace != "":
			n := namespaces[p.Namespace]
			if n == nil {
				n = &Party{Name: p.Namespace + "/*", Kind: "namespace", Namespace: p.Namespace}
				namespaces[p.Namespace] = n
				all = append(all, n)
			}
			n.add(member{Party: p})
		case by == ByPod && len(p.Pods) > 0:
			for _, pod := range p.Pods {
				all = append(all, newParty(member{p, pod}))
			}
		default:
			all = append(all, newParty(member{Party: p}))
		}
	}
	if by == ByPod {
		slices.SortStableFunc(all, comparePods)
	}
	return all
}

// byNamespace sorts parties by namespace. Parties without a namespace come last.
func byNamespace(all []*Party) {
	slices.SortStableFunc(all, func(a, b *Party) int {
		if (a.Namespace == "") != (b.Namespace == "") {
			return strings.Compare(b.Namespace, a.Namespace)
		}
		return strings.Compare(a.Namespace, b.Namespace)
	})
}

// comparePods sorts parties by namespace and name. Parties without a namespace come last.
func comparePods(a, b *Party) int {
	switch {
	case a.Namespace == "" && b.Namespace == "":
		return 0
	case a.Namespace == "":
		return 1
	case b.Namespace == "":
		return -1
	case a.Namespace != b.Namespace:
		return strings.Compare(a.Namespace, b.Namespace)
	}
	return strings.Compare(a.Name, b.Name)
}

func newParty(m member) *Party {
	p := &Party{Name: m.name(), Kind: m.Kind.String(), Namespace: m.Namespace, Nodes: m.Nodes}
	if m.Workload != (policy.Ref{}) {
		p.Workload = m.Workload.Object()
	}
	for _, one := range m.Ranges {
		p.Ranges = append(p.Ranges, one.String())
	}
	p.add(m)
	p.Ports = declaredPorts(m.ports())
	p.Egress, p.OrderedEgress = m.Policies(filter.Egress)
	p.Ingress, p.OrderedIngress = m.Policies(filter.Ingress)
	return p
}

// add adds a member.
func (p *Party) add(m member) {
	p.members = append(p.members, m)
	for _, pod := range m.pods() {
		p.Pods = append(p.Pods, pod.String())
		for _, a := range pod.Addrs {
			p.Addresses = append(p.Addresses, a.String())
		}
	}
}
