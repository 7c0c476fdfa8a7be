package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
)

func testPrefixes(texts ...string) (all []netip.Prefix) {
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// While some policy may deny what pods send to their node, there are two kinds of sources: the
// ranges of this node's pods; and, outside these ranges, the addresses of pods that such a policy
// selects. A list that is updated after each change equals a list that is built at once.
func TestNodeSources(t *testing.T) {
	w := policy.NewStore()
	node, elsewhere := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	var n nodeSources
	step := func(what string, starting []netip.Prefix, want ...string) {
		t.Helper()
		s, changes := w.Commit()
		got := n.update(s, changes, starting)
		if !slices.Equal(got, testPrefixes(want...)) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
		var again nodeSources
		if fresh := again.update(s, nil, starting); !slices.Equal(got, fresh) {
			t.Errorf("%s: %v, but from the beginning %v", what, got, fresh)
		}
	}
	pod := func(name, app string, host netip.Addr, addrs ...string) {
		p := &policy.Pod{Namespace: "a", Name: name, Labels: map[string]string{"app": app}}
		if host.IsValid() {
			p.Hosts = []netip.Addr{host}
		}
		for _, a := range addrs {
			p.Addrs = append(p.Addrs, netip.MustParseAddr(a))
		}
		w.SetPod(p)
	}
	deny := func(app string) {
		selector := labels.SelectorFromSet(labels.Set{"app": app})
		w.SetPolicy(&policy.Policy{
			Ref: policy.Ref{Kind: "Ordered", Namespace: "a", Name: "p"}, Tier: policy.Admin, Subject: policy.Subject{Namespace: "a", Pods: selector},
			Rules: [2][]policy.Rule{filter.Egress: {{Action: policy.Deny}}},
		})
	}
	w.SetNode([]netip.Addr{node})
	pod("x", "x", node, "10.0.0.1", "fd00::1")
	pod("y", "y", node, "10.0.0.2")
	pod("far", "x", elsewhere, "10.0.9.1")
	step("no policy", nil)
	deny("x")
	step("a policy", nil, "10.0.0.1/32", "fd00::1/128")
	deny("y")
	step("for another pod", nil, "10.0.0.2/32")
	deny("none")
	step("for none", nil)
	step("for none, and a pod starts", testPrefixes("10.0.0.7/32"), "10.0.0.7/32")
	step("a route of a pod without policy", testPrefixes("10.0.0.1/32"))
	deny("x")
	w.SetPodRanges(testPrefixes("10.0.0.0/24"))
	step("a range", testPrefixes("10.0.0.9/32"), "10.0.0.0/24", "fd00::1/128")
	w.SetNode([]netip.Addr{elsewhere})
	step("another node", nil, "10.0.0.0/24", "10.0.9.1/32")
	w.DeletePolicy(policy.Ref{Kind: "Ordered", Namespace: "a", Name: "p"})
	step("no policy again", nil)
	w.SetPodRanges(nil)
	deny("x")
	w.SetNode([]netip.Addr{node})
	for i := range 40 {
		pod(fmt.Sprint("many", i), "x", node, fmt.Sprintf("10.1.0.%d", 2*i), fmt.Sprintf("fd00::1:%x", i))
	}
	s, changes := w.Commit()
	got := n.update(s, changes, nil)
	covers := func(a string) bool {
		return slices.ContainsFunc(got, func(p netip.Prefix) bool { return p.Contains(netip.MustParseAddr(a)) })
	}
	if len(got) > 2*maxNodeSources || !covers("10.1.0.78") || !covers("fd00::1:27") || !covers("10.0.0.1") || covers("192.0.2.1") {
		t.Errorf("many pods: %v", got)
	}
}

// When a policy is set that may deny what pods send to their node, the agent adds the jump from
// INPUT. When the policy is deleted, the agent removes the jump.
func TestJudgeOwnNodeStage(t *testing.T) {
	f := newFixture(t)
	f.start()
	jumps := func() bool { return strings.Contains(f.iptables.Dump(), "-A INPUT -j SLUICE-INPUT\n") }
	set := func(w *policy.Store) {
		w.SetPod(&policy.Pod{Namespace: "a", Name: "x", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}})
		w.SetPolicy(&policy.Policy{
			Ref: policy.Ref{Kind: "Ordered", Namespace: "a", Name: "p"}, Tier: policy.Admin, Subject: policy.Subject{Namespace: "a", Pods: labels.Everything()},
			Rules: [2][]policy.Rule{filter.Egress: {{Action: policy.Deny}}},
		})
	}
	if jumps() {
		t.Error("a jump without a policy")
	}
	f.update(set)
	f.until("the jump is there", jumps)
	f.update(func(w *policy.Store) { w.DeletePolicy(policy.Ref{Kind: "Ordered", Namespace: "a", Name: "p"}) })
	f.until("the jump is gone", func() bool { return !jumps() })
}
