package explain_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/filter/policy"
	"sluice/filter/policy/explain"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// A policy that is refused for its size has no rules to name or to extend. The answer says
// that the policy is too large.
func TestTooLargePolicy(t *testing.T) {
	one := policyOf(t, "big", `{podSelector: {}, ingress: [{ports: [{port: 6379}]}]}`)
	many := one.DeepCopy()
	for i := range 50 {
		rule := *one.Spec.Ingress[0].DeepCopy()
		rule.Ports[0].Port.IntVal = int32(1000 + i)
		many.Spec.Ingress = append(many.Spec.Ingress, rule)
	}
	small := policyOf(t, "small", `{podSelector: {}, policyTypes: [Ingress]}`)
	tooLarge := "    default/big is too large and allows nothing: compiled it would take "
	for name, tt := range map[string]struct {
		limits   policy.Limits
		policies []*networkingv1.NetworkPolicy
		want     []string
	}{
		"only one":       {policy.Limits{Policy: 4 << 10}, []*networkingv1.NetworkPolicy{many}, []string{tooLarge, "to allow the ingress: shrink NetworkPolicy default/big: split it"}},
		"beside another": {policy.Limits{Policy: 4 << 10}, []*networkingv1.NetworkPolicy{many, small}, []string{tooLarge, "default/small has no ingress rule", "to allow the ingress: apply this NetworkPolicy", "\n      podSelector:\n        matchLabels:\n          app: db\n"}},
		"of all":         {policy.Limits{Policies: 4 << 10}, []*networkingv1.NetworkPolicy{many}, []string{tooLarge, "shrink NetworkPolicy default/big: make fewer or smaller policies"}},
	} {
		t.Run(name, func(t *testing.T) {
			all := ask(t, limited(t, tt.limits, tt.policies), question("web db tcp 6379"))
			text := explain.Text(all)
			for _, want := range tt.want {
				if !strings.Contains(text, want) {
					t.Errorf("the text does not contain %q:\n%s", want, text)
				}
			}
			for _, wrong := range []string{"default/big rule", "default/big has no ingress rule", "not understood", "of NetworkPolicy default/big"} {
				if strings.Contains(text, wrong) {
					t.Errorf("the text contains %q:\n%s", wrong, text)
				}
			}
			if near := all[0].Ingress.Nearest; len(near) > 0 {
				t.Errorf("the answer names the rules %v of a policy that is not in force", near)
			}
			a := explain.NewAnswer(explain.Question{}, all)
			if d := a.Ingress.Details; slices.Contains(d.Empty, "default/big") || len(d.Problems) != 1 {
				t.Errorf("in JSON: %+v", d)
			}
		})
	}
}

func policyOf(t *testing.T, name, spec string) *networkingv1.NetworkPolicy {
	t.Helper()
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	decode(t, spec, &p.Spec)
	return p
}

// limited returns a cluster of two pods and some policies, with the given limits.
func limited(t *testing.T, l policy.Limits, policies []*networkingv1.NetworkPolicy) *explain.Cluster {
	t.Helper()
	o := inventory.Objects{Policies: netpol.ReadAll(policies), Limits: &l}
	for i, name := range []string{"db", "web"} {
		o.Pods = append(o.Pods, kubepod.Read(podOf(t, name, fmt.Sprintf("10.0.0.%d", i+1))))
	}
	v := inventory.New(o)
	return explain.New(v, v.Problems)
}

func podOf(t *testing.T, name, addr string) *corev1.Pod {
	t.Helper()
	return decode(t, fmt.Sprintf("{metadata: {namespace: default, name: %s, labels: {app: %[1]s}}, status: {podIPs: [{ip: %s}]}}", name, addr), &corev1.Pod{})
}
