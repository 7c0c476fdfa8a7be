// Package explain says why a flow is allowed or denied.
//
// The verdict is always that of Snapshot.Decide; nothing here can change it. What
// the compiled snapshot has thrown away is how the policies are written, so the
// reasons are found in the objects themselves: the rules of the policies that the
// verdict names are read again and held against the flow, one by one, and what
// each lacks is put in words. That takes microseconds where a decision takes
// nanoseconds, and so is done only when someone asks.
//
// A random test holds the two together: where Decide denies, no rule lacks
// nothing; where it allows, the rule that it names lacks nothing.
package explain

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
)

// Objects are the objects that a snapshot was made from, as the API server would
// have them, and what could not be understood of them.
type Objects struct {
	Namespaces []*corev1.Namespace
	Pods       []*policy.Pod
	Policies   []*policy.Policy
	Problems   []policy.Problem

	// What is behind the addresses of Services; both may be empty.
	Services       []*corev1.Service
	EndpointSlices []*discoveryv1.EndpointSlice
}

// Cluster is what flows are explained in. It belongs to one goroutine.
type Cluster struct {
	snapshot   *policy.Snapshot
	namespaces map[string]labels.Set
	pods       map[string]*policy.Pod // by "namespace/name"
	policies   map[string]*policy.Policy
	problems   map[string][]policy.Problem // by policy
	ends       map[string]*End             // pods that were asked for
	services   map[netip.Addr]*service
}

// New returns the cluster of a snapshot and the objects that it was made from.
func New(s *policy.Snapshot, o Objects) *Cluster {
	c := &Cluster{
		snapshot:   s,
		namespaces: make(map[string]labels.Set, len(o.Namespaces)),
		pods:       make(map[string]*policy.Pod, len(o.Pods)),
		policies:   make(map[string]*policy.Policy, len(o.Policies)),
		problems:   make(map[string][]policy.Problem),
		ends:       make(map[string]*End),
		services:   make(map[netip.Addr]*service),
	}
	c.addServices(o.Services, o.EndpointSlices)
	for _, ns := range o.Namespaces {
		c.namespaces[ns.Name] = ns.Labels
	}
	for _, p := range o.Pods {
		c.pods[p.String()] = p
	}
	for _, p := range o.Policies {
		c.policies[p.Ref.String()] = p
	}
	for _, p := range o.Problems {
		name := p.Policy.String()
		c.problems[name] = append(c.problems[name], p)
	}
	return c
}

// namespaceLabels are a namespace's labels with the one that every namespace has.
func (c *Cluster) namespaceLabels(name string) labels.Set {
	return labels.Merge(c.namespaces[name], labels.Set{corev1.LabelMetadataName: name})
}

// Explanation is a verdict and what led to it.
type Explanation struct {
	Flow    Flow
	Verdict filter.Verdict
	Egress  Side // of the source
	Ingress Side // of the destination
	Notes   []string
}

// Side is one direction's half of an explanation.
type Side struct {
	Direction filter.Direction
	Pod       string   // the pod that is guarded, "namespace/name"; empty if the end is none
	Policies  []string // that isolate it, by name

	// Of a side that is isolated and allows: the rule, with nothing lacking.
	Allowed *Reading
	// Of a side that denies: the rules that come nearest, by how much they lack and
	// then by policy and number; how many more lack as much; the policies that have
	// no rule in this direction; and what would allow the flow.
	Nearest []Reading
	More    int
	Empty   []string
	Change  *Change

	// What could not be understood of the policies that isolate the pod, or is too large.
	Problems []policy.Problem
}

// Allows says whether the side lets the flow pass.
func (s *Side) Allows() bool { return len(s.Policies) == 0 || s.Allowed != nil }

// maxNearest is how many rules a denied side shows: of fifty that lack the same,
// the others say nothing new.
const maxNearest = 3

// Decide gives the verdict about a flow.
func (c *Cluster) Decide(f Flow) filter.Verdict { return c.snapshot.Decide(f.Key) }

// Explain gives the verdict about a flow and the reasons for it.
func (c *Cluster) Explain(f Flow) Explanation {
	e := Explanation{Flow: f, Verdict: c.snapshot.Decide(f.Key)}
	e.Egress = c.side(filter.Egress, f, e.Verdict.Egress)
	e.Ingress = c.side(filter.Ingress, f, e.Verdict.Ingress)
	e.Notes = notes(f, e.Verdict)
	return e
}

// notes says what may make the verdict another one: a node has addresses that neither
// manifests nor the API tell, such as that of a node-local DNS cache. Those that nodes are
// given so are link-local. The agent on the node knows them from its interfaces.
func notes(f Flow, v filter.Verdict) []string {
	if v.Action == filter.Allow {
		return nil
	}
	var found []string
	for _, e := range []*End{f.From, f.To} {
		for _, a := range e.Addrs {
			if e.Pod == nil && !e.Node && a.IsLinkLocalUnicast() {
				found = append(found, fmt.Sprintf("%s may be an address of the pod's own node, as that of a node-local DNS cache is: "+
					"then the node allows the flow. Ask with the node's addresses (--node-ip %s, nodeIPs) if it is", a, a))
			}
		}
	}
	return found
}

// Allowing lists all rules of one direction that allow the flow. Of a verdict
// that no policy has a say in, there are none.
func (c *Cluster) Allowing(f Flow, d filter.Direction) []filter.Rule {
	v := c.snapshot.Decide(f.Key)
	side := v.Ingress
	if d == filter.Egress {
		side = v.Egress
	}
	var rules []filter.Rule
	if side.Isolation != nil {
		for _, r := range c.readings(d, f, side.Isolation.Policies) {
			if len(r.Lacks) == 0 {
				rules = append(rules, r.Rule)
			}
		}
	}
	return rules
}

// HasPolicy says whether there is such a policy, "namespace/name".
func (c *Cluster) HasPolicy(name string) bool { return c.policies[name] != nil }

func (c *Cluster) side(d filter.Direction, f Flow, given filter.Side) Side {
	guarded := f.Key.SrcAddr()
	if d == filter.Ingress {
		guarded = f.Key.DstAddr()
	}
	s := Side{Direction: d}
	if e := c.snapshot.Endpoint(guarded); e != nil && !e.IsNode() {
		s.Pod = e.String()
	}
	if given.Isolation == nil {
		return s
	}
	s.Policies = given.Isolation.Policies
	for _, p := range s.Policies {
		s.Problems = append(s.Problems, c.problems[p]...)
	}
	if given.Rule != nil {
		r := c.reading(d, f, given.Rule.Policy, given.Rule.Index, c.rules(d, given.Rule.Policy))
		s.Allowed = &r
		return s
	}
	for _, p := range s.Policies {
		if !c.tooLarge(p) && len(c.rules(d, p)) == 0 {
			s.Empty = append(s.Empty, p)
		}
	}
	all := c.readings(d, f, s.Policies)
	slices.SortStableFunc(all, func(a, b Reading) int { return len(a.Lacks) - len(b.Lacks) })
	for i, r := range all {
		switch {
		case len(r.Lacks) > len(all[0].Lacks):
		case i < maxNearest:
			s.Nearest = append(s.Nearest, r)
		default:
			s.More++
		}
	}
	s.Change = c.change(&s, f)
	return s
}
