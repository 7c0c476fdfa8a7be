package explain

import (
	"cmp"
	"slices"

	"sluice/filter"
	"sluice/filter/policy"
)

// Step is what one tier did with a flow.
type Step struct {
	Tier     policy.Tier
	Policies []string // those that decide about the pod in this direction, in their order
	Result   Result
	Rule     *RuleMatch // the rule that caused the result; nil if none did
	// OwnNode reports that the tier was not evaluated because the destination is the pod's
	// own node.
	OwnNode bool

	others bool // further policies decide about some of the pods; see mergeAllowed
}

// Result is what a tier decided, as in JSON.
type Result string

// The results.
const (
	Accepted     Result = "accept"
	Denied       Result = "deny"
	Passed       Result = "pass"
	NoMatch      Result = "no-match"      // no rule matches: the next tier decides
	NotEvaluated Result = "not-evaluated" // an earlier tier has decided, or the tier does not apply
)

// byTier returns the policies of each tier with ordered rules, in the order in which they
// decide.
func byTier(all []*policy.Policy) (tiers [filter.NumTiers][]*policy.Policy) {
	for _, p := range all {
		if p.Tier == policy.Admin || p.Tier == policy.Baseline {
			tiers[p.Tier] = append(tiers[p.Tier], p)
		}
	}
	for _, list := range tiers {
		slices.SortFunc(list, func(a, b *policy.Policy) int {
			return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Ref.String(), b.Ref.String()))
		})
	}
	return tiers
}

// selecting returns the policies of a tier with ordered rules that decide about the pod in
// a direction.
func (c *Cluster) selecting(t policy.Tier, d filter.Direction, pod *policy.Pod) []string {
	var names []string
	for _, p := range c.tiers[t] {
		if len(p.Rules[d]) > 0 && c.selects(p, pod) {
			names = append(names, p.Ref.String())
		}
	}
	return names
}

// selects reports whether the pod is a subject of the policy.
func (c *Cluster) selects(p *policy.Policy, pod *policy.Pod) bool {
	switch {
	case pod == nil || !p.Subject.Pods.Matches(pod.Labels):
		return false
	case p.Subject.Namespaces != nil:
		return p.Subject.Namespaces.Matches(c.inventory.NamespaceLabels(pod.Namespace))
	}
	return p.Subject.Namespace == pod.Namespace
}

// steps returns what each tier did with a flow from or to the pod at e, in order. It leaves out
// tiers without a policy for the pod. It keeps the tier NetworkPolicy if that tier was
// evaluated and ordered rules exist for the pod.
func (c *Cluster) steps(d filter.Direction, f Flow, e *policy.Endpoint, given filter.Side) []Step {
	pod := c.inventory.Pod(e.String())
	var steps []Step
	decided, ordered := false, false
	for t := policy.Admin; t < filter.NumTiers; t++ {
		s := Step{Tier: t}
		if t != policy.NetworkPolicy {
			s.Policies = c.selecting(t, d, pod)
			ordered = ordered || len(s.Policies) > 0
		} else if i := e.Isolation(d); i != nil {
			s.Policies = i.Policies
		}
		rule := s.judge(given, &decided)
		if rule != nil {
			m := c.match(d, f, rule.Policy, rule.Index, c.rules(d, rule.Policy))
			s.Rule = &m
		}
		steps = append(steps, s)
	}
	return slices.DeleteFunc(steps, func(s Step) bool {
		return len(s.Policies) == 0 && (!ordered || s.Tier != policy.NetworkPolicy || s.Result == NotEvaluated)
	})
}

// judge sets the result of the tier from one side of the verdict, and returns the rule that
// caused it. *decided is true if an earlier tier has decided; judge sets it if this tier
// decides.
func (s *Step) judge(given filter.Side, decided *bool) *filter.Rule {
	rule := given.Rule
	if rule != nil && rule.Tier != s.Tier {
		rule = nil
	}
	switch {
	case *decided:
		s.Result = NotEvaluated
		return nil
	case s.Tier == policy.Admin && given.Passed != nil:
		s.Result = Passed
		return given.Passed
	case s.Tier == policy.NetworkPolicy && given.Isolation == nil && len(s.Policies) > 0:
		s.Result, s.OwnNode, *decided = NotEvaluated, true, true
		return nil
	case rule == nil && (s.Tier != policy.NetworkPolicy || given.Isolation == nil):
		s.Result = NoMatch
		return nil
	}
	switch {
	case rule == nil || rule.Action == policy.Deny:
		s.Result, *decided = Denied, true
	case rule.Action == policy.Pass:
		s.Result = Passed
	default:
		s.Result, *decided = Accepted, true
	}
	return rule
}

// decider returns the tier that decided; nil if none did.
func (s *Side) decider() *Step {
	i := slices.IndexFunc(s.Tiers, func(t Step) bool { return t.Result == Accepted || t.Result == Denied })
	if i < 0 {
		return nil
	}
	return &s.Tiers[i]
}

// ordered reports whether ordered rules decide about the pod in this direction.
func (s *Side) ordered() bool {
	return slices.ContainsFunc(s.Tiers, func(t Step) bool { return t.Tier != policy.NetworkPolicy })
}

// nearestOrdered returns rules that do not deny, from the tier that denies the flow. "before" lists
// those that precede the rule that denies the flow; none of them matches. "late" is the first rule
// after it that matches.
func (c *Cluster) nearestOrdered(s *Side, f Flow, t *Step) (before []RuleMatch, late *RuleMatch) {
	decider := t.Rule.Rule
	past := false
	for _, m := range c.matchAll(s.Direction, f, t.Policies) {
		switch {
		case m.Rule == decider:
			past = true
		case m.Rule.Action == policy.Deny:
		case !past:
			before = append(before, m)
		case late == nil && len(m.Mismatches) == 0:
			late = &m
		}
	}
	return before, late
}
