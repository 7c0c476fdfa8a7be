package policy_test

import (
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
)

// An endpoint names the policies of each tier, and a snapshot counts them. A policy that is
// replaced or deleted is not counted any more.
func TestPoliciesOfTiers(t *testing.T) {
	for shape := range policy.Shapes {
		w := policy.NewStore()
		w.SetShape(shape)
		pod := &policy.Pod{Namespace: "a", Name: "x", Addrs: addrs("10.0.0.1")}
		w.SetPod(pod)
		set := func(name string, tier policy.Tier, priority int32) {
			p := &policy.Policy{
				Ref: policy.Ref{Kind: "ClusterNetworkPolicy", Name: name}, Tier: tier, Priority: priority,
				Subject: policy.Subject{Namespaces: labels.Everything(), Pods: labels.Everything()},
				Rules:   [2][]policy.Rule{filter.Ingress: {{Action: policy.Pass}, {Action: policy.Deny}}},
			}
			if tier == policy.NetworkPolicy {
				p.Ref, p.Subject.Namespace, p.Subject.Namespaces = policy.Ref{Kind: "NetworkPolicy", Namespace: "a", Name: name}, "a", nil
				p.Isolates, p.Rules = [2]bool{filter.Ingress: true}, [2][]policy.Rule{}
			}
			w.SetPolicy(p)
		}
		set("late", policy.Admin, 9)
		set("early", policy.Admin, 1)
		set("base", policy.Baseline, 1)
		set("base", policy.Baseline, 2)
		set("net", policy.NetworkPolicy, 0)
		check := func(admin, network, baseline []string, counts [filter.NumTiers]int) {
			t.Helper()
			s, _ := w.Commit()
			e := s.Endpoint(pod.Addrs[0])
			for tier, want := range map[policy.Tier][]string{policy.Admin: admin, policy.NetworkPolicy: network, policy.Baseline: baseline} {
				if got := e.Policies(filter.Ingress, tier); !slices.Equal(got, want) {
					t.Errorf("shape %d: policies of %s are %v, want %v", shape, tier, got, want)
				}
				if got := e.Policies(filter.Egress, tier); got != nil {
					t.Errorf("shape %d: policies of %s in egress are %v", shape, tier, got)
				}
			}
			if got := s.Counts().Tiers; got != counts {
				t.Errorf("shape %d: counts %v, want %v", shape, got, counts)
			}
		}
		check([]string{"early", "late"}, []string{"a/net"}, nil, [filter.NumTiers]int{policy.Admin: 2, policy.NetworkPolicy: 1, policy.Baseline: 1})
		w.DeletePolicy(policy.Ref{Kind: "NetworkPolicy", Namespace: "a", Name: "net"})
		w.DeletePolicy(policy.Ref{Kind: "ClusterNetworkPolicy", Name: "late"})
		check([]string{"early"}, nil, []string{"base"}, [filter.NumTiers]int{policy.Admin: 1, policy.Baseline: 1})
	}
}
