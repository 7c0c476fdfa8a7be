package policy_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/bench/testbed/worstcase"
	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// limited is a store with limits and two pods: 10.0.0.1 in namespace a, and 10.0.0.2 in
// namespace b.
type limited struct{ *policy.Store }

func newLimited(l policy.Limits) limited {
	w := limited{policy.NewStore()}
	w.SetLimits(l)
	for i, namespace := range []string{"a", "b"} {
		w.SetPod(kubepod.Read(&corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "pod", Labels: map[string]string{"app": "web"}},
			Status:     corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: fmt.Sprintf("10.0.0.%d", i+1)}}},
		}))
	}
	return w
}

// large returns a policy with the given number of rules.
func large(namespace, name string, rules int) *networkingv1.NetworkPolicy {
	p := worstcase.Recipe{Layout: worstcase.Apart, Ports: 1, Blocks: 1}.Policy(name, rules)
	p.Namespace = namespace
	return p
}

// refused returns the names of the policies that were refused because of the limit that the
// given flag sets.
func refused(w *policy.Store, flag string) (names []string) {
	for _, p := range w.Problems() {
		if strings.Contains(p.Hint, flag) && p.Field == "spec" {
			names = append(names, p.Policy.String())
		}
	}
	return names
}

func (w limited) verdict(t *testing.T, to string) filter.Verdict {
	t.Helper()
	s, _ := w.Commit()
	f := flow{Src: addrs("1.0.0.1")[0], Dst: addrs(to)[0], Protocol: filter.TCP, Transport: filter.Ported, Port: 1}
	return s.Decide(f.key())
}

// If the cost of a policy exceeds Limits.Policy, the store refuses the policy: the policy then
// allows nothing, and isolates the pods that it selects. Other policies stay in force. A smaller
// version of the policy comes into force.
func TestPolicyBeyondItsLimit(t *testing.T) {
	limit := policy.CostOf(netpol.Read(large("a", "p", 50)))
	w := newLimited(policy.Limits{Policy: limit})
	w.SetPolicy(netpol.Read(large("a", "p", 51)))
	w.SetPolicy(netpol.Read(large("b", "p", 50)))
	if v := w.verdict(t, "10.0.0.1"); v.Reason != filter.IngressDenied {
		t.Errorf("the pod of the policy over the limit: %v", v.Reason)
	}
	if v := w.verdict(t, "10.0.0.2"); v.Reason != filter.RuleAllows {
		t.Errorf("the pod of the other policy: %v", v.Reason)
	}
	if got := refused(w.Store, "--policy-memory"); !slices.Equal(got, []string{"a/p"}) {
		t.Errorf("refused: %v", got)
	}
	w.SetPolicy(netpol.Read(large("a", "p", 50)))
	if v := w.verdict(t, "10.0.0.1"); v.Reason != filter.RuleAllows || len(w.Problems()) > 0 {
		t.Errorf("after the policy was made smaller: %v, problems %v", v.Reason, w.Problems())
	}
}

// A refused policy isolates pods in the same directions as if it were in force.
func TestRefusedPolicyIsolates(t *testing.T) {
	for _, types := range [][]networkingv1.PolicyType{nil, {networkingv1.PolicyTypeEgress}, {networkingv1.PolicyTypeIngress}, {networkingv1.PolicyTypeEgress, networkingv1.PolicyTypeIngress}, {"Sideways"}} {
		p := large("a", "p", 50)
		p.Spec.PolicyTypes = types
		p.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{}}
		whole, without := newLimited(policy.Limits{}), newLimited(policy.Limits{Policy: 1})
		whole.SetPolicy(netpol.Read(p))
		without.SetPolicy(netpol.Read(p))
		before, _ := whole.Commit()
		after, _ := without.Commit()
		for _, d := range []filter.Direction{filter.Egress, filter.Ingress} {
			pod := addrs("10.0.0.1")[0]
			if is, was := after.Endpoint(pod).Isolation(d) != nil, before.Endpoint(pod).Isolation(d) != nil; is != was {
				t.Errorf("%v: it isolates for %v: %t, refused: %t", types, d, was, is)
			}
		}
	}
}

// If the sum of the costs of all policies exceeds Limits.Policies, the store refuses the
// largest policy of the namespace with the highest cost, and repeats this until the
// remaining policies are within the limit. When other policies are deleted, refused
// policies that fit again come into force.
func TestPoliciesBeyondTheirLimit(t *testing.T) {
	cost := policy.CostOf(netpol.Read(large("a", "p0", 50)))
	w := newLimited(policy.Limits{Policies: 5*cost + cost/2})
	w.SetPolicy(netpol.Read(large("b", "p0", 50)))
	for i := range 4 {
		w.SetPolicy(netpol.Read(large("a", fmt.Sprintf("p%d", i), 50+i)))
	}
	w.Commit()
	if got := refused(w.Store, "--policies-memory"); len(got) != 0 {
		t.Fatalf("refused: %v", got)
	}
	w.SetPolicy(netpol.Read(large("b", "p1", 50)))
	if v := w.verdict(t, "10.0.0.2"); v.Reason != filter.RuleAllows {
		t.Errorf("a pod of the namespace whose policies take less: %v", v.Reason)
	}
	if got := refused(w.Store, "--policies-memory"); !slices.Equal(got, []string{"a/p3"}) {
		t.Fatalf("refused: %v", got)
	}
	w.DeletePolicy(netpol.Ref("a", "p0"))
	w.Commit()
	if got := w.Problems(); len(got) != 0 {
		t.Fatalf("problems after a policy was deleted: %v", got)
	}
}

// The set of refused policies depends only on the policies that are set: not on their order,
// and not on policies that were deleted.
func TestRefusalIsStable(t *testing.T) {
	cost := policy.CostOf(netpol.Read(large("a", "p0", 50)))
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 3))
		var policies []*networkingv1.NetworkPolicy
		for i := range 12 {
			policies = append(policies, large([]string{"a", "b"}[r.IntN(2)], fmt.Sprintf("p%d", i), 20+r.IntN(60)))
		}
		limits := policy.Limits{Policies: 6 * cost}
		first, second := newLimited(limits), newLimited(limits)
		for _, p := range policies {
			first.SetPolicy(netpol.Read(p))
		}
		for _, i := range r.Perm(len(policies)) {
			second.SetPolicy(netpol.Read(policies[i]))
			if r.IntN(3) == 0 {
				other := large("b", fmt.Sprintf("other%d", r.IntN(3)), 100)
				second.SetPolicy(netpol.Read(other))
				second.Commit()
				second.DeletePolicy(netpol.Ref(other.Namespace, other.Name))
			}
			if r.IntN(2) == 0 {
				second.Commit()
			}
		}
		first.Commit()
		second.Commit()
		a, b := refused(first.Store, "--policies-memory"), refused(second.Store, "--policies-memory")
		if slices.Sort(a); len(a) == 0 || !slices.Equal(a, b) {
			t.Fatalf("seed %d: refused: %v, and in another order %v", seed, a, b)
		}
	}
}
