package engine

import (
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"strings"
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

// denyBy counts a denial by a rule of the named policy.
func denyBy(c *denialCounter, name string, rule int) {
	c.count(&filter.Verdict{Reason: filter.IngressDenied, Ingress: filter.Side{
		Rule: &filter.Rule{Policy: name, Tier: filter.BaselineTier, Direction: filter.Ingress, Index: rule},
	}}, 1)
}

// policiesOf returns, for the sum of some counters, the number of policies that have series of their own,
// the number of denials by other policies, and the number of all denials.
func policiesOf(counters ...*denialCounter) (policies int, other, all uint64) {
	var sum Denials
	for _, c := range counters {
		c.addTo(&sum)
	}
	names := make(map[string]bool)
	for d := range sum.ByPolicy {
		names[d.Policy] = d.Policy != OtherPolicies
	}
	for _, own := range names {
		if own {
			policies++
		}
	}
	return policies, sum.ByPolicy[Denial{Tier: filter.BaselineTier, Direction: filter.Ingress, Policy: OtherPolicies}], sum.ByTier[filter.BaselineTier]
}

// At most MaxPolicies have series in all counters together, and every denial is counted. When policies are
// deleted, as many others can have series.
func TestDenialsAreBounded(t *testing.T) {
	var shared Series
	one, two := &denialCounter{series: &shared}, &denialCounter{series: &shared}
	const n = 3 * MaxPolicies
	for i := range n {
		denyBy(one, fmt.Sprint("policy-", i), 0)
		denyBy(two, fmt.Sprint("policy-", n-i), 0)
		if len(one.causes) > maxCauses {
			t.Fatalf("%d causes", len(one.causes))
		}
	}
	if policies, other, all := policiesOf(one, two); policies != MaxPolicies || all != 2*n || other == 0 {
		t.Errorf("%d policies have series; %d denials of others, %d of all", policies, other, all)
	}
	var of Denials
	one.addTo(&of)
	gone := slices.Collect(func(yield func(string) bool) {
		for d := range of.ByPolicy {
			if d.Policy != OtherPolicies && !yield(d.Policy) {
				return
			}
		}
	})[:10]
	for _, c := range []*denialCounter{one, two} {
		c.forget(gone)
	}
	shared.Free(gone)
	if policies, _, _ := policiesOf(one, two); policies != MaxPolicies-10 {
		t.Errorf("%d policies have series after 10 were deleted", policies)
	}
	for i := range 20 {
		denyBy(one, fmt.Sprint("later-", i), 0)
	}
	if policies, _, _ := policiesOf(one, two); policies != MaxPolicies {
		t.Errorf("%d policies have series after others have denied", policies)
	}
}

// The number of series is bounded even if policies have many rules.
func TestRulesAreBounded(t *testing.T) {
	var c denialCounter
	for i := range MaxPolicies {
		for rule := range 20 {
			denyBy(&c, fmt.Sprint(i), rule)
		}
	}
	var got Denials
	c.addTo(&got)
	if len(got.ByPolicy) != maxSeries+1 {
		t.Errorf("%d series, want %d and one for the others", len(got.ByPolicy), maxSeries)
	}
}

// Denials by 100,000 policies with long names take less than 2 MiB.
func TestDenialsAreSmall(t *testing.T) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var c denialCounter
	long := strings.Repeat("n", 63) + "/" + strings.Repeat("p", 253)
	for i := range 100_000 {
		denyBy(&c, fmt.Sprint(long, i), 0)
	}
	c.addTo(new(Denials))
	runtime.GC()
	runtime.ReadMemStats(&after)
	if kept := int64(after.HeapAlloc) - int64(before.HeapAlloc); kept > 2<<20 {
		t.Errorf("they take %d KiB", kept>>10)
	} else {
		t.Logf("they take %d KiB", kept>>10)
	}
	runtime.KeepAlive(&c)
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
