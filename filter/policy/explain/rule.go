package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/policy"
)

// RuleMatch is the result of matching one rule against a flow.
type RuleMatch struct {
	Rule       filter.Rule
	Peers      string     // text about the peer of the rule that matches the flow; without a match, about the peer with the lowest Mismatch.score
	Ports      string     // text about the ports that the rule allows
	Mismatches []Mismatch // why the rule does not allow the flow; empty if it does
}

// Mismatch is a part of a rule that a flow does not match.
type Mismatch struct {
	Part   string // "peer" or "port"
	Allows string // what the rule allows: "pods with role=frontend in namespace default"
	Flow   string // what the flow has instead: "default/web has role=backend"

	score int      // how much a peer of the rule differs from the flow; RuleMatch shows the peer with the lowest score
	keys  []string // keys of the labels that the rule's pod selector requires
	field string   // the field of a malformed part; otherwise empty
}

// lack formats a mismatch as a part of a sentence about the rule.
func (r *RuleMatch) lack(l *Mismatch) string {
	verb := "allows "
	if r.Rule.Action == policy.Pass {
		verb = "passes "
	}
	return verb + l.Allows + "; " + l.Flow
}

// mismatches reports whether the given part of the rule does not match.
func (r *RuleMatch) mismatches(part string) bool {
	for _, l := range r.Mismatches {
		if l.Part == part {
			return true
		}
	}
	return false
}

// rules returns the rules of a policy in a direction, if they are in force. A policy whose
// subject is malformed, or that is too large, has no rules in force.
func (c *Cluster) rules(d filter.Direction, name string) []policy.Rule {
	p := c.policies[name]
	switch {
	case p == nil:
		return nil
	case !c.tooLarge(name) && !p.Subject.Malformed:
		return p.Rules[d]
	case p.Tier == policy.NetworkPolicy || len(p.Rules[d]) == 0:
		return nil
	}
	return []policy.Rule{{Action: policy.Deny}}
}

// inForce returns the form in which an ordered rule decides. A rule that accepts stays as it is:
// its malformed parts match nothing. Any other rule with a malformed part denies everything that
// the part may mean, and the second result is true.
func inForce(r policy.Rule) (policy.Rule, bool) {
	if r.Action == policy.Accept {
		return r, false
	}
	peers := slices.ContainsFunc(r.Peers, func(p policy.Peer) bool { return p.Malformed != "" || len(p.Names) > 0 })
	ports := slices.ContainsFunc(r.Ports, func(p policy.PortRange) bool { return p.Malformed })
	if peers {
		r.Peers = nil
	}
	if ports {
		r.Ports = nil
	}
	malformed := peers || ports || r.Action > policy.Pass
	if malformed {
		r.Action = policy.Deny
	}
	return r, malformed
}

// matchAll matches all rules of the given policies against a flow, in order.
func (c *Cluster) matchAll(d filter.Direction, f Flow, policies []string) []RuleMatch {
	var all []RuleMatch
	for _, name := range policies {
		rules := c.rules(d, name)
		for i := range rules {
			all = append(all, c.match(d, f, name, i, rules))
		}
	}
	return all
}

// tooLarge reports whether a policy was refused for its size.
func (c *Cluster) tooLarge(name string) bool {
	return slices.ContainsFunc(c.problems[name], func(p policy.Problem) bool { return p.TooLarge })
}

// match matches one rule of a policy against a flow.
func (c *Cluster) match(d filter.Direction, f Flow, name string, index int, rules []policy.Rule) RuleMatch {
	out := RuleMatch{Rule: filter.Rule{Policy: name, Tier: policy.NetworkPolicy, Direction: d, Action: policy.Accept, Index: index}}
	if index >= len(rules) {
		return out // the rule is from a snapshot that was made from different objects
	}
	p, rule := c.policies[name], rules[index]
	h := matcher{c: c, namespace: p.Subject.Namespace, key: f.Key, peer: f.To, addr: f.Key.DstAddr(), to: f.To}
	list, ports := "to", ".ports"
	if d == filter.Ingress {
		h.peer, h.addr, list = f.From, f.Key.SrcAddr(), "from"
	}
	if p.Tier != policy.NetworkPolicy {
		rule, _ = inForce(rule)
		h.ordered = true
		ports = ".protocols"
		out.Rule.Name, out.Rule.Tier, out.Rule.Action = rule.Name, p.Tier, rule.Action
	}
	field := ruleField(out.Rule)
	var lack *Mismatch
	if out.Peers, lack = h.peers(rule.Peers, field+"."+list); lack != nil {
		out.Mismatches = append(out.Mismatches, *lack)
	}
	if out.Ports, lack = h.ports(rule.Ports, field+ports); lack != nil {
		out.Mismatches = append(out.Mismatches, *lack)
	}
	for i := range out.Mismatches {
		if l := &out.Mismatches[i]; l.field != "" {
			l.Flow = cmp.Or(c.brokenField(out.Rule, l.field), l.field) + " cannot be understood"
		}
	}
	return out
}

// brokenField returns the field of a rule's problem, or "" if it has none.
func (c *Cluster) brokenField(r filter.Rule, part string) string {
	if p := c.problemOf(r, part); p != nil {
		return fromSpec(p.Field)
	}
	return ""
}

// problemOf returns a problem of a rule, or nil if the rule has none. It looks first in the
// given part of the rule, then in the whole rule, then in the field of the list of rules, such
// as "spec.ingress". The package sluice/watch/manifests replaces a rule or list that it cannot
// decode by a rule with an invalid peer. The problem then names the field that it could not
// decode, not the peer.
func (c *Cluster) problemOf(r filter.Rule, part string) *policy.Problem {
	problems := c.problems[r.Policy]
	for _, at := range []string{part, ruleField(r)} {
		for i := range problems {
			if strings.HasPrefix(fromSpec(problems[i].Field), at) {
				return &problems[i]
			}
		}
	}
	for i := range problems {
		if fromSpec(problems[i].Field) == "spec."+r.Direction.String() {
			return &problems[i]
		}
	}
	return nil
}

// fromSpec removes the position of an object in a list from a field:
// "items[0].spec.ingress" becomes "spec.ingress".
func fromSpec(field string) string { return field[max(0, strings.Index(field, "spec.")):] }

// ruleField returns the field of the rule in its policy, as in "spec.ingress[0]".
func ruleField(r filter.Rule) string { return fmt.Sprintf("spec.%s[%d]", r.Direction, r.Index) }

// matcher matches the parts of a rule against a flow.
type matcher struct {
	c         *Cluster
	namespace string // the policy's namespace
	ordered   bool   // the policy has ordered rules
	key       filter.Key
	peer      *End
	addr      netip.Addr // the peer's address
	to        *End
}

// unreadable returns the mismatch of a malformed part. The problem itself is reported
// separately.
func unreadable(part, field string) *Mismatch {
	return &Mismatch{Part: part, Allows: "nothing", field: field, score: 1000}
}
