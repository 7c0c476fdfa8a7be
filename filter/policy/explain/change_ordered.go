package explain

import (
	"fmt"
	"net/netip"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
)

// maxRules is the number of rules that the API allows in each direction of a
// ClusterNetworkPolicy.
const maxRules = 25

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
		Rule: rule, Add: writeOrdered(s.Direction, rule), Note: c.otherWays(s, p),
	}
}

// deniesFor returns the problem for which a rule denies, or nil if it denies as written.
func (c *Cluster) deniesFor(p *policy.Policy, r filter.Rule) *policy.Problem {
	problems := c.problems[r.Policy]
	switch {
	case len(problems) == 0 || r.Index >= len(p.Rules[r.Direction]):
		return nil
	case c.tooLarge(r.Policy) || p.Subject.Malformed:
		return &problems[0]
	}
	if _, malformed := inForce(p.Rules[r.Direction][r.Index]); malformed {
		return c.problemOf(r, ruleField(r))
	}
	return nil
}

// otherWays describes the other ways to allow a flow that a rule of p denies.
func (c *Cluster) otherWays(s *Side, p *policy.Policy) string {
	note := ""
	switch n := len(p.Rules[s.Direction]); {
	case n >= maxRules && p.Priority > 0:
		note = fmt.Sprintf("%s has %d %s rules, the most that the API allows: add it to another policy of tier %s, with a priority below %d. ", p.Ref.Object(), n, s.Direction, p.Tier, p.Priority)
	case n >= maxRules:
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

// writeOrdered returns a rule that accepts in the form of the API.
func writeOrdered(d filter.Direction, r policy.Rule) any {
	var peers, protocols []any
	for _, p := range r.Peers {
		if len(p.Networks) > 0 {
			peers = append(peers, map[string]any{"networks": p.Networks})
			continue
		}
		peers = append(peers, map[string]any{"pods": map[string]any{
			"namespaceSelector": writeLabels(p.Namespaces), "podSelector": writeLabels(p.Pods),
		}})
	}
	for _, p := range r.Ports {
		protocols = append(protocols, map[string]any{
			map[filter.Protocol]string{filter.TCP: "tcp", filter.UDP: "udp", filter.SCTP: "sctp"}[p.Protocol]: map[string]any{"destinationPort": map[string]any{"number": p.Low}},
		})
	}
	out := map[string]any{"action": "Accept", map[filter.Direction]string{filter.Egress: "to", filter.Ingress: "from"}[d]: peers}
	if len(protocols) > 0 {
		out["protocols"] = protocols
	}
	return out
}

func writeLabels(sel labels.Selector) any {
	set := make(map[string]string)
	requirements, _ := sel.Requirements()
	for _, r := range requirements {
		set[r.Key()] = r.ValuesUnsorted()[0]
	}
	if len(set) == 0 {
		return map[string]any{}
	}
	return map[string]any{"matchLabels": set}
}
