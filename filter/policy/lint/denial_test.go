package lint

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/netpol"
)

// Values of the annotation sluice/deny-with that are not known are findings.
func TestDenyWith(t *testing.T) {
	for value, want := range map[string]int{"reject": 0, "drop": 0, "Reject": 2, "": 2} {
		meta := metav1.ObjectMeta{Name: "shop", Annotations: map[string]string{policy.DenyWithAnnotation: value}}
		p := &networkingv1.NetworkPolicy{ObjectMeta: meta}
		p.Namespace = "shop"
		found := Check(inventory.New(inventory.Objects{Namespaces: []*corev1.Namespace{{ObjectMeta: meta}}, Policies: []*policy.Policy{netpol.Read(p)}}))
		n := 0
		for _, f := range found {
			if f.Check == DenyWith {
				n++
				if f.Field != `metadata.annotations["sluice/deny-with"]` || f.Hint == "" {
					t.Errorf("%q: %v", value, f)
				}
			}
		}
		if n != want || n != len(found) {
			t.Errorf("%q: %v, want %d", value, found, want)
		}
	}
}
