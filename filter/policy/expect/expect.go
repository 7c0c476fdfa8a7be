// Package expect is unit tests for policies: who must be able to reach whom, and
// who must not, held against the one decision.
//
// [Parse] reads a file of expectations strictly, since a test with a misspelt
// field would be one that passes and tests nothing. [Test.Run] decides every flow
// of a test and says what is not as expected.
package expect

import (
	"fmt"
	"net/netip"
	"slices"

	"sluice/filter"
	"sluice/filter/policy/explain"
)

// File is a file of expectations.
type File struct {
	Manifests []string     // folders or files, relative to the file
	NodeIPs   []netip.Addr // of the node whose pods are asked about; usually none
	Tests     []Test
}

// Test is an expectation about some flows: it must hold for every combination of
// From, To and Ports.
type Test struct {
	Name     string   // never empty: a test without gets one from its flows
	From, To []string // as in an explain.Question
	Ports    []string // one empty text for ICMP
	Protocol string
	Expect   filter.Action
	// Policy must be the reason, "namespace/name", if it is not empty: a rule of it
	// allows, or it is among the policies that isolate the end that denies.
	Policy string
}

// Result is what became of a test.
type Result struct {
	Test     *Test
	Flows    int       // that were decided
	Failures []Failure // what was not as expected
	Err      error     // if not nil, some flow could not be decided
}

// Passed says whether everything was decided and as expected.
func (r *Result) Passed() bool { return r.Err == nil && len(r.Failures) == 0 }

// Failure is a flow that was not as expected.
type Failure struct {
	Detail       string // what was expected, and what it was instead
	Explanations []explain.Explanation
}

// Run decides the flows of a test.
func (t *Test) Run(c *explain.Cluster) Result {
	r := Result{Test: t}
	if t.Policy != "" && !c.HasPolicy(t.Policy) {
		r.Err = fmt.Errorf("policy: there is no NetworkPolicy %s in the manifests: correct the name, or add it", t.Policy)
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

// ask decides a question, in each address family.
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

// flaw says what is not as expected of a flow.
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
	return fmt.Sprintf("expected to be denied by %s, but it does not isolate the end that denies", t.Policy)
}

// isReason says whether the policy is behind the verdict. Where several rules
// allow a flow the verdict names one of them, so that all are looked at.
func (t *Test) isReason(c *explain.Cluster, f explain.Flow, v filter.Verdict) bool {
	for _, side := range []filter.Side{v.Egress, v.Ingress} {
		if v.Action == filter.Deny && !side.Allows() && slices.Contains(side.Isolation.Policies, t.Policy) {
			return true
		}
	}
	ofPolicy := func(r filter.Rule) bool { return r.Policy == t.Policy }
	return v.Action == filter.Allow &&
		(slices.ContainsFunc(c.Allowing(f, filter.Egress), ofPolicy) || slices.ContainsFunc(c.Allowing(f, filter.Ingress), ofPolicy))
}
