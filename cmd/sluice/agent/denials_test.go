package agent

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/cache"
	"sluice/cache/bpf"
	"sluice/filter"
	"sluice/filter/engine"
	"sluice/filter/packet"
	"sluice/filter/policy"
)

// platform is a policy that denies all packets to pods, and denied is such a packet.
var (
	platform = policy.Ref{Kind: "ClusterNetworkPolicy", Name: "platform"}
	denied   = []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 9, 10, 1, 0, 5, 0, 53, 0, 53, 0, 8, 0, 0}
)

// denyAll puts platform in force.
func (f *fixture) denyAll() {
	f.t.Helper()
	f.update(func(w *policy.Store) {
		addPod(w)
		w.SetPolicy(&policy.Policy{
			Ref: platform, Tier: policy.Admin, Subject: policy.Subject{Namespaces: labels.Everything(), Pods: labels.Everything()},
			Rules: [2][]policy.Rule{filter.Ingress: {{Action: policy.Deny}}},
		})
	})
	f.until("in force", func() bool { return f.published.Snapshot().Counts().Policies == 1 })
}

// Each packet that the kernel denies counts once. It counts for the policy that denies it at the next
// count or, if no policy denies it then, as unknown.
func TestKernelDenialsCountOnce(t *testing.T) {
	f := newFixture(t)
	f.start()
	f.denyAll()
	p, err := packet.NewDecoder().Decode(denied)
	if err != nil {
		t.Fatal(err)
	}
	check := func(packets, tier, unknown uint64, series int) {
		t.Helper()
		f.kernelDenied.Store(&bpf.Denial{Key: p.Key, Packets: packets})
		s := f.state()
		by := s.KernelDenied.Denials
		if by.ByTier[policy.Admin] != tier || s.KernelUnknown != unknown || len(by.ByPolicy) != series {
			t.Errorf("after %d packets: %d of the tier, %d unknown, by policy %v", packets, by.ByTier[policy.Admin], s.KernelUnknown, by.ByPolicy)
		}
	}
	check(7, 7, 0, 1)
	check(9, 9, 0, 1)
	f.update(func(w *policy.Store) { w.DeletePolicy(platform) })
	f.until("forgotten", func() bool { return len(f.state().KernelDenied.Denials.ByPolicy) == 0 })
	check(12, 9, 3, 0)
	f.denyAll()
	check(13, 10, 3, 1)
}

// A denial of the kernel keeps the policy that has denied it when policies change later. Further packets
// of the same flow are a denial of their own.
func TestKernelDenialsKeepTheirPolicy(t *testing.T) {
	f := newFixture(t)
	f.start()
	f.denyAll()
	p, err := packet.NewDecoder().Decode(denied)
	if err != nil {
		t.Fatal(err)
	}
	first := time.Now()
	last := first
	check := func(packets uint64, want ...string) {
		t.Helper()
		last = last.Add(time.Minute)
		f.kernelDenied.Store(&bpf.Denial{Key: p.Key, Packets: packets, First: first, Last: last})
		var got []string
		for _, d := range f.agent.flows.lastDenials() {
			policy := "no policy"
			if r := d.Verdict.Ingress.Rule; r != nil {
				policy = r.Policy
			}
			got = append(got, fmt.Sprint(d.Packets, " by ", policy))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
	check(7, "7 by platform")
	f.update(func(w *policy.Store) { w.DeletePolicy(platform) })
	f.until("gone", func() bool { return f.published.Snapshot().Counts().Policies == 0 })
	check(7, "7 by platform")
	check(12, "5 by no policy", "7 by platform")
}

// When a policy is deleted, its metrics are removed. The denials of its tier still count.
func TestDeletedPolicyHasNoDenials(t *testing.T) {
	f := newFixture(t)
	e := engine.New(engine.Config{Published: &f.published}, cache.NewFlows(16))
	defer e.Close()
	f.evaluators = append(f.evaluators, e)
	f.start()
	f.denyAll()
	e.Enter()
	e.Evaluate(denied, filter.AtPostrouting)
	e.Exit()
	series := func() int { return len(f.state().Tally.Denials.ByPolicy) }
	if n := series(); n != 1 {
		t.Fatalf("%d policies have denied, want 1", n)
	}
	f.update(func(w *policy.Store) { w.DeletePolicy(platform) })
	f.until("forgotten", func() bool { return series() == 0 })
	if n := f.state().Tally.Denials.ByTier[policy.Admin]; n != 1 {
		t.Errorf("the tier has %d denials, want 1", n)
	}
}

// At most engine.MaxPolicies policies have metrics of their own. If one of them is deleted, another policy
// can have metrics in its place.
func TestDeletedPolicyFreesItsRoom(t *testing.T) {
	f := newFixture(t)
	f.start()
	f.denyAll()
	count := func(name string) (own bool) {
		rule := &filter.Rule{Policy: name, Tier: filter.AdminTier, Direction: filter.Ingress}
		f.flows.kernelDenied.Count(&filter.Verdict{Reason: filter.IngressDenied, Ingress: filter.Side{Rule: rule}}, 1)
		_, own = f.flows.kernelDenied.Tally().Denials.ByPolicy[engine.Denial{Tier: rule.Tier, Direction: rule.Direction, Policy: name, Rule: rule.Field()}]
		return own
	}
	for i := range engine.MaxPolicies - 1 {
		count(fmt.Sprint("policy-", i))
	}
	if !count("platform") || count("late") {
		t.Fatal("the bound is not that of engine.MaxPolicies")
	}
	f.update(func(w *policy.Store) { w.DeletePolicy(platform) })
	f.until("a policy has the room of the deleted one", func() bool { return count("late") })
}
