package policy_test

import (
	"fmt"
	"net/netip"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/clusterpolicy"
	"sluice/filter/policy/netpol"
)

// denialBed is a store with two pods, shop/db and other/web.
type denialBed struct {
	*policy.Store
	t *testing.T
}

func newDenialBed(t *testing.T) denialBed {
	w := denialBed{policy.NewStore(), t}
	w.SetNamespace("shop", nil)
	w.SetNamespace("other", nil)
	w.SetPod(&policy.Pod{Namespace: "shop", Name: "db", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}})
	w.SetPod(&policy.Pod{Namespace: "other", Name: "web", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.2")}})
	return w
}

func annotated(with string) map[string]string {
	if with == "" {
		return nil
	}
	return map[string]string{policy.DenyWithAnnotation: with}
}

// close isolates all pods of a namespace in both directions.
func (w denialBed) close(namespace, name, with string) {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: annotated(with)}}
	p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
	w.SetEncoded(netpol.Encode(p))
}

// admin denies what the pods of a namespace receive.
func (w denialBed) admin(namespace, with string) {
	p := &v1beta1.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "platform", Annotations: annotated(with)}}
	all := &metav1.LabelSelector{}
	p.Spec = v1beta1.ClusterNetworkPolicySpec{
		Tier:    v1beta1.AdminTier,
		Subject: v1beta1.ClusterNetworkPolicySubject{Namespaces: &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": namespace}}},
		Ingress: []v1beta1.ClusterNetworkPolicyIngressRule{{Action: v1beta1.ClusterNetworkPolicyRuleActionDeny, From: []v1beta1.ClusterNetworkPolicyIngressPeer{{Namespaces: all}}}},
	}
	w.SetEncoded(clusterpolicy.Encode(p))
}

