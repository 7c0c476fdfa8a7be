package policy_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/clusterpolicy"
	"sluice/filter/policy/netpol"
)

// largeOfCluster returns an expensive policy of the whole cluster, which accepts what comes
// from 1.0.0.1.
func largeOfCluster(name string, rules int) *policy.Policy {
	p := subjectOfAll(name)
	for i := range rules {
		p.Rules[filter.Ingress] = append(p.Rules[filter.Ingress], policy.Rule{
			Action: policy.Accept,
			Peers:  []policy.Peer{{Networks: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{1, 0, byte(i), 1}), 32)}}},
			Ports:  []policy.PortRange{{Protocol: filter.TCP, Low: uint16(1 + 2*i), High: uint16(1 + 2*i)}},
		})
	}
	return p
}

func subjectOfAll(name string) *policy.Policy {
	return &policy.Policy{
		Ref: clusterpolicy.Ref(name), Tier: policy.Admin,
		Subject: policy.Subject{Namespaces: labels.Everything(), Pods: labels.Everything()},
	}
}

// The policies of the whole cluster are refused last, however much memory they take. A refused
// one denies everything in the directions in which it has rules, in every namespace.
func TestPoliciesOfTheClusterAreRefusedLast(t *testing.T) {
	const small, big = 20, 200
	cost := policy.CostOf(largeOfCluster("c", big))
	w := newLimited(policy.Limits{Policies: cost + cost/2})
	for i := range 30 {
		w.SetPolicy(netpol.Read(large("a", fmt.Sprintf("p%02d", i), small)))
	}
	w.SetPolicy(largeOfCluster("c", big))
	if v := w.verdict(t, "10.0.0.1"); v.Reason != filter.RuleAllows || v.Ingress.Rule.Policy != "c" {
		t.Errorf("%s, by %s", v.Reason, ruleText(v.Ingress.Rule))
	}
	if got := refused(w.Store, "--policies-memory"); len(got) == 0 || slices.Contains(got, "c") {
		t.Errorf("refused: %v", got)
	}
	w.SetPolicy(largeOfCluster("d", big)) // now all policies together are over the limit
	w.Commit()
	if got := refused(w.Store, "--policies-memory"); len(got) != 31 || !slices.Contains(got, "d") {
		t.Errorf("refused: %v", got)
	}
	if v := w.verdict(t, "10.0.0.2"); v.Reason != filter.RuleAllows || v.Ingress.Rule.Policy != "c" {
		t.Errorf("%s, by %s", v.Reason, ruleText(v.Ingress.Rule))
	}
	for i := range 30 {
		w.DeletePolicy(netpol.Ref("a", fmt.Sprintf("p%02d", i)))
	}
	w.DeletePolicy(clusterpolicy.Ref("d"))
	if w.Commit(); len(w.Problems()) > 0 {
		t.Errorf("problems %v after they fit again", w.Problems())
	}
}

// A policy of the whole cluster that is refused for its own size denies everything in the
// directions in which it has rules.
func TestRefusedPolicyOfTheClusterDenies(t *testing.T) {
	w := newLimited(policy.Limits{Policy: 1000})
	w.SetPolicy(largeOfCluster("c", 50))
	s, _ := w.Commit()
	if v := s.Decide(toPod.key()); v.Reason != filter.IngressDenied || v.Ingress.Rule.Policy != "c" {
		t.Errorf("%s, by %s", v.Reason, ruleText(v.Ingress.Rule))
	}
	if v := s.Decide(fromPod.key()); v.Reason != filter.NotIsolated {
		t.Errorf("in the other direction: %s", v.Reason)
	}
}

// A large policy of the whole cluster is in force after the next Commit, even if the store uses
// drafts. A pod that starts afterwards is not deferred.
func TestPoliciesOfTheClusterAreNotDrafts(t *testing.T) {
	w := policy.NewStore()
	w.SetPodRanges([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")})
	w.UseDrafts()
	w.SetLarge(0)
	o := largestClusterPolicy()
	o.Spec.Egress, o.Spec.Ingress = o.Spec.Egress[:1], nil
	o.Spec.Egress[0].Action = "Deny"
	o.Spec.Egress[0].To[0].Networks[0] = "192.0.2.0/24"
	o.Spec.Egress[0].Protocols = nil
	w.SetEncoded(clusterpolicy.Encode(o))
	w.SetPod(&policy.Pod{Namespace: "a", Name: "x", Addrs: addrs("10.0.0.1")})
	s, _ := w.Commit()
	if v := s.Decide(fromPod.key()); v.Reason != filter.EgressDenied || s.Endpoint(fromPod.Src) == nil {
		t.Errorf("%s, the pod is %q", v.Reason, s.Endpoint(fromPod.Src))
	}
	if w.NextDraft() != nil || len(w.Deferred()) > 0 {
		t.Error("there is a draft")
	}
}

// Large policies of a tier keep their place among small ones.
func TestLargePoliciesKeepTheirOrder(t *testing.T) {
	for large := range 4 { // the index of the large policy; 3: none
		for first := range 3 {
			w := onePod()
			w.SetLarge(1)
			for i := range 3 {
				p := subjectOfAll(fmt.Sprint("p", i))
				p.Priority = int32((i - first + 3) % 3)
				p.Rules[filter.Ingress] = []policy.Rule{{Action: policy.Deny}}
				if i == large {
					form := *p
					p.Source = policy.Source{Encoded: []byte("large"), Read: func(policy.Ref, []byte) (*policy.Policy, error) { return &form, nil }}
				}
				w.SetPolicy(p)
			}
			s, _ := w.Commit()
			if v := s.Decide(toPod.key()); v.Ingress.Rule == nil || v.Ingress.Rule.Policy != fmt.Sprint("p", first) {
				t.Errorf("large %d: decided by %s, want p%d", large, ruleText(v.Ingress.Rule), first)
			}
		}
	}
}
