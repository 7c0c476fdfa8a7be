package agent

import (
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/cache"
	"sluice/filter"
	"sluice/filter/engine"
	"sluice/filter/policy"
)

// The metrics of a policy end with its deletion.
func TestDeletedPolicyHasNoDenials(t *testing.T) {
	f := newFixture(t)
	e := engine.New(engine.Config{Published: &f.published}, cache.NewFlows(16))
	defer e.Close()
	f.evaluators = append(f.evaluators, e)
	f.start()
	ref := policy.Ref{Kind: "ClusterNetworkPolicy", Name: "platform"}
	f.update(func(w *policy.Store) {
		addPod(w)
		w.SetPolicy(&policy.Policy{
			Ref: ref, Tier: policy.Admin, Subject: policy.Subject{Namespaces: labels.Everything(), Pods: labels.Everything()},
			Rules: [2][]policy.Rule{filter.Ingress: {{Action: policy.Deny}}},
		})
	})
	f.until("in force", func() bool { return f.published.Snapshot().Counts().Policies == 1 })
	e.Enter()
	e.Evaluate([]byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 9, 10, 1, 0, 5, 0, 53, 0, 53, 0, 8, 0, 0}, filter.AtPostrouting)
	e.Exit()
	denied := func() int { return len(f.state().Tally.Denials.ByPolicy) }
	if n := denied(); n != 1 {
		t.Fatalf("%d policies have denied, want 1", n)
	}
	f.update(func(w *policy.Store) { w.DeletePolicy(ref) })
	f.until("forgotten", func() bool { return denied() == 0 })
	if n := f.state().Tally.Denials.ByTier[policy.Admin]; n != 1 {
		t.Errorf("the tier has %d denials, want 1", n)
	}
}
