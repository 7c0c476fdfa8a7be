package engine_test

import (
	"net/netip"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/cache"
	"sluice/filter"
	"sluice/filter/engine"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
)

// While the Namespace of a pod is not known and policies depend on its labels, packets of the pod
// are held at both hooks, whether or not its address is in the pod ranges. No verdict about them is
// remembered.
func TestEvaluateHoldsForUnknownNamespaces(t *testing.T) {
	w := policy.NewStore()
	w.RequireNamespaces()
	w.SetNode([]netip.Addr{netip.MustParseAddr("192.0.2.1")})
	w.SetNamespace("default", nil)
	w.SetPod(kubepod.Read(pod("web", "10.1.0.1", nil)))
	late := pod("late", "10.1.0.2", nil)
	late.Namespace = "late"
	w.SetPod(kubepod.Read(late))
	w.SetPolicy(&policy.Policy{
		Ref: policy.Ref{Kind: "ClusterNetworkPolicy", Name: "p"}, Tier: policy.Admin,
		Subject: policy.Subject{Namespaces: labels.SelectorFromSet(labels.Set{"env": "test"}), Pods: labels.Everything()},
		Rules:   [2][]policy.Rule{filter.Egress: {{Action: policy.Deny}}},
	})
	var published policy.Published
	publish := func() { s, _ := w.Commit(); published.Publish(s) }
	publish()
	const web, unknown, node, group, outside = "10.1.0.1", "10.1.0.2", "192.0.2.1", "224.0.0.251", "198.51.100.1"
	var said seen
	r := new(recorder)
	flows := []struct {
		src, dst    string
		at          filter.Hook
		known, test string // with the namespace, without and with the label
	}{
		{unknown, web, filter.AtPostrouting, "allow, not-isolated", "deny, egress-denied"},
		{web, unknown, filter.AtPostrouting, "allow, not-isolated", "allow, not-isolated"},
		{outside, unknown, filter.AtPostrouting, "allow, not-isolated", "allow, not-isolated"},
		{unknown, node, filter.AtInput, "allow, own-node", "deny, egress-denied"},
		{unknown, group, filter.AtInput, "allow, own-node", "deny, egress-denied"},
	}
	for _, open := range []bool{false, true} {
		e := engine.New(engine.Config{Published: &published, Observer: &said, Memory: r, Tracker: r, FailOpen: open}, cache.NewFlows(16))
		e.Enter()
		for _, f := range flows {
			said, *r = nil, recorder{}
			data := datagram(key(f.src, f.dst, 80))
			for range 2 { // the second verdict is from the flow cache
				if action, pending := e.Evaluate(data, f.at); action != filter.Hold || pending.String() != unknown || len(said) > 0 {
					t.Errorf("%s > %s: %v for %v, and observed %q", f.src, f.dst, action, pending, said)
				}
			}
			if len(r.remembered) > 0 || len(r.tracked) > 0 {
				t.Errorf("%s > %s: remembered %q, tracked %q", f.src, f.dst, r.remembered, r.tracked)
			}
			want := map[bool]string{false: "deny, namespace-not-known", true: "allow, pod-not-known"}[open]
			if e.Expire(data, f.at, true); len(said) != 1 || !strings.HasSuffix(said[0], ": "+want) {
				t.Errorf("%s > %s expired: observed %q, want %s", f.src, f.dst, said, want)
			}
		}
		e.Exit()
		e.Close()
	}
	e := engine.New(engine.Config{Published: &published, Observer: &said}, cache.NewFlows(16))
	for _, set := range []labels.Set{nil, {"env": "test"}} {
		w.SetNamespace("late", set)
		publish()
		e.Enter()
		for _, f := range flows {
			want := map[bool]string{true: f.known, false: f.test}[set == nil]
			said = nil
			if e.Evaluate(datagram(key(f.src, f.dst, 80)), f.at); len(said) != 1 || !strings.HasSuffix(said[0], ": "+want) {
				t.Errorf("%s > %s, labels %v: observed %q, want %s", f.src, f.dst, set, said, want)
			}
		}
		e.Exit()
	}
}
