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
	Manifests []string       // directories or files, relative to this file; may be empty
	NodeIPs   []netip.Addr   // addresses of the node that the tested pods run on; usually none
	PodRanges []netip.Prefix // ranges from which pods without an address will get one
	Tests     []Test
}

// Namespaces returns the namespaces that the ends of the tests name, possibly with duplicates.
func (f *File) Namespaces() (names []string) {
	for i := range f.Tests {
		if f.Tests[i].Wrong != nil {
			continue
		}
		for _, e := range slices.Concat(f.Tests[i].From, f.Tests[i].To) {
			names = append(names, e.Namespaces()...)
		}
	}
	return names
}

// Test is an expectation that must hold for every combination of From, To and Ports.
type Test struct {
	Name     string // never empty: by default, it describes the flows
	From, To []End
	Ports    []string // numbers or names; a single empty string for ICMP, or if To implies the port
	Protocol string
	Expect   filter.Action
	// Policy is the name of a policy, as "namespace/name" or "name", that must be a reason for the
	// verdict: a rule of it allows the flow, or it isolates the end that denies the flow. An empty
	// Policy accepts any reason.
	Policy string
	// Wrong lists the mistakes in the text of the test, each with the field and a hint. A test with
	// mistakes does not run. It is nil if there are none.
	Wrong error
}

// flaw describes how the verdict of a flow differs from the expectation, or returns "" if
// the verdict is as expected.
func (t *Test) flaw(c *Cluster, f explain.Flow, v filter.Verdict) string {
	policy := t.policyIn(c.Namespace)
	switch {
	case v.Action != t.Expect:
		return fmt.Sprintf("expected %s, got %s", t.Expect, v.Action)
	case t.Policy == "" || isReason(c.Explain, policy, f, v):
		return ""
	case v.Action == filter.Allow:
		return fmt.Sprintf("expected to be allowed by %s, but no rule of it allows this flow", policy)
	}
	return fmt.Sprintf("expected to be denied by %s, but %s", policy, denier(v))
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
func isReason(c *explain.Cluster, policy string, f explain.Flow, v filter.Verdict) bool {
	ofPolicy := func(r filter.Rule) bool { return r.PolicyTitle() == policy }
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
		return slices.Contains(side.Isolation.Policies, policy)
	})
}
