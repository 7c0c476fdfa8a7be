// Package matrix computes which pods can reach each other at which ports, and writes the
// result as text, JSON or an HTML page. The verdicts are those of Snapshot.Decide.
package matrix

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sluice/filter"
	"sluice/filter/policy"
)

// MaxPods is the largest number of pods for which New computes the cells. With more pods, New
// returns a matrix without cells: n pods would have n*n cells.
const MaxPods = 2000

// Matrix holds a verdict for each pair of pods and each port.
type Matrix struct {
	Pods  []*Pod  `json:"pods"`
	Flows []*Cell `json:"flows"` // a cell from each pod to each, in the order of Pods
	// NotRead lists objects that were not read and may change verdicts.
	NotRead []fmt.Stringer `json:"notRead,omitempty"`

	// LeftOut counts pods without an address of their own.
	LeftOut int `json:"-"`

	snapshot *policy.Snapshot
	policies map[string][2][]portSpan // ports that the rules of a policy name, by policy and direction
	spans    map[spanKey][]portSpan
}

// Port is a port to decide about.
type Port struct {
	Number   uint16 `json:"port"`
	Protocol string `json:"protocol"`
	Name     string `json:"name,omitempty"`

	proto filter.Protocol
}

// String returns the port in its short form, such as "80" or "53/UDP".
func (p Port) String() string {
	if p.proto == filter.TCP {
		return strconv.Itoa(int(p.Number))
	}
	return strconv.Itoa(int(p.Number)) + "/" + p.Protocol
}

// The verdicts about a port of a cell. "mixed" means that the flow is allowed for one address
// family and denied for the other. In the type Other, which covers many ports, "mixed" may also
// mean that some of these ports are allowed and some are denied.
const (
	allowed = "allow"
	denied  = "deny"
	mixed   = "mixed"
)

// Answer is the verdict about one port of a destination, or about all ports that are not
// listed.
type Answer struct {
	Verdict string `json:"verdict"`
	Reason  string `json:"reason"`
	Why     string `json:"why"` // the policies and rules that decide
}

// Cell is the answer for one pair of pods.
type Cell struct {
	From  string     `json:"from"`
	To    string     `json:"to"`
	Ports []PortCell `json:"ports"`
	Other *Other     `json:"other,omitempty"` // the answer about all ports that are not in the field Ports
}

// PortCell is the answer about one port.
type PortCell struct {
	Port
	Answer
}

// Other is the answer about all ports that have no PortCell.
type Other struct {
	Answer
	// Allowed and OneFamily are set if the verdicts differ. They list the open ports, and the
	// ports that are open for only one address family, as in "TCP 8000-8100", "UDP", "ICMP".
	// All other ports are closed.
	Allowed   []string `json:"allowed,omitempty"`
	OneFamily []string `json:"oneFamily,omitempty"`
}

// NewPort returns a port of a protocol.
func NewPort(number uint16, p filter.Protocol) Port {
	return Port{Number: number, Protocol: p.String(), proto: p}
}

// Options restrict a matrix.
type Options struct {
	Ports      []Port   // if not empty, only these ports of every pod
	Namespaces []string // if not empty, only pods of these namespaces
}

// New computes the matrix of the pods that have an address of their own.
func New(s *policy.Snapshot, pods []*policy.Pod, policies []*policy.Policy, o Options) *Matrix {
	m := &Matrix{snapshot: s, policies: policyPorts(policies), spans: make(map[spanKey][]portSpan)}
	for _, p := range pods {
		if len(o.Namespaces) == 0 || slices.Contains(o.Namespaces, p.Namespace) {
			m.add(p, o.Ports)
		}
	}
	slices.SortFunc(m.Pods, func(a, b *Pod) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	if len(m.Pods) <= MaxPods {
		m.fill(len(o.Ports) > 0)
	}
	return m
}

// add adds a pod, unless it has no address of its own.
func (m *Matrix) add(o *policy.Pod, asked []Port) {
	p := &Pod{Namespace: o.Namespace, Name: o.Name, Ports: asked}
	for _, addr := range o.Addrs {
		// Pods of the host network and pods that have ended own no address, although their
		// status has one.
		if owner := m.snapshot.Endpoint(addr); owner.String() == p.String() && !slices.Contains(p.Addresses, addr) {
			p.Addresses, p.endpoint = append(p.Addresses, addr), owner
		}
	}
	if p.endpoint == nil {
		m.LeftOut++
		return
	}
	if len(asked) == 0 {
		p.Ports = declaredPorts(o)
	}
	p.Egress, p.Ingress = p.endpoint.Policies(filter.Egress, policy.NetworkPolicy), p.endpoint.Policies(filter.Ingress, policy.NetworkPolicy)
	for _, d := range []filter.Direction{filter.Egress, filter.Ingress} {
		for t := policy.Admin; t < filter.NumTiers; t++ {
			p.deciding[d] = append(p.deciding[d], p.endpoint.Policies(d, t)...)
		}
		p.decidingText[d] = strings.Join(p.deciding[d], " ")
	}
	p.OrderedEgress, p.OrderedIngress = p.ordered(filter.Egress), p.ordered(filter.Ingress)
	m.Pods = append(m.Pods, p)
}

// Pod is a pod of the matrix: a row and a column.
type Pod struct {
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`
	Ports     []Port       `json:"ports,omitempty"`
	Egress    []string     `json:"egressPolicies,omitempty"`  // policies that isolate it
	Ingress   []string     `json:"ingressPolicies,omitempty"` // policies that isolate it
	// The policies of the tiers Admin and Baseline that may decide about the pod, in the order
	// of their evaluation.
	OrderedEgress  []string `json:"orderedEgressPolicies,omitempty"`
	OrderedIngress []string `json:"orderedIngressPolicies,omitempty"`

	endpoint *policy.Endpoint
	// The policies of all tiers that may decide about the pod, by direction. The names are
	// those that verdicts use.
	deciding     [2][]string
	decidingText [2]string
}

// ordered returns the titles of the policies with ordered rules, such as "admin/platform".
func (p *Pod) ordered(d filter.Direction) (titles []string) {
	for _, t := range []policy.Tier{policy.Admin, policy.Baseline} {
		for _, name := range p.endpoint.Policies(d, t) {
			titles = append(titles, filter.PolicyTitle(t, name))
		}
	}
	return titles
}

func (p *Pod) String() string { return p.Namespace + "/" + p.Name }

// declaredPorts lists the ports that a pod declares, sorted by number.
func declaredPorts(o *policy.Pod) []Port {
	var ports []Port
	for _, p := range o.Ports {
		same := func(o Port) bool { return o.Number == p.Number && o.proto == p.Protocol }
		if !slices.ContainsFunc(ports, same) {
			ports = append(ports, Port{p.Number, p.Protocol.String(), p.Name, p.Protocol})
		}
	}
	slices.SortFunc(ports, func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.proto, b.proto))
	})
	return ports
}

// WriteJSON writes the matrix as JSON.
func (m *Matrix) WriteJSON(out io.Writer) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(m)
}
