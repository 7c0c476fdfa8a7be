package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/clusterpolicy"
)

// orderedChange returns the change that allows a flow that a rule of the tier Admin or Baseline
// denies: a new rule, placed before the denying one, that accepts only this flow. A
// NetworkPolicy can override the tier Baseline, but not the tier Admin. The Notes of the change
// mention this.
func (c *Cluster) orderedChange(s *Side, f Flow, t *Step) *Change {
	decider := t.Rule.Rule
	p := c.policies[decider.Policy]
	if problem := c.deniesFor(p, decider); problem != nil {
		return &Change{Policy: p.Ref, Direction: s.Direction, Problem: problem}
	}
	if hint := unknownPeer(s, f); hint != "" {
		return &Change{Direction: s.Direction, Hint: hint}
	}
	if s.Direction == filter.Ingress && f.From.Pod == nil {
		return &Change{Policy: p.Ref, Direction: s.Direction, Hint: fmt.Sprintf("narrow %s of %s: an ingress rule of its kind names pods, and cannot name addresses such as %s", ruleField(decider), p.Ref.Object(), f.From.Name)}
	}
	var nearest *RuleMatch
	if len(s.Nearest) > 0 {
		nearest = &s.Nearest[0]
	}
	rule := policy.Rule{Action: policy.Accept, Peers: []policy.Peer{asOrdered(c.peerOf(s.Direction, f, decider.Policy, nearest))}, Ports: portsOf(f.Key)}
	return &Change{
		Policy: p.Ref, Direction: s.Direction, Field: "spec." + s.Direction.String(), Before: &decider, Rule: rule,
		Notes: append(portless(f, "protocols"), c.otherWays(s, p)...),
	}
}

// portless returns a note if the flow has no ports: the rule that allows it cannot have any
// either. field is the field of a rule with its ports.
func portless(f Flow, field string) []string {
	if f.Key.Transport == filter.Ported {
		return nil
	}
	return []string{fmt.Sprintf("only a rule without %s matches this flow, so this opens every port of every protocol", field)}
}

// deniesFor returns the problem because of which the rule r of p denies: a problem of the rule,
// or one of the whole policy. It returns nil if r denies as written.
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
		// The API allows no rule without peers. So such a rule is the closed form of one that
		// cannot be understood.
		if _, malformed := inForce(rules[r.Index]); malformed || len(rules[r.Index].Peers) == 0 {
			return &problems[0]
		}
	}
	return nil
}

// otherWays describes the other ways to allow a flow that a rule of p denies.
func (c *Cluster) otherWays(s *Side, p *policy.Policy) (notes []string) {
	n := len(p.Rules[s.Direction])
	full := fmt.Sprintf("%s has %d %s rules, the most that the API allows: ", p.Ref.Object(), n, s.Direction)
	elsewhere := fmt.Sprintf("to another policy of tier %s, with a priority below %d", p.Tier, p.Priority)
	switch {
	case n >= clusterpolicy.MaxRules && p.Priority > 0:
		notes = append(notes, full+"add it "+elsewhere)
	case n >= clusterpolicy.MaxRules:
		notes = append(notes, full+"combine some of them")
	case p.Priority > 0:
		notes = append(notes, "or "+elsewhere)
	}
	if p.Tier == policy.Admin {
		return append(notes, "no NetworkPolicy overrides the tier Admin; a rule with the action Pass leaves the flow to NetworkPolicies")
	}
	return append(notes, fmt.Sprintf("or override the tier Baseline with a NetworkPolicy that selects %s and allows the flow; it denies all other %s", s.Pod, s.Direction))
}

// maxNetworks is the largest number of networks that the API allows in a peer.
const maxNetworks = 25

// asOrdered converts a peer to the fields of ordered rules: a block becomes a list of networks. If the
// list would be longer than the API allows, it is one network that includes the exceptions.
func asOrdered(p policy.Peer) policy.Peer {
	if p.Block == nil {
		return p
	}
	all := without(p.Block.CIDR.Masked(), p.Block.Except)
	if len(all) == 0 || len(all) > maxNetworks {
		all = []netip.Prefix{p.Block.CIDR.Masked()}
	}
	return policy.Peer{Networks: all}
}

// without returns prefixes that cover p without its exceptions.
func without(p netip.Prefix, except []netip.Prefix) []netip.Prefix {
	if slices.ContainsFunc(except, func(e netip.Prefix) bool { return e.Bits() <= p.Bits() && e.Contains(p.Addr()) }) {
		return nil
	}
	if !slices.ContainsFunc(except, p.Overlaps) {
		return []netip.Prefix{p}
	}
	half := p.Addr().AsSlice()
	half[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	upper, _ := netip.AddrFromSlice(half) // half has the length of an address, so this never fails
	return append(without(netip.PrefixFrom(p.Addr(), p.Bits()+1), except), without(netip.PrefixFrom(upper, p.Bits()+1), except)...)
}
