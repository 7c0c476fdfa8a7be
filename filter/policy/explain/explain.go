// Package explain reports why a flow is allowed or denied.
//
// The verdict always comes from Snapshot.Decide. The reasons come from the policies,
// because the snapshot does not contain them as written: the package matches each of their
// rules against the flow and describes the mismatches. That takes microseconds, whereas a
// decision takes nanoseconds. A random test checks that reasons and decisions agree.
package explain

import (
	"fmt"
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/near"
)

type (
	// Question is the question of package inventory.
	Question = inventory.Question
	// Flow is the flow of package inventory.
	Flow = inventory.Flow
	// End is the end of package inventory.
	End = inventory.End
)

// Cluster explains flows. It must not be used concurrently.
type Cluster struct {
	inventory *inventory.Inventory
	snapshot  *policy.Snapshot
	policies  map[string]*policy.Policy
	tiers     [filter.NumTiers][]*policy.Policy // policies with ordered rules, in the order of evaluation
	problems  map[string][]policy.Problem       // by the name of the policy
}

// New returns a Cluster for an inventory. problems are the parts of its policies that cannot be
// understood, and that explanations show as reasons.
func New(v *inventory.Inventory, problems []policy.Problem) *Cluster {
	c := &Cluster{
		inventory: v,
		snapshot:  v.Snapshot,
		policies:  make(map[string]*policy.Policy, len(v.Policies)),
		tiers:     byTier(v.Policies),
		problems:  make(map[string][]policy.Problem),
	}
	for _, p := range v.Policies {
		c.policies[p.Ref.String()] = p
	}
	for _, p := range problems {
		name := p.Policy.String()
		c.problems[name] = append(c.problems[name], p)
	}
	return c
}

// Flows returns the flows that a question is about; see [inventory.Inventory.Flows].
func (c *Cluster) Flows(q Question) ([]Flow, error) { return c.inventory.Flows(q) }

// Knows reports whether name is the name of a pod or a workload, or the part of such a name before a
// dash.
func (c *Cluster) Knows(name string) bool { return c.inventory.Knows(name) }

// Explanation is a verdict and its reasons.
type Explanation struct {
	Flow    Flow
	Verdict filter.Verdict
	Egress  Side // the source's side
	Ingress Side // the destination's side
	Notes   []string
	// Others are further flows with the same verdict and reasons; see [Merge].
	Others []Flow
	// Depends lists the verdicts about the flow that differ from Verdict, for addresses that an end
	// with an assumed address may have.
	Depends []Alternative
	// Effects are the side effects of the changes of both sides; nil before [Cluster.Advise] has
	// computed them.
	Effects *Effects

	explained bool   // Explain has set the reasons
	settle    string // what to add so that the addresses of Depends become known; empty if nothing helps
}

// Alternative is the verdict about a flow if an end has another address than the assumed one.
type Alternative struct {
	inventory.Alternative
	Verdict filter.Verdict
}

// Why returns the reasons for the verdict in one line.
func (a *Alternative) Why() string { return Why(a.Verdict, a.Flow.From.Pod != nil) }

// flows returns all flows of the explanation.
func (e *Explanation) flows() []Flow { return append([]Flow{e.Flow}, e.Others...) }

// Side is the part of an explanation about one direction.
type Side struct {
	Direction filter.Direction
	Pod       string   // "namespace/name" of the pod at this end; empty if the end is not a pod
	Policies  []string // names of the policies that isolate the pod

	// Tiers are the tiers with policies for the pod, in the order of their evaluation.
	Tiers []Step
	// The rule that allows the flow; nil if the side denies it or no rule decides.
	Allowed *RuleMatch
	// The following fields are set only if the side denies the flow. Nearest has the rules of
	// the denying tier with the fewest mismatches, sorted by policy and index.
	Nearest []RuleMatch
	More    int        // number of further rules that are as near as the last of Nearest
	Late    *RuleMatch // the first rule that matches and does not deny, but comes after the rule that denies the flow
	Empty   []string   // policies without rules in this direction
	Change  *Change    // the change that would allow the flow

	// Problems of the policies that were evaluated: malformed parts, and excessive size.
	Problems []policy.Problem

	allows bool
	others bool // some of the pods are isolated by further policies; see mergeAllowed
}

// Allows reports whether the side allows the flow.
func (s *Side) Allows() bool { return s.allows }

