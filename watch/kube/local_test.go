package kube

import (
	"log/slog"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/filter/policy"
	"sluice/watch"
)

// What the API tells of nodes reaches the World: which pods run here, and in which
// ranges they have their addresses.
func TestPodsOfThisNodeKeepTheirAddress(t *testing.T) {
	d, w := testDecoder(t), policy.NewWorld()
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
		t.Errorf("without ranges the address is %s's", got)
	}
	nodes := newNodes("here", new(watch.Ranges), slog.New(slog.DiscardHandler))
	for name, cidr := range map[string]string{"here": "10.1.0.0/24", "there": "10.1.1.0/24"} {
		n := trimNode(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: []string{cidr}}})
		nodes.set(n)
		n.put(w)
	}
	if got := owner(); got != "default/near" {
		t.Errorf("in this node's ranges the address is %s's", got)
	}
	if c := w.Clashes(); len(c) != 1 || c[0].Pods() != "default/near, default/far" {
		t.Errorf("clashes %v", c)
	}
	far.DeletionTimestamp = &metav1.Time{}
	decodeInto(t, d, far, w)
	if w.Commit(); len(w.Clashes()) != 0 {
		t.Errorf("with one that is being deleted: %v", w.Clashes())
	}
}
