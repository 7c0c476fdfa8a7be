package policy_test

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
)

// Policies of equal priority are reported while a pod exists that both select, if their
// order matters.
func TestOverlaps(t *testing.T) {
	w := policy.NewStore()
	set := func(name string, tier policy.Tier, priority int32, role string, actions ...policy.Action) {
		p := &policy.Policy{
			Ref: policy.Ref{Kind: "ClusterNetworkPolicy", Name: name}, Tier: tier, Priority: priority,
			Subject: policy.Subject{Namespaces: labels.Everything(), Pods: labels.SelectorFromSet(labels.Set{role: "x"})},
		}
		for _, a := range actions {
			p.Rules[filter.Ingress] = append(p.Rules[filter.Ingress], policy.Rule{Action: a})
		}
		w.SetPolicy(p)
	}
	pod := func(roles ...string) {
		p := &policy.Pod{Namespace: "a", Name: "x", Addrs: addrs("10.0.0.1"), Labels: labels.Set{}}
		for _, r := range roles {
			p.Labels[r] = "x"
		}
		w.SetPod(p)
	}
	check := func(what string, want ...string) {
		t.Helper()
		w.Commit()
		got := w.Overlaps()
		if len(got) != len(want) {
			t.Fatalf("%s: %v, want %q", what, got, want)
		}
		for i, p := range got {
			if !strings.Contains(p.Error(), want[i]) {
				t.Errorf("%s: %v, want %q", what, p, want[i])
			}
		}
	}
	pod("a", "b")
	set("p", policy.Admin, 7, "a", policy.Accept)
	set("q", policy.Admin, 7, "b", policy.Deny)
	const both = "ClusterNetworkPolicy q, spec.priority: ClusterNetworkPolicy p has the same priority 7 in the tier Admin"
	check("both select the pod", both)
	pod("a")
	check("the pod is another")
	pod("a", "b")
	check("the pod is back", both)
	set("q", policy.Admin, 7, "b", policy.Accept)
	check("equal actions")
	set("q", policy.Baseline, 7, "b", policy.Deny)
	check("another tier")
	set("q", policy.Admin, 8, "b", policy.Deny)
	check("another priority")
	set("q", policy.Admin, 7, "b", policy.Deny)
	set("r", policy.Admin, 7, "a", policy.Pass)
	check("three of them", both, "ClusterNetworkPolicy r, spec.priority: ClusterNetworkPolicy q")
	w.DeletePolicy(policy.Ref{Kind: "ClusterNetworkPolicy", Name: "q"})
	check("one is gone", "ClusterNetworkPolicy r, spec.priority: ClusterNetworkPolicy p")
	set("p", policy.Admin, -1, "a", policy.Accept)
	set("r", policy.Admin, -1, "a", policy.Deny)
	check("priorities that cannot be understood")
	set("p", policy.Admin, 7, "a", policy.Accept)
	set("r", policy.Admin, 7, "a", policy.Deny)
	check("corrected", "ClusterNetworkPolicy r, spec.priority: ClusterNetworkPolicy p")
	w.DeletePod("a", "x")
	check("the pod is gone")
}