// maxNearest bounds the rules that are shown for a denied side. Further rules with the same
// mismatches add nothing.
const maxNearest = 3

// Decide returns the verdict for a flow.
func (c *Cluster) Decide(f Flow) filter.Verdict { return c.inventory.Decide(f) }

// Explain returns the verdict for a flow, with its reasons.
func (c *Cluster) Explain(f Flow) Explanation {
	e := Explanation{Flow: f, Verdict: c.inventory.Decide(f), explained: true}
	e.Egress = c.side(filter.Egress, f, e.Verdict)
	e.Ingress = c.side(filter.Ingress, f, e.Verdict)
	e.Notes = c.notes(f, e.Verdict)
	e.Depends = c.depends(f, e.Verdict)
	e.settle = c.settle(e.Depends)
	return e
}

// depends returns the verdicts that differ from v, for other addresses that the ends may have. It
// returns none if both addresses are known.
func (c *Cluster) depends(f Flow, v filter.Verdict) (all []Alternative) {
	if !f.From.Assumed && !f.To.Assumed {
		return nil
	}
	for _, a := range c.inventory.Elsewhere(f) {
		if other := c.inventory.Decide(a.Flow); other.Action != v.Action {
			all = append(all, Alternative{a, other})
		}
	}
	return all
}

// settle tells what a user can add so that the addresses become known on which a verdict depends.
func (c *Cluster) settle(depends []Alternative) string {
	var pods, nodes bool
	for _, a := range depends {
		end := a.Flow.From
		if a.To {
			end = a.Flow.To
		}
		pods, nodes = pods || !end.Node, nodes || end.Node
	}
	var hints []string
	if pods && !c.inventory.PodRangesKnown() {
		hints = append(hints, "give the ranges of the pods (--pod-cidr)")
	}
	if nodes && !c.inventory.NodesKnown() {
		hints = append(hints, "add the Nodes, as from kubectl get nodes -o yaml")
	}
	return strings.Join(hints, ", and ")
}

// ExplainAll answers a question: it explains its flows with [Cluster.ExplainFlows].
func (c *Cluster) ExplainAll(q Question) ([]Explanation, error) {
	flows, err := c.Flows(q)
	if err != nil {
		return nil, err
	}
	return c.ExplainFlows(flows), nil
}

// ExplainFlows explains flows, merges explanations with the same verdict and reasons, and computes the
// side effects of the changes.
func (c *Cluster) ExplainFlows(flows []Flow) []Explanation {
	all := make([]Explanation, len(flows))
	for i, f := range flows {
		all[i] = c.Explain(f)
	}
	all = Merge(all)
	for i := range all {
		c.Advise(&all[i])
	}
	return all
}

// notes returns warnings about a verdict that may differ on a real node, and says which policies
// disagree about the answer.
func (c *Cluster) notes(f Flow, v filter.Verdict) []string {
	return slices.Concat(c.missingNamespaces(f), linkLocal(f, v), c.dropPrevails(v), c.fromOutside(f), untranslated(f), c.maybeService(f))
}

// dropPrevails returns a note if some of the policies that deny the flow would reject it, and it is
// dropped because others of them say so.
func (c *Cluster) dropPrevails(v filter.Verdict) []string {
	side := v.Ingress
	if v.Reason == filter.EgressDenied {
		side = v.Egress
	}
	if v.Action != filter.Deny || side.Rule != nil || side.Isolation == nil {
		return nil
	}
	by := make(map[filter.Denial][]string)
	for _, name := range side.Isolation.Policies {
		if p := c.policies[name]; p != nil {
			by[p.Denial] = append(by[p.Denial], name)
		}
	}
	drop, reject := by[filter.DenialDrop], by[filter.DenialReject]
	if len(drop) == 0 || len(reject) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("the packet is dropped, not rejected: %s of %s is drop, and prevails over reject of %s",
		policy.DenyWithAnnotation, near.List(drop, maxNearest, ", "), near.List(reject, maxNearest, ", "))}
}

