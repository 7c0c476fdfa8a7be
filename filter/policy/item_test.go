package policy_test

import (
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// A port name that the API server would refuse allows nothing, even if a container declares
// it, and is reported as a problem with a hint.
func TestNamesOfPorts(t *testing.T) {
	tests := map[string]string{ // maps a port name to a part of the hint; "" for a valid name
		"http": "", "a": "", "80a": "", "a-1": "", "fifteen-letters": "",
		"80": "port: 80", "8000": "port: 8000", "80-90": "port: 80 and endPort: 90",
		"": "the number", "0": "the number", "99999": "the number", "8 0": "the number", "HTTP": "the number", "a--b": "the number",
		"-a": "the number", "a-": "the number", "a_b": "the number", "sixteen-letters-": "the number", "sixteen-letters1": "the number", "é": "the number",
	}
	for name, hint := range tests {
		t.Run(name, func(t *testing.T) {
			port := intstr.FromString(name)
			w := policy.NewStore()
			w.SetPod(kubepod.Read(&corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p"},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: name, ContainerPort: 80}}}}},
				Status:     corev1.PodStatus{PodIP: "10.0.0.1"},
			}))
			w.SetPolicy(netpol.Read(&networkingv1.NetworkPolicy{
				ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "n"},
				Spec: networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{{
					Ports: []networkingv1.NetworkPolicyPort{{Port: &port}},
				}}},
			}))
			s, _ := w.Commit()
			v := s.Decide(filter.NewKey(netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("10.0.0.1"), filter.TCP, 80))
			if allowed := v.Action == filter.Allow; allowed != (hint == "") {
				t.Errorf("allowed: %v", allowed)
			}
			problems := w.Problems()
			if (len(problems) == 0) != (hint == "") || len(problems) > 1 {
				t.Fatalf("problems %v", problems)
			}
			if len(problems) == 1 && (problems[0].Field != "spec.ingress[0].ports[0].port" || !strings.Contains(problems[0].Hint, hint)) {
				t.Errorf("%v; want %q in the hint", problems[0], hint)
			}
		})
	}
}
