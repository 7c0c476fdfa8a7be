package engine

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/cache"
	"sluice/filter"
	"sluice/filter/policy"
)

// A denied packet counts once in ByTier, and once in ByPolicy for each policy that denied it. If
// a rule is compiled again, its series continues. forget ends the series of the given policies.
func TestDenials(t *testing.T) {
	rule := func(index int) *filter.Rule {
		return &filter.Rule{Policy: "platform", Name: "keep-out", Tier: filter.AdminTier, Direction: filter.Egress, Index: index}
	}
	both := &filter.Isolation{Direction: filter.Ingress, Policies: []string{"a/one", "a/two"}}
	accepts := &filter.Rule{Policy: "a/one", Tier: filter.NetworkPolicyTier, Direction: filter.Ingress, Action: filter.RuleAccepts}
	var c denialCounter
	for _, v := range []filter.Verdict{
		{Reason: filter.EgressDenied, Egress: filter.Side{Rule: rule(1)}, Ingress: filter.Side{Isolation: both}},
		{Reason: filter.EgressDenied, Egress: filter.Side{Rule: rule(1)}},
		{Reason: filter.EgressDenied, Egress: filter.Side{Rule: rule(2)}},
		{Reason: filter.IngressDenied, Ingress: filter.Side{Isolation: both}},
		{Reason: filter.MidStream, Egress: filter.Side{Rule: &filter.Rule{Action: filter.RuleAccepts}}, Ingress: filter.Side{Isolation: both}},
		{Reason: filter.MidStream, Ingress: filter.Side{Isolation: both, Rule: accepts}, Egress: filter.Side{Rule: rule(2)}},
		{Reason: filter.Malformed, Egress: filter.Side{Rule: rule(1)}},
		{Reason: filter.PodNotKnown},
		{Reason: filter.NamespaceNotKnown},
	} {
		c.count(&v, 1)
	}
	want := map[Denial]uint64{
		{filter.AdminTier, filter.Egress, "platform", "egress[1]", "keep-out"}: 2,
		{filter.AdminTier, filter.Egress, "platform", "egress[2]", "keep-out"}: 2,
		{filter.NetworkPolicyTier, filter.Ingress, "a/one", "", ""}:            2,
		{filter.NetworkPolicyTier, filter.Ingress, "a/two", "", ""}:            2,
	}
	check := func(factor uint64) {
		t.Helper()
		var got Denials
		for range factor {
			c.addTo(&got)
		}
		for series := range want {
			got.ByPolicy[series] /= factor
		}
		if !maps.Equal(got.ByPolicy, want) {
			t.Errorf("by policy %v, want %v", got.ByPolicy, want)
		}
		if tiers := [filter.NumTiers]uint64{filter.AdminTier: 4 * factor, filter.NetworkPolicyTier: 2 * factor}; got.ByTier != tiers {
			t.Errorf("by tier %v, want %v", got.ByTier, tiers)
		}
	}
	check(1)
	check(2)
	c.forget([]string{"a/one", "platform", "unknown"})
	maps.DeleteFunc(want, func(d Denial, _ uint64) bool { return d.Policy != "a/two" })
	check(1)
}

// The number of series is bounded, and no denial is lost.
func TestDenialsAreBounded(t *testing.T) {
	var c denialCounter
	const n = 5 * maxDenials
	for i := range n {
		c.count(&filter.Verdict{Reason: filter.IngressDenied, Ingress: filter.Side{Rule: &filter.Rule{Policy: fmt.Sprint(i), Tier: filter.BaselineTier, Direction: filter.Ingress}}}, 1)
		if len(c.causes) > maxDenials || len(c.denials.ByPolicy) > maxDenials+1 {
			t.Fatalf("%d causes, %d series", len(c.causes), len(c.denials.ByPolicy))
		}
	}
	var got Denials
	c.addTo(&got)
	other := got.ByPolicy[Denial{Tier: filter.BaselineTier, Direction: filter.Ingress, Policy: OtherPolicies}]
	if got.ByTier[filter.BaselineTier] != n || other != n-maxDenials {
		t.Errorf("%d denials, %d of other policies", got.ByTier[filter.BaselineTier], other)
	}
}

// The denials of an evaluator end with the deletion of their policy, and not with its replacement.
// Counting does not allocate.
func TestEvaluatorCountsDenials(t *testing.T) {
	w := policy.NewStore()
	w.SetPod(&policy.Pod{Namespace: "default", Name: "web", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}})
	form := &policy.Policy{
		Ref: policy.Ref{Kind: "ClusterNetworkPolicy", Name: "p"}, Tier: policy.Admin,
		Subject: policy.Subject{Namespaces: labels.Everything(), Pods: labels.Everything()},
		Rules:   [2][]policy.Rule{filter.Ingress: {{Name: "all"}}},
	}
	w.SetPolicy(form)
	var published policy.Published
	e := New(Config{Published: &published}, cache.NewFlows(16))
	defer e.Close()
	data := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 10, 0, 0, 1, 0, 53, 0, 53, 0, 8, 0, 0}
	series := Denial{filter.AdminTier, filter.Ingress, "p", "ingress[0]", "all"}
	commit := func(want uint64) {
		t.Helper()
		s, _ := w.Commit()
		published.Publish(s)
		e.Forget(s.Deleted())
		e.Enter()
		e.Evaluate(data, filter.AtPostrouting)
		e.Exit()
		if n, there := e.Tally().Denials.ByPolicy[series]; n != want || there != (want > 0) {
			t.Errorf("%d denials, want %d", n, want)
		}
	}
	commit(1)
	w.SetPolicy(form)
	commit(2)
	w.DeletePolicy(form.Ref)
	w.SetPolicy(form)
	commit(3)
	e.Enter()
	if allocs := testing.AllocsPerRun(2*sampleInterval, func() { e.Evaluate(data, filter.AtPostrouting) }); allocs != 0 {
		t.Errorf("counting takes %v allocations", allocs)
	}
	e.Exit()
	w.DeletePolicy(form.Ref)
	commit(0)
}
