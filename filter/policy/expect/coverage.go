package expect

import (
	"fmt"
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
)

// Coverage records which policies and rules the flows of tests touch. A flow touches a rule that allows
// it at one end, denies it, or passes it on to the next tier. It touches a policy that isolates one of
// its ends, or whose rule it touches.
type Coverage struct {
	policies map[policyKey]*covered
}

type policyKey struct {
	tier filter.Tier
	name string
}

type covered struct {
	touched bool
	rules   [2][]bool // by direction and index
}

// Untested is a policy with rules that no test touches.
type Untested struct {
	Policy string `json:"policy"`
	// Rules are the rules that no test touches; empty if no test touches the policy itself.
	Rules []UntestedRule `json:"rules,omitempty"`
}

// UntestedRule is a rule that no test touches.
type UntestedRule struct {
	Direction string `json:"direction"` // "ingress" or "egress"
	Index     int    `json:"index"`     // from 0, as in the field spec.ingress[0]
}

// CoverageReport counts the policies and rules that tests touch.
type CoverageReport struct {
	Policies       int        `json:"policies"`
	TestedPolicies int        `json:"testedPolicies"`
	Rules          int        `json:"rules"`
	TestedRules    int        `json:"testedRules"`
	Untested       []Untested `json:"untested"` // sorted by policy; never null
}

// Add adds the policies of a cluster.
func (c *Coverage) Add(policies []*policy.Policy) {
	if c.policies == nil {
		c.policies = make(map[policyKey]*covered)
	}
	for _, p := range policies {
		k := policyKey{p.Tier, p.Ref.String()}
		if c.policies[k] == nil {
			c.policies[k] = &covered{}
		}
		for d, rules := range p.Rules {
			for len(c.policies[k].rules[d]) < len(rules) {
				c.policies[k].rules[d] = append(c.policies[k].rules[d], false)
			}
		}
	}
}

// touch records the policies and rules that a flow touches. It does nothing if c is nil.
func (c *Coverage) touch(cl *Cluster, f inventory.Flow, v filter.Verdict) {
	if c == nil {
		return
	}
	for d, side := range []filter.Side{filter.Egress: v.Egress, filter.Ingress: v.Ingress} {
		if side.Isolation != nil {
			for _, name := range side.Isolation.Policies {
				if p := c.policies[policyKey{policy.NetworkPolicy, name}]; p != nil {
					p.touched = true
				}
			}
		}
		for _, r := range []*filter.Rule{side.Rule, side.Passed} {
			if r != nil {
				c.rule(*r)
			}
		}
		for _, r := range cl.Explain.Allowing(f, filter.Direction(d)) {
			c.rule(r)
		}
	}
}

func (c *Coverage) rule(r filter.Rule) {
	p := c.policies[policyKey{r.Tier, r.Policy}]
	if p == nil {
		return
	}
	p.touched = true
	if rules := p.rules[r.Direction]; r.Index >= 0 && r.Index < len(rules) {
		rules[r.Index] = true
	}
}

// Report returns the coverage of the tests so far.
func (c *Coverage) Report() CoverageReport {
	report := CoverageReport{Untested: []Untested{}}
	for k, p := range c.policies {
		report.Policies++
		if p.touched {
			report.TestedPolicies++
		}
		missing := Untested{Policy: filter.PolicyTitle(k.tier, k.name)}
		for _, d := range []filter.Direction{filter.Ingress, filter.Egress} {
			for i, touched := range p.rules[d] {
				report.Rules++
				if touched {
					report.TestedRules++
				} else if p.touched {
					missing.Rules = append(missing.Rules, UntestedRule{d.String(), i})
				}
			}
		}
		if !p.touched || len(missing.Rules) > 0 {
			report.Untested = append(report.Untested, missing)
		}
	}
	slices.SortFunc(report.Untested, func(a, b Untested) int { return strings.Compare(a.Policy, b.Policy) })
	return report
}

// Text returns the report as text: a line with the counts, and a line for each policy with rules that
// no test touches. It numbers rules from 1.
func (r CoverageReport) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "tested: %d of %d policies, %d of %d rules\n", r.TestedPolicies, r.Policies, r.TestedRules, r.Rules)
	for _, u := range r.Untested {
		fmt.Fprintf(&b, "not tested: %s", u.Policy)
		for i, rule := range u.Rules {
			word := ", "
			if i == 0 || u.Rules[i-1].Direction != rule.Direction {
				word += rule.Direction + " rule "
			}
			fmt.Fprintf(&b, "%s%d", word, rule.Index+1)
		}
		b.WriteByte('\n')
	}
	return b.String()
}
