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

// String formats the mismatch as a part of a sentence about the rule.
func (l Mismatch) String() string { return "allows " + l.Allows + "; " + l.Flow }

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
	if p == nil || c.tooLarge(name) || p.Subject.Malformed {
		return nil
	}
	return p.Rules[d]
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
	out := RuleMatch{Rule: filter.Rule{Policy: name, Direction: d, Index: index}}
	if index >= len(rules) {
		return out // the rule is from a snapshot that was made from different objects
	}
	h := matcher{c: c, namespace: c.policies[name].Subject.Namespace, key: f.Key, peer: f.To, addr: f.Key.DstAddr(), to: f.To}
	list := "to"
	if d == filter.Ingress {
		h.peer, h.addr, list = f.From, f.Key.SrcAddr(), "from"
	}
	field := ruleField(out.Rule)
	var lack *Mismatch
	if out.Peers, lack = h.peers(rules[index].Peers, field+"."+list); lack != nil {
		out.Mismatches = append(out.Mismatches, *lack)
	}
	if out.Ports, lack = h.ports(rules[index].Ports, field+".ports"); lack != nil {
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
