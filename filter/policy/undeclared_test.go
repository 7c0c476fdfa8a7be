package policy_test

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// The store may give the id of a deleted namespace to a new one. The selectors that matched the
// deleted namespace do not match the new one, even if the API has no Namespace object for it.
func TestNamespaceThatNothingNames(t *testing.T) {
	podIn := func(namespace, name, addr string) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
			Status:     corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: addr}}},
		}
	}
	w := policy.NewStore()
	w.SetPod(kubepod.Read(podIn("guarded", "db", "10.0.0.1")))
	w.SetNamespace("friend", map[string]string{"friend": "yes"})
	w.SetPolicy(netpol.Read(&networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "guarded", Name: "friends"},
		Spec: networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{{
			From: []networkingv1.NetworkPolicyPeer{{
				NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"friend": "yes"}},
			}},
		}}},
	}))
	w.SetPod(kubepod.Read(podIn("friend", "web", "10.0.0.2")))
	key := filter.NewKey(netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.1"), filter.TCP, 80)
	s, _ := w.Commit()
	if v := s.Decide(key); v.Action != filter.Allow {
		t.Errorf("from the namespace that the policy selects: %v, %v", v.Action, v.Reason)
	}
	w.DeletePod("friend", "web")
	w.DeleteNamespace("friend")
	w.Commit()
	w.SetPod(kubepod.Read(podIn("stranger", "web", "10.0.0.2")))
	s, _ = w.Commit()
	if v := s.Decide(key); v.Action != filter.Deny {
		t.Errorf("from a namespace that no policy selects: %v, %v", v.Action, v.Reason)
	}
}
