package kube

import (
	"net/netip"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/filter/policy"
)

// The policy store uses the node of a pod, and whether the pod is being deleted, to decide
// which of several pods has an address. Slim pods contain both.
func TestPodsOfThisNodeKeepTheirAddress(t *testing.T) {
	d, w := testDecoder(t), policy.NewStore()
	w.SetLocalNode("here")
	near, far := makePod("near", "10.1.0.1", nil), makePod("far", "10.1.0.1", nil)
	near.Spec.NodeName, far.Spec.NodeName = "here", "there"
	far.CreationTimestamp = metav1.Unix(1800000000, 0)
	decodeInto(t, d, near, w)
	decodeInto(t, d, far, w)
	owner := func() string {
		s, _ := w.Commit()
		return s.Endpoint(netip.MustParseAddr("10.1.0.1")).String()
	}
	if got := owner(); got != "default/far" {
		t.Errorf("without ranges the address belongs to %s", got)
	}
	w.SetPodRanges([]netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")})
	if got := owner(); got != "default/near" {
		t.Errorf("in this node's ranges the address belongs to %s", got)
	}
	if c := w.Clashes(); len(c) != 1 || c[0].Pods() != "default/near, default/far" {
		t.Errorf("clashes %v", c)
	}
	far.DeletionTimestamp = &metav1.Time{}
	decodeInto(t, d, far, w)
	if w.Commit(); len(w.Clashes()) != 0 {
		t.Errorf("clashes with a pod that is being deleted: %v", w.Clashes())
	}
}
