package policy_test

import (
	"net/netip"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter/policy"
)

// The description of a pod follows changes of the pod, even of labels that no policy selects. In that
// case the verdicts about the pod stay valid.
func TestDescriptionFollows(t *testing.T) {
	w := policy.NewStore()
	addr := netip.MustParseAddr("10.0.0.1")
	set := func(set labels.Set, owner policy.Ref) (*policy.Endpoint, policy.Changes) {
		w.SetPod(&policy.Pod{Namespace: "shop", Name: "web-1", Addrs: []netip.Addr{addr}, Labels: set, Owner: owner, Node: "n1"})
		s, changes := w.Commit()
		return s.Endpoint(addr), changes
	}
	web, next := policy.Ref{Kind: "Deployment", Namespace: "shop", Name: "web"}, policy.Ref{Kind: "Deployment", Namespace: "shop", Name: "next"}
	first, _ := set(labels.Set{"app": "web"}, web)
	for _, step := range []struct {
		labels labels.Set
		owner  policy.Ref
	}{{labels.Set{"app": "web", "seen": "yes"}, web}, {labels.Set{"app": "web", "seen": "yes"}, next}, {labels.Set{"app": "web"}, web}} {
		e, changes := set(step.labels, step.owner)
		if !labels.Equals(e.Labels(), step.labels) || e.Workload() != step.owner || e.NodeName() != "n1" {
			t.Errorf("%v, %v on %s, want %+v on n1", e.Labels(), e.Workload(), e.NodeName(), step)
		}
		if e.Epoch() != first.Epoch() || len(changes) != 0 {
			t.Errorf("%+v: epoch %d after %d, %d changed addresses", step, e.Epoch(), first.Epoch(), len(changes))
		}
	}
	if _, changes := set(labels.Set{"app": "web"}, web); len(changes) != 0 {
		t.Errorf("%d changed addresses, although nothing has changed", len(changes))
	}
	var none *policy.Endpoint
	if none.Labels() != nil || none.Workload() != (policy.Ref{}) || none.NodeName() != "" {
		t.Error("an address outside the cluster has a description")
	}
}

// Pods with the same labels and the same workload share their description.
func TestDescriptionIsShared(t *testing.T) {
	w := policy.NewStore()
	addrs := []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")}
	for i, name := range []string{"web-1", "web-2"} {
		w.SetPod(&policy.Pod{Namespace: "shop", Name: name, Addrs: addrs[i : i+1], Labels: labels.Set{"app": "web"}, Owner: policy.Ref{Kind: "Deployment", Namespace: "shop", Name: "web"}})
	}
	s, _ := w.Commit()
	a, b := s.Endpoint(addrs[0]).Labels(), s.Endpoint(addrs[1]).Labels()
	if a["shared"] = "yes"; b["shared"] != "yes" {
		t.Error("two equal pods have labels of their own")
	}
}
