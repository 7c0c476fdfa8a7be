package lint_test

import (
	"fmt"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/bench/testbed/cluster"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/lint"
	"sluice/filter/policy/netpol"
)

// BenchmarkCheck lints generated clusters: as they are, and with a policy in each namespace that denies
// all egress, which makes nearly every rule one-sided.
func BenchmarkCheck(b *testing.B) {
	for _, size := range []cluster.Options{{Pods: 300, Policies: 90, Namespaces: 3}, {Pods: 1400, Policies: 600, Namespaces: 20}} {
		for _, denied := range []bool{false, true} {
			b.Run(fmt.Sprintf("pods=%d,policies=%d,denied=%v", size.Pods, size.Policies, denied), func(b *testing.B) {
				c := cluster.New(1, size)
				if denied {
					for _, n := range c.Namespaces {
						c.Policies = append(c.Policies, &networkingv1.NetworkPolicy{
							ObjectMeta: metav1.ObjectMeta{Namespace: n.Name, Name: "deny"},
							Spec:       networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}},
						})
					}
				}
				o := inventory.Objects{Namespaces: c.Namespaces, Pods: kubepod.ReadAll(c.Pods), Policies: netpol.ReadAll(c.Policies)}
				v := inventory.New(o)
				for b.Loop() {
					b.ReportMetric(float64(len(lint.Check(v))), "findings")
				}
			})
		}
	}
}
