package policy_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/bench/testbed/worstcase"
)

// overlapping returns policies that each select a random half of the pods, so that hardly
// any two pods are selected by the same policies.
func overlapping(pods, policies, rules int) (list []*networkingv1.NetworkPolicy) {
	r := rand.New(rand.NewPCG(uint64(pods), uint64(policies)))
	for i := range policies {
		p := worstcase.Recipe{Layout: worstcase.Overlapping, Ports: 1, Blocks: 4}.Policy(fmt.Sprintf("p%d", i), rules)
		half := metav1.LabelSelectorRequirement{Key: "id", Operator: metav1.LabelSelectorOpIn}
		for _, pod := range r.Perm(pods)[:pods/2] {
			half.Values = append(half.Values, fmt.Sprintf("v%d", pod))
		}
		p.Spec.PodSelector.MatchExpressions = append(p.Spec.PodSelector.MatchExpressions, half)
		list = append(list, p)
	}
	return list
}

// If each pod is selected by a different set of many policies, the store does not merge the
// rules for each set: otherwise memory would grow with pods × policies. A decision evaluates
// one policy after the other instead.
func TestManySetsOfPolicies(t *testing.T) {
	const pods, policies, rules = 300, 60, 100
	list := overlapping(pods, policies, rules)
	stored := uint64(0)
	for _, p := range list {
		stored += uint64(p.Size())
	}
	took, w, s := measure(worstcase.Recipe{Identities: pods}.Pods(), list...)
	defer runtime.KeepAlive(w)
	defer runtime.KeepAlive(s)
	if s.Counts().PolicySets < pods*9/10 {
		t.Errorf("%d pods have %d policy sets: too few for this test", pods, s.Counts().PolicySets)
	}
	if limit := keptPerByte*stored + 64*pods*policies + 8<<20; took.kept > limit {
		t.Errorf("policies of %d bytes keep %d, want %d at most", stored, took.kept, limit)
	}
	if _, _, _, apart, _ := w.Forms(); apart == 0 {
		t.Error("all rule sets are merged: the test does not reach the case that it is for")
	}
	t.Logf("policies of %d KiB in %d policy sets keep %d KiB", stored>>10, s.Counts().PolicySets, took.kept>>10)
}
