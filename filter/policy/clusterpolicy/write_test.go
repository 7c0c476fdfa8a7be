package clusterpolicy_test

import (
	"testing"

	"sigs.k8s.io/network-policy-api/apis/v1beta1"

	"sluice/filter"
	"sluice/filter/policy/clusterpolicy"
)

// A rule that WriteRule has written is read as the same rule.
func TestWriteRule(t *testing.T) {
	for _, spec := range []string{
		"ingress: [{name: x, action: Accept, from: [{pods: {namespaceSelector: {matchLabels: {a: b}}, podSelector: {matchExpressions: [{key: c, operator: NotIn, values: [d, e]}]}}}]}]",
		"ingress: [{action: Deny, from: [{pods: {namespaceSelector: {}, podSelector: {}}}], protocols: [{tcp: {destinationPort: {number: 80}}}, {udp: {destinationPort: {range: {start: 1, end: 9}}}}, {sctp: {destinationPort: {number: 7}}}]}]",
		"egress: [{action: Pass, to: [{networks: [10.0.0.0/8, '2001:db8::/32']}, {pods: {namespaceSelector: {}, podSelector: {matchLabels: {a: b}}}}]}]",
	} {
		p := clusterpolicy.Read(object(t, rulesHead+spec))
		again := object(t, rulesHead)
		d := filter.Ingress
		if len(p.Rules[filter.Egress]) > 0 {
			d = filter.Egress
		}
		switch r := clusterpolicy.WriteRule(d, p.Rules[d][0]).(type) {
		case v1beta1.ClusterNetworkPolicyIngressRule:
			again.Spec.Ingress = append(again.Spec.Ingress, r)
		case v1beta1.ClusterNetworkPolicyEgressRule:
			again.Spec.Egress = append(again.Spec.Egress, r)
		}
		q := clusterpolicy.Read(again)
		if len(p.Problems)+len(q.Problems) > 0 {
			t.Fatalf("problems %v, %v", p.Problems, q.Problems)
		}
		if got, want := text(q.Rules[d][0]), text(p.Rules[d][0]); got != want {
			t.Errorf("rule is %s\nwant    %s", got, want)
		}
	}
}
