package explain

import (
	"fmt"
	"net/netip"
	"strings"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/clusterpolicy"
)

// orderedChange returns the change to a tier of ordered rules that denies the flow: a rule
// that accepts only this flow, before the rule that denies it. No later tier can override
// that one, except a NetworkPolicy the tier Baseline.
func (c *Cluster) orderedChange(s *Side, f Flow, t *Step) *Change {
	decider := t.Rule.Rule
	p := c.policies[decider.Policy]
	if problem := c.deniesFor(p, decider); problem != nil {
		return &Change{Policy: p.Ref, Problem: problem}
	}
	var nearest *RuleMatch
	if len(s.Nearest) > 0 {
		nearest = &s.Nearest[0]
	}
	rule := c.ruleOf(s, f, decider.Policy, nearest)
	rule.Action = policy.Accept
	for i := range rule.Peers {
		rule.Peers[i] = asOrdered(rule.Peers[i])
	}
	return &Change{
		Policy: p.Ref, Field: "spec." + s.Direction.String(), Before: &decider,
		Rule: rule, Add: clusterpolicy.WriteRule(s.Direction, rule), Note: c.otherWays(s, p),
	}
}

// deniesFor returns the problem for which a rule denies, or nil if it denies as written: a
// problem of the rule, or one of the whole policy.
func (c *Cluster) deniesFor(p *policy.Policy, r filter.Rule) *policy.Problem {
	problems := c.problems[r.Policy]
	for i := range problems {
		if strings.HasPrefix(fromSpec(problems[i].Field), ruleField(r)+".") {
			return &problems[i]
		}
	}
	for i := range problems {
		f := fromSpec(problems[i].Field)
		if problems[i].TooLarge || f != "spec" && !strings.HasPrefix(f, "spec.ingress") && !strings.HasPrefix(f, "spec.egress") {
			return &problems[i]
		}
	}
	if rules := p.Rules[r.Direction]; r.Index < len(rules) && len(problems) > 0 {
		if _, malformed := inForce(rules[r.Index]); malformed {
			return &problems[0]
		}
	}
	return nil
}

// otherWays describes the other ways to allow a flow that a rule of p denies.
func (c *Cluster) otherWays(s *Side, p *policy.Policy) string {
	note := ""
	switch n := len(p.Rules[s.Direction]); {
	case n >= clusterpolicy.MaxRules && p.Priority > 0:
		note = fmt.Sprintf("%s has %d %s rules, the most that the API allows: add it to another policy of tier %s, with a priority below %d. ", p.Ref.Object(), n, s.Direction, p.Tier, p.Priority)
	case n >= clusterpolicy.MaxRules:
		note = fmt.Sprintf("%s has %d %s rules, the most that the API allows: combine some of them. ", p.Ref.Object(), n, s.Direction)
	case p.Priority > 0:
		note = fmt.Sprintf("or to another policy of tier %s, with a priority below %d. ", p.Tier, p.Priority)
	}
	if p.Tier == policy.Admin {
		return note + "With the action Pass, NetworkPolicies decide instead. No NetworkPolicy overrides the tier Admin."
	}
	return note + fmt.Sprintf("A NetworkPolicy that selects %s and allows the flow overrides the tier Baseline; it also denies all %s that no NetworkPolicy allows.", s.Pod, s.Direction)
}

// asOrdered returns a peer with the fields that an ordered rule has for it.
func asOrdered(p policy.Peer) policy.Peer {
	if p.Block != nil {
		return policy.Peer{Networks: []netip.Prefix{p.Block.CIDR}}
	}
	return p
}
