// Package expect runs unit tests of policies: it compares the expected verdicts of flows with
// the decisions that packets would get.
//
// [Parse] parses a file of expectations. It rejects unknown fields, because a test with a
// misspelt field could pass and test nothing. [Test.Run] decides every flow of a test and
// reports differences.
package expect

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/policy/explain"
)

// File is a file of expectations.
type File struct {
	Manifests []string     // directories or files, relative to this file
	NodeIPs   []netip.Addr // addresses of the node that the tested pods run on; usually none
	Tests     []Test
}

// Test is an expectation that must hold for every combination of From, To and Ports.
type Test struct {
	Name     string   // never empty: by default, it describes the flows
	From, To []string // as in an explain.Question
	Ports    []string // numbers or names; for ICMP, a single empty string
	Protocol string
	Expect   filter.Action
	// Policy names a policy, as "namespace/name", that must be a reason for the verdict: one
	// of its rules allows the flow, or it isolates the end that denies the flow. If Policy is
	// empty, any reason is accepted.
	Policy string
}

// Result is the result of a test.
type Result struct {
	Test     *Test
	Flows    int       // number of decided flows
	Failures []Failure // differences from the expectation
	Err      error     // not nil if a flow could not be decided
}

// Passed reports whether all flows were decided as expected.
func (r *Result) Passed() bool { return r.Err == nil && len(r.Failures) == 0 }

// Failure is a flow with an unexpected verdict.
type Failure struct {
	Detail       string // the expected verdict, and the actual one
	Explanations []explain.Explanation
}

// Run decides the flows of a test.
func (t *Test) Run(c *explain.Cluster) Result {
	r := Result{Test: t}
	if t.Policy != "" && !c.HasPolicy(t.Policy) {
		r.Err = fmt.Errorf("policy: there is no policy %s in the manifests: correct the name, or add it", t.Policy)
		return r
	}
	for _, from := range t.From {
		for _, to := range t.To {
			for _, port := range t.Ports {
				q := explain.Question{From: from, To: to, Port: port, Protocol: t.Protocol}
				if r.Err = t.ask(c, q, &r); r.Err != nil {
					return r
				}
			}
		}
	}
	return r
}

// ask decides all flows of a question, and adds a failure to r if one is not as expected.
func (t *Test) ask(c *explain.Cluster, q explain.Question, r *Result) error {
	flows, err := c.Flows(q)
	if err != nil {
		return err
	}
	detail := ""
	for _, f := range flows {
		r.Flows++
		if flaw := t.flaw(c, f); flaw != "" && detail == "" {
			detail = flaw
		}
	}
	if detail == "" {
		return nil
	}
	failure := Failure{Detail: detail}
	for _, f := range flows {
		failure.Explanations = append(failure.Explanations, c.Explain(f))
	}
	r.Failures = append(r.Failures, failure)
	return nil
}

// flaw describes how the verdict of a flow differs from the expectation, or returns "" if
// the verdict is as expected.
func (t *Test) flaw(c *explain.Cluster, f explain.Flow) string {
	v := c.Decide(f)
	switch {
	case v.Action != t.Expect:
		return fmt.Sprintf("expected %s, got %s", t.Expect, v.Action)
	case t.Policy == "" || t.isReason(c, f, v):
		return ""
	case v.Action == filter.Allow:
		return fmt.Sprintf("expected to be allowed by %s, but no rule of it allows this flow", t.Policy)
	}
	return fmt.Sprintf("expected to be denied by %s, but %s", t.Policy, denier(v))
}

// denier describes what denies a flow: "admin/platform denies it", "no rule of default/db allows it".
func denier(v filter.Verdict) string {
	side := v.Egress
	if side.Allows() {
		side = v.Ingress
	}
	switch {
	case side.Rule != nil:
		return side.Rule.PolicyTitle() + " denies it"
	case side.Isolation != nil:
		return "no rule of " + strings.Join(side.Isolation.Policies, ", ") + " allows it"
	}
	return "no policy denies it: " + v.Reason.String()
}

// isReason reports whether the policy is a reason for the verdict. It checks all rules that
// allow the flow, because the verdict names only one of them. The text may name two policies:
// admin/platform is also the NetworkPolicy platform of the namespace admin. Either is a reason.
func (t *Test) isReason(c *explain.Cluster, f explain.Flow, v filter.Verdict) bool {
	ofPolicy := func(r filter.Rule) bool { return r.PolicyTitle() == t.Policy }
	if v.Action == filter.Allow {
		return slices.ContainsFunc(c.Allowing(f, filter.Egress), ofPolicy) || slices.ContainsFunc(c.Allowing(f, filter.Ingress), ofPolicy)
	}
	return slices.ContainsFunc([]filter.Side{v.Egress, v.Ingress}, func(side filter.Side) bool {
		switch {
		case side.Allows():
			return false
		case side.Rule != nil:
			return ofPolicy(*side.Rule)
		}
		return slices.Contains(side.Isolation.Policies, t.Policy)
	})
}
