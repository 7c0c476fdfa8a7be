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

// Reading is one rule held against a flow.
type Reading struct {
	Rule  filter.Rule
	Peers string // whom the rule allows, in words; of several, who comes nearest
	Ports string // which ports it allows, in words
	Lacks []Lack // what keeps it from allowing the flow; none if it does
}

// Lack is a part of a rule that a flow does not satisfy.
type Lack struct {
	Part   string // "peer" or "port"
	Allows string // what the rule allows: "pods with role=frontend in namespace default"
	Flow   string // what the flow is instead: "default/web has role=backend"

	score int      // how far off it is, to choose among the peers of a rule
	keys  []string // of labels that the rule's selector of pods looks at
	field string   // of a part that cannot be understood
}

// String is the lack as part of a sentence about the rule.
func (l Lack) String() string { return "allows " + l.Allows + "; " + l.Flow }

// lacks says whether the rule lacks a part.
func (r *Reading) lacks(part string) bool {
	for _, l := range r.Lacks {
		if l.Part == part {
			return true
		}
	}
	return false
}

// rules are a policy's rules that are in force in a direction: none if it cannot
// be read which pods it is for, or if it is too large.
func (c *Cluster) rules(d filter.Direction, name string) []policy.Rule {
	p := c.policies[name]
	if p == nil || c.tooLarge(name) || p.Subject.Malformed {
		return nil
	}
	return p.Rules[d]
}

// readings holds all rules of some policies against a flow, in their order.
func (c *Cluster) readings(d filter.Direction, f Flow, policies []string) []Reading {
	var all []Reading
	for _, name := range policies {
		rules := c.rules(d, name)
		for i := range rules {
			all = append(all, c.reading(d, f, name, i, rules))
		}
	}
	return all
}

// tooLarge reports whether a policy was refused for its size.
func (c *Cluster) tooLarge(name string) bool {
	return slices.ContainsFunc(c.problems[name], func(p policy.Problem) bool { return p.TooLarge })
}

// reading holds one of a policy's rules against a flow.
func (c *Cluster) reading(d filter.Direction, f Flow, name string, index int, rules []policy.Rule) Reading {
	out := Reading{Rule: filter.Rule{Policy: name, Direction: d, Index: index}}
	if index >= len(rules) {
		return out // the snapshot was made from other objects
	}
	h := holder{c: c, namespace: c.policies[name].Subject.Namespace, key: f.Key, peer: f.To, addr: f.Key.DstAddr(), to: f.To}
	list := "to"
	if d == filter.Ingress {
		h.peer, h.addr, list = f.From, f.Key.SrcAddr(), "from"
	}
	field := ruleField(out.Rule)
	var lack *Lack
	if out.Peers, lack = h.peers(rules[index].Peers, field+"."+list); lack != nil {
		out.Lacks = append(out.Lacks, *lack)
	}
	if out.Ports, lack = h.ports(rules[index].Ports, field+".ports"); lack != nil {
		out.Lacks = append(out.Lacks, *lack)
	}
	for i := range out.Lacks {
		if l := &out.Lacks[i]; l.field != "" {
			l.Flow = cmp.Or(c.brokenField(out.Rule, l.field), l.field) + " cannot be understood"
		}
	}
	return out
}

// brokenField returns the field of the problem of a rule; empty if it has none.
func (c *Cluster) brokenField(r filter.Rule, part string) string {
	if p := c.problemOf(r, part); p != nil {
		return fromSpec(p.Field)
	}
	return ""
}

// problemOf returns what is wrong with a rule, in the given part of it if there is
// something; nil if nothing is wrong. A rule that cannot be read is in force as one that
// names no peer, and its problem is in another field, or in the list of rules.
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

// fromSpec cuts off the place of an object in a list: "items[0].spec.ingress" becomes
// "spec.ingress".
func fromSpec(field string) string { return field[max(0, strings.Index(field, "spec.")):] }

// ruleField is the rule's place in its policy, as in "spec.ingress[0]".
func ruleField(r filter.Rule) string { return fmt.Sprintf("spec.%s[%d]", r.Direction, r.Index) }

// holder holds the parts of a rule against a flow.
type holder struct {
	c         *Cluster
	namespace string // of the policy
	key       filter.Key
	peer      *End
	addr      netip.Addr // of the peer
	to        *End
}

// unreadable is the lack of a part that cannot be understood. What is wrong with
// it is among the problems.
func unreadable(part, field string) *Lack {
	return &Lack{Part: part, Allows: "nothing", field: field, score: 1000}
}
