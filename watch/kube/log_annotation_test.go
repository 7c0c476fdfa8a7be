package kube

import (
	"net/netip"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"

	"sluice/bench/testbed/apiserver"
	"sluice/filter"
	"sluice/filter/policy"
)

// TestLogAnnotations checks that the annotation sluice/log of namespaces and policies comes from the API
// server, and that a change of it comes even if nothing else of the object changes.
func TestLogAnnotations(t *testing.T) {
	s, config := serve(t, apiserver.Options{})
	small(s)
	f := follow(t, config, Options{})
	f.verdict("10.1.0.3", "10.1.0.1", 6379, filter.Deny)
	set := func(level string) map[string]string {
		if level == "" {
			return nil
		}
		return map[string]string{policy.LogAnnotation: level}
	}
	for _, step := range []struct {
		namespace, policy, cluster string
		want, most                 filter.LogLevel // of the denial, and of all annotations
	}{
		{"", "", "", filter.LogNone, filter.LogUnset},
		{"denied", "", "", filter.LogDenied, filter.LogDenied},
		{"denied", "none", "", filter.LogNone, filter.LogDenied},
		{"", "all", "none", filter.LogAll, filter.LogAll},
		{"deny", "allow", "reject", filter.LogNone, filter.LogUnset},
		{"none", "", "all", filter.LogNone, filter.LogAll},
		{"", "", "", filter.LogNone, filter.LogUnset},
	} {
		ns, p := makeNamespace("default", nil), makePolicy("access-db", "frontend")
		ns.Annotations, p.Annotations = set(step.namespace), set(step.policy)
		platform := &v1beta1.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "platform", Annotations: set(step.cluster)}}
		platform.Spec.Tier, platform.Spec.Subject.Namespaces = v1beta1.AdminTier, &metav1.LabelSelector{}
		s.Set(ns, p, platform)
		f.until("the annotations have effect", func(snapshot *policy.Snapshot) bool {
			k := filter.NewKey(netip.MustParseAddr("10.1.0.3"), netip.MustParseAddr("10.1.0.1"), filter.TCP, 6379)
			v := snapshot.Decide(k)
			got := snapshot.Logging().Level(&v, snapshot.Endpoint(k.SrcAddr()), snapshot.Endpoint(k.DstAddr()), filter.LogNone)
			return got == step.want && snapshot.Logging().Most() == step.most
		})
	}
}
