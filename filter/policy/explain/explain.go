// Package explain reports why a flow is allowed or denied.
//
// The verdict always comes from Snapshot.Decide. The reasons come from the policies,
// because the snapshot does not contain them as written: the package matches each of their
// rules against the flow and describes the mismatches. That takes microseconds, whereas a
// decision takes nanoseconds. A random test checks that reasons and decisions agree.
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

// Objects are the objects from which a snapshot was made, and their problems. The defaults of
// the API server must be set in the objects.
type Objects struct {
	Namespaces []*corev1.Namespace
	Pods       []*policy.Pod
	Policies   []*policy.Policy
	Problems   []policy.Problem

	// Services and their EndpointSlices name the endpoints behind the address of a Service.
	// Both may be empty.
	Services       []*corev1.Service
	EndpointSlices []*discoveryv1.EndpointSlice
}

// Cluster explains flows. It must not be used concurrently.
type Cluster struct {
	snapshot   *policy.Snapshot
	namespaces map[string]labels.Set
	pods       map[string]*policy.Pod // pods by "namespace/name"
	policies   map[string]*policy.Policy
	problems   map[string][]policy.Problem // problems by "namespace/name" of the policy
	ends       map[string]*End             // pods of earlier questions, by "namespace/name"
	services   map[netip.Addr]*service
}

// New returns the cluster of a snapshot and the objects from which it was made.
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

// namespaceLabels returns the labels of a namespace, including the label with its name,
// which every namespace has.
func (c *Cluster) namespaceLabels(name string) labels.Set {
	return labels.Merge(c.namespaces[name], labels.Set{corev1.LabelMetadataName: name})
}

// Explanation is a verdict and its reasons.
type Explanation struct {
	Flow    Flow
	Verdict filter.Verdict
	Egress  Side // the source's side
	Ingress Side // the destination's side
	Notes   []string
}

// Side is the part of an explanation about one direction.
type Side struct {
	Direction filter.Direction
	Pod       string   // "namespace/name" of the pod at this end; empty if the end is not a pod
	Policies  []string // names of the policies that isolate the pod

	// The rule that allows the flow; nil if the side denies it or is not isolated.
	Allowed *RuleMatch

	// The next fields are set only if the side denies the flow.
	Nearest []RuleMatch // up to maxNearest of the rules with the fewest mismatches, sorted by policy and index
	More    int         // number of further rules, not in Nearest, that have as few mismatches as the nearest ones
	Empty   []string    // policies without rules in this direction
	Change  *Change     // the change that would allow the flow

	// Problems of the policies that isolate the pod: malformed parts, and excessive size.
	Problems []policy.Problem
}

// Allows reports whether the side allows the flow.
func (s *Side) Allows() bool { return len(s.Policies) == 0 || s.Allowed != nil }

// maxNearest bounds the rules that are shown for a denied side. Further rules with the same
// mismatches add nothing.
const maxNearest = 3

// Decide returns the verdict for a flow.
func (c *Cluster) Decide(f Flow) filter.Verdict { return c.snapshot.Decide(f.Key) }

// Explain returns the verdict for a flow, with its reasons.
func (c *Cluster) Explain(f Flow) Explanation {
	e := Explanation{Flow: f, Verdict: c.snapshot.Decide(f.Key)}
	e.Egress = c.side(filter.Egress, f, e.Verdict.Egress)
	e.Ingress = c.side(filter.Ingress, f, e.Verdict.Ingress)
	e.Notes = notes(f, e.Verdict)
	return e
}

// notes returns a warning for each link-local address of a denied flow that belongs to no
// known pod or node: on a real node, the verdict may differ. The address may be the node's
// own, such as that of a node-local DNS cache. The agent reads such addresses from the
// node's interfaces, but neither the manifests nor the API contain them.
func notes(f Flow, v filter.Verdict) []string {
	if v.Action == filter.Allow {
		return nil
	}
	var found []string
	for _, e := range []*End{f.From, f.To} {
		for _, a := range e.Addrs {
			if e.Pod == nil && !e.Node && a.IsLinkLocalUnicast() {
				found = append(found, fmt.Sprintf("%s may be an address of the pod's own node, such as that of a node-local DNS cache. "+
					"If so, the flow is allowed: ask again with the node's addresses (--node-ip %s, nodeIPs)", a, a))
			}
		}
	}
	return found
}

// Allowing lists all rules of one direction that allow the flow. The list is empty if the
// pod is not isolated.
func (c *Cluster) Allowing(f Flow, d filter.Direction) []filter.Rule {
	v := c.snapshot.Decide(f.Key)
	side := v.Ingress
	if d == filter.Egress {
		side = v.Egress
	}
	var rules []filter.Rule
	if side.Isolation != nil {
		for _, r := range c.matchAll(d, f, side.Isolation.Policies) {
			if len(r.Mismatches) == 0 {
				rules = append(rules, r.Rule)
			}
		}
	}
	return rules
}

// HasPolicy reports whether the policy "namespace/name" exists.
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
		r := c.match(d, f, given.Rule.Policy, given.Rule.Index, c.rules(d, given.Rule.Policy))
		s.Allowed = &r
		return s
	}
	for _, p := range s.Policies {
		if !c.tooLarge(p) && len(c.rules(d, p)) == 0 {
			s.Empty = append(s.Empty, p)
		}
	}
	all := c.matchAll(d, f, s.Policies)
	slices.SortStableFunc(all, func(a, b RuleMatch) int { return len(a.Mismatches) - len(b.Mismatches) })
	for i, r := range all {
		switch {
		case len(r.Mismatches) > len(all[0].Mismatches):
		case i < maxNearest:
			s.Nearest = append(s.Nearest, r)
		default:
			s.More++
		}
	}
	s.Change = c.change(&s, f)
	return s
}
