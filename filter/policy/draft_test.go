package policy_test

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	madeup "sluice/bench/testbed/cluster"
	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// A draft may have added a selector that has not been matched with any pod yet. If a small
// policy uses the same selector, the next Commit matches all pods with it.
func TestSmallPolicySharesSelectorsOfDrafts(t *testing.T) {
	selector := func(key string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: key, Operator: metav1.LabelSelectorOpDoesNotExist}}}
	}
	for _, peer := range []networkingv1.NetworkPolicyPeer{
		{PodSelector: selector("none")},
		{NamespaceSelector: selector("none")},
		{PodSelector: selector("none"), NamespaceSelector: selector("none")},
	} {
		w := policy.NewStore()
		w.SetLarge(500)
		w.UseDrafts()
		for i := range 2 {
			w.SetPod(kubepod.Read(&corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: fmt.Sprint("p", i), Labels: map[string]string{"pod": fmt.Sprint(i)}},
				Status:     corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: fmt.Sprint("10.0.0.", i)}}},
			}))
		}
		w.Commit()
		allowing := func(name string, peers int) {
			p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name}}
			p.Spec.PodSelector.MatchLabels = map[string]string{"pod": "0"}
			from := []networkingv1.NetworkPolicyPeer{peer}
			for i := range peers {
				from = append(from, networkingv1.NetworkPolicyPeer{PodSelector: selector(fmt.Sprint("key-", i))})
			}
			p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: from}}
			w.SetPolicy(netpol.Read(p))
		}
		allowing("large", 100)
		prepare(t, w)
		for w.NextDraft() == nil { // until the store has the draft's selectors
			w.Work(func() bool { return false })
		}
		allowing("small", 0)
		s, _ := w.Commit()
		if s.Counts().Policies != 1 {
			t.Fatalf("%d policies are in force, want the small one", s.Counts().Policies)
		}
		f := flow{Src: addrs("10.0.0.1")[0], Dst: addrs("10.0.0.0")[0], Protocol: filter.TCP, Transport: filter.Ported, Port: 1}
		if v := s.Decide(f.key()); v.Action != filter.Allow {
			t.Errorf("%+v: %v", peer, v.Reason)
		}
	}
}

// A draft that is dropped while its prefixes are added leaves none of them. Those that a policy in
// force names stay.
func TestDroppedDraftLeavesNoPrefixes(t *testing.T) {
	var blocks []string
	for i := range 600 {
		blocks = append(blocks, fmt.Sprintf("10.%d.%d.0/24", i/256, i%256))
	}
	for pieces := range 5 {
		w := policy.NewStore()
		w.SetLarge(500)
		w.UseDrafts()
		w.SetPolicy(netpol.Read(madeup.BlockPolicy("a", "large", blocks...)))
		prepare(t, w)
		for range pieces {
			w.Work(func() bool { return false })
		}
		w.SetPolicy(netpol.Read(madeup.BlockPolicy("a", "small", blocks[0], "192.0.2.0/24")))
		w.Commit()
		w.DeletePolicy(netpol.Ref("a", "large"))
		for again := true; again; again, _ = w.Work(func() bool { return false }) {
			w.Commit()
		}
		if s, _ := w.Commit(); s.Counts().Prefixes != 2 || w.Kept()["prefixes"] != 2 {
			t.Errorf("dropped after %d pieces of work: %d prefixes in the snapshot, %d in the store, want 2", pieces, s.Counts().Prefixes, w.Kept()["prefixes"])
		}
	}
}

// prepare prepares the next draft.
func prepare(t *testing.T, w *policy.Store) {
	t.Helper()
	d := w.NextDraft()
	if d == nil {
		t.Fatal("there is no draft")
	}
	d.Prepare()
	w.Prepared(d)
}

// The limits apply to drafts as to other policies.
func TestDraftsBeyondLimits(t *testing.T) {
	cost := policy.CostOf(netpol.Read(large("a", "p0", 50)))
	w := newLimited(policy.Limits{Policy: 2 * cost, Policies: 5*cost + cost/2})
	w.SetLarge(0)
	w.UseDrafts()
	finish := func() {
		t.Helper()
		for range 1000 {
			again, _ := w.Work(func() bool { return false })
			w.Commit()
			if d := w.NextDraft(); d != nil {
				d.Prepare()
				w.Prepared(d)
			} else if !again {
				return
			}
		}
		t.Fatal("the drafts are not finished after 1000 rounds")
	}
	expect := func(flag string, want string) {
		t.Helper()
		if got := refused(w.Store, flag); fmt.Sprint(got) != want {
			t.Errorf("refused for %s: %v, want %v", flag, got, want)
		}
	}
	w.SetPolicy(netpol.Read(large("b", "p0", 50)))
	for i := range 4 {
		w.SetPolicy(netpol.Read(large("a", fmt.Sprintf("p%d", i), 50+i)))
	}
	w.SetPolicy(netpol.Read(large("a", "huge", 200)))
	finish()
	expect("--policy-memory", "[a/huge]")
	expect("--policies-memory", "[]")
	w.SetPolicy(netpol.Read(large("b", "p1", 50)))
	finish()
	expect("--policies-memory", "[a/p3]")
	if v := w.verdict(t, "10.0.0.2"); v.Reason != filter.RuleAllows {
		t.Errorf("a pod of the namespace whose policies take less: %v", v.Reason)
	}
	w.DeletePolicy(netpol.Ref("a", "p0"))
	finish()
	expect("--policies-memory", "[]")
	expect("--policy-memory", "[a/huge]")
	w.SetPolicy(netpol.Read(large("a", "huge", 10)))
	finish()
	expect("--policy-memory", "[]")
}