// toDB returns the verdict on web to db.
func (w denialBed) toDB() (filter.Verdict, *policy.Snapshot, policy.Changes) {
	s, changes := w.Commit()
	return s.Decide(filter.NewKey(netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.1"), filter.TCP, 80)), s, changes
}

func (w denialBed) namespace(name, with string) {
	d, wrong := policy.NamespaceDenial(name, annotated(with))
	w.SetNamespaceDenial(name, d, wrong)
}

// The most specific of policy, namespace and node says how packets are denied.
func TestDenialOfTheMostSpecific(t *testing.T) {
	for _, tt := range []struct {
		node, shop, other, policy string
		want                      bool
	}{
		{"", "", "", "", false},
		{"reject", "", "", "", true},
		{"reject", "drop", "", "", false},
		{"reject", "drop", "", "reject", true},
		{"reject", "", "", "drop", false},
		{"", "reject", "", "", true},
		{"", "reject", "", "drop", false},
		{"", "drop", "", "reject", true},
		{"", "", "reject", "", false}, // the namespace of the other pod does not count
		{"", "nonsense", "", "", false},
		{"reject", "nonsense", "", "nonsense", true},
	} {
		for _, kind := range []string{"NetworkPolicy", "ClusterNetworkPolicy"} {
			t.Run(fmt.Sprint(kind, tt), func(t *testing.T) {
				w := newDenialBed(t)
				node, _ := filter.ParseDenial(tt.node)
				w.SetDenial(node)
				w.namespace("shop", tt.shop)
				w.namespace("other", tt.other)
				if kind == "NetworkPolicy" {
					w.close("shop", "closed", tt.policy)
				} else {
					w.admin("shop", tt.policy)
				}
				v, s, _ := w.toDB()
				if v.Action != filter.Deny || v.Reject != tt.want {
					t.Errorf("%s, rejected: %t, want %t", v.Action, v.Reject, tt.want)
				}
				if v.Reject && !s.Rejects() {
					t.Error("the snapshot does not tell that it may reject")
				}
				rejects, known := s.Endpoint(netip.MustParseAddr("10.0.0.1")).ClosedDenial(filter.Ingress)
				if !known || rejects != tt.want {
					t.Errorf("the closed end rejects: %t (known %t), want %t", rejects, known, tt.want)
				}
			})
		}
	}
}

// If several policies isolate a pod, one that drops prevails over those that reject.
func TestDenialOfSeveral(t *testing.T) {
	for _, tt := range []struct {
		policies []string
		want     bool
	}{
		{[]string{"", "reject"}, true},
		{[]string{"reject", "reject"}, true},
		{[]string{"reject", "drop", ""}, false},
	} {
		w := newDenialBed(t)
		for i, with := range tt.policies {
			w.close("shop", fmt.Sprintf("p%d", i), with)
		}
		if v, _, _ := w.toDB(); v.Reject != tt.want {
			t.Errorf("%v: rejected: %t, want %t", tt.policies, v.Reject, tt.want)
		}
	}
}

// If both ends deny, the source's policies count.
func TestDenialOfTheSource(t *testing.T) {
	w := newDenialBed(t)
	w.close("shop", "p", "reject")
	w.close("other", "p", "drop")
	if v, _, _ := w.toDB(); v.Reject || v.Reason != filter.EgressDenied {
		t.Errorf("%s, rejected: %t, want a drop by the source's policy", v.Reason, v.Reject)
	}
}

// A changed annotation changes the epochs of the pods that it concerns, so that caches do not
// use verdicts from before.
func TestDenialChanges(t *testing.T) {
	w := newDenialBed(t)
	w.close("shop", "p", "")
	v, s, _ := w.toDB()
	if v.Reject || s.Rejects() {
		t.Fatal("rejected without any annotation")
	}
	for _, step := range []struct {
		do     func()
		reject bool
		any    bool
	}{
		{func() { w.namespace("shop", "reject") }, true, true},
		{func() { w.close("shop", "p", "drop") }, false, true},
		{func() { w.close("shop", "p", "reject") }, true, true},
		{func() { w.close("shop", "p", "") }, true, true},
		{func() { w.namespace("shop", "") }, false, false},
		{func() { w.close("shop", "p", "reject") }, true, true},
		{func() { w.DeletePolicy(netpol.Ref("shop", "p")); w.close("shop", "q", "") }, false, false},
		{func() { w.namespace("shop", "reject") }, true, true},
		{func() { w.DeleteNamespace("shop") }, false, false},
	} {
		before := s.Endpoint(netip.MustParseAddr("10.0.0.1")).Epoch()
		step.do()
		var changes policy.Changes
		was := v.Reject
		v, s, changes = w.toDB()
		if v.Action != filter.Deny || v.Reject != step.reject || s.Rejects() != step.any {
			t.Errorf("%s, rejected: %t, want %t; anything rejected: %t, want %t", v.Action, v.Reject, step.reject, s.Rejects(), step.any)
		}
		if is := s.Endpoint(netip.MustParseAddr("10.0.0.1")).Epoch(); was != v.Reject && (is == before || len(changes) == 0) {
			t.Errorf("rejected: %t, with the epoch of before", v.Reject)
		}
	}
}

// An unknown value is a problem, and has no effect.
func TestDenialUnknown(t *testing.T) {
	w := newDenialBed(t)
	w.close("shop", "p", "nonsense")
	w.admin("shop", "REJECT")
	w.Commit()
	problems := w.Problems()
	if len(problems) != 2 {
		t.Fatalf("problems: %v, want 2", problems)
	}
	for _, p := range problems {
		if p.Field != policy.DenyWithField || p.Hint == "" || !p.Minor {
			t.Errorf("problem %v, want a minor one about %s", p, policy.DenyWithField)
		}
	}
}

// An unknown value of a namespace is a problem as long as the namespace has it.
func TestDenialUnknownOfANamespace(t *testing.T) {
	w := newDenialBed(t)
	want := func(n int) {
		t.Helper()
		w.Commit()
		p := w.Problems()
		if len(p) != n || n > 0 && (!p[0].Minor || p[0].Policy.Object() != "Namespace shop") {
			t.Errorf("problems: %v, want %d minor ones of Namespace shop", p, n)
		}
	}
	w.namespace("shop", "nonsense")
	want(1)
	w.namespace("shop", "drop")
	want(0)
	w.namespace("shop", "nonsense")
	w.DeleteNamespace("shop")
	want(0)
}

// A policy that is read again from its source keeps its annotation.
func TestDenialIsEncoded(t *testing.T) {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p", Annotations: annotated("reject")}}
	e := netpol.Encode(p)
	again, err := e.Source.Read(e.Ref, e.Source.Encoded)
	if err != nil {
		t.Fatal(err)
	}
	twice, err := again.Source.Read(e.Ref, again.Source.Encoded)
	if err != nil {
		t.Fatal(err)
	}
	p.Annotations = nil
	if plain := netpol.Encode(p); plain.Digest == e.Digest {
		t.Error("the digest does not depend on the annotation")
	}
	for _, form := range []*policy.Policy{e.Form, again, twice, netpol.Read(&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Annotations: annotated("reject")}})} {
		if form.Denial != filter.DenialReject {
			t.Errorf("denial %q, want reject", form.Denial)
		}
	}
	if twice.Digest != e.Digest {
		t.Error("the digest changes when the policy is read again")
	}
}