// missingNamespaces returns a warning for each end whose namespace has no Namespace object, if policies
// depend on its labels. It returns none if not all Namespaces could be read, because the command has
// reported that.
func (c *Cluster) missingNamespaces(f Flow) (found []string) {
	if !c.snapshot.NeedsNamespaces() || c.inventory.NamespacesUnread {
		return nil
	}
	for _, e := range []*End{f.From, f.To} {
		if e.Pod == nil || e.Node {
			continue
		}
		name := e.Pod.Namespace
		text := fmt.Sprintf("there is no Namespace %s, so it counts as a namespace without labels, and policies select namespaces by labels: add the Namespace", name)
		if !c.inventory.HasNamespace(name) && !slices.Contains(found, text) {
			found = append(found, text)
		}
	}
	return found
}

// linkLocal returns a warning for each link-local address of a denied flow that belongs to no
// known pod or node: on a real node, the verdict may differ. The address may be the node's
// own, such as that of a node-local DNS cache. The agent reads such addresses from the
// node's interfaces, but neither the manifests nor the API contain them.
func linkLocal(f Flow, v filter.Verdict) []string {
	if v.Action == filter.Allow || v.Egress.Rule != nil && !v.Egress.Allows() {
		return nil // the rule denies the flow even if the other end is the pod's own node
	}
	var found []string
	for _, e := range []*End{f.From, f.To} {
		for _, a := range e.Addrs {
			if e.Pod == nil && !e.Node && (e.Range == nil || e.Range.Prefix.IsSingleIP()) && a.IsLinkLocalUnicast() {
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
	v := c.inventory.Decide(f)
	side := v.Ingress
	if d == filter.Egress {
		side = v.Egress
	}
	var rules []filter.Rule
	if side.Isolation == nil && side.Rule != nil && side.Allows() {
		rules = append(rules, *side.Rule)
	}
	if side.Isolation != nil {
		for _, r := range c.matchAll(d, f, side.Isolation.Policies) {
			if len(r.Mismatches) == 0 {
				rules = append(rules, r.Rule)
			}
		}
	}
	return rules
}

// HasPolicy reports whether a policy has the given title: "namespace/name", or the tier and the
// name ("admin/platform") of a policy that is in no namespace.
func (c *Cluster) HasPolicy(title string) bool {
	for _, p := range c.policies {
		if titleOf(p) == title {
			return true
		}
	}
	return false
}

// PolicyTitles returns the titles of all policies, as HasPolicy takes them.
func (c *Cluster) PolicyTitles() []string {
	titles := make([]string, 0, len(c.policies))
	for _, p := range c.policies {
		titles = append(titles, titleOf(p))
	}
	slices.Sort(titles)
	return titles
}

func titleOf(p *policy.Policy) string { return filter.PolicyTitle(p.Tier, p.Ref.String()) }

func (c *Cluster) side(d filter.Direction, f Flow, v filter.Verdict) Side {
	e, given := f.From.Endpoint, v.Egress
	if d == filter.Ingress {
		e, given = f.To.Endpoint, v.Ingress
	}
	s := Side{Direction: d, allows: given.Allows()}
	if e == nil || e.IsNode() {
		return s
	}
	s.Pod = e.String()
	if v.Reason == filter.SameAddress || v.Reason == filter.OwnNode && d == filter.Ingress {
		return s // no tier is evaluated for packets from a pod to itself, or from its node to the pod
	}
	if given.Isolation != nil {
		s.Policies = given.Isolation.Policies
	}
	s.Tiers = c.steps(d, f, e, given)
	for _, t := range s.Tiers {
		if t.Result != NotEvaluated {
			for _, p := range t.Policies {
				s.Problems = append(s.Problems, c.problems[p]...)
			}
		}
	}
	switch t := s.decider(); {
	case t == nil:
	case t.Result == Accepted:
		s.Allowed = t.Rule
	default:
		c.denied(&s, f, t)
	}
	return s
}

// denied adds the reasons of a tier that denies the flow, and the change that would allow it.
func (c *Cluster) denied(s *Side, f Flow, t *Step) {
	var all []RuleMatch
	if t.Tier == policy.NetworkPolicy {
		for _, p := range s.Policies {
			if !c.tooLarge(p) && len(c.rules(s.Direction, p)) == 0 {
				s.Empty = append(s.Empty, p)
			}
		}
		all = c.matchAll(s.Direction, f, s.Policies)
	} else {
		all, s.Late = c.nearestOrdered(s, f, t)
	}
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
	if t.Tier == policy.NetworkPolicy {
		s.Change = c.change(s, f)
	} else {
		s.Change = c.orderedChange(s, f, t)
	}
}
