package policy_test

import (
	"net/netip"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
)

// Decisions about flows to the own node agree with the oracle, and so do the conclusions that
// caches draw from EffectToNode, Pair and JudgesOwnNode.
func TestToNodeAgainstOracle(t *testing.T) {
	node := addrs("192.0.2.77", "2001:db8:77::1")
	count := map[string]int{}
	for seed := range uint64(400) {
		r := newChance(seed + 40_000)
		c := r.tiered()
		c.shape = int(seed % policy.Shapes)
		w := c.store(r)
		w.SetNode(node)
		s, _ := w.Commit()
		for range 20 {
			f := r.flow(c.cluster)
			f.Dst = node[0]
			if f.Src.Is6() {
				f.Dst = node[1]
			}
			if s.Endpoint(f.Src).IsNode() || c.podAt(f.Src) == nil {
				continue
			}
			checkToNode(t, s, c, f, seed, count)
		}
	}
	t.Log(count)
	for _, what := range []string{"allowed", "denied", "open", "closed", "pair", "ask", "not judged"} {
		if count[what] < 20 {
			t.Errorf("only %d flows are %s: the test covers too little", count[what], what)
		}
	}
}

func checkToNode(t *testing.T, s *policy.Snapshot, c *tiered, f flow, seed uint64, count map[string]int) {
	t.Helper()
	e, k := s.Endpoint(f.Src), f.key()
	v, effect := s.Decide(k), e.EffectToNode()
	pair := s.Decide(k.Pair())
	for _, other := range between(f) {
		key := other.key()
		want, _ := c.ownNode(other)
		got := s.Decide(key)
		switch allows := got.Action == filter.Allow; {
		case allows != want:
			t.Fatalf("seed %d: %s is %s, the oracle allows: %t", seed, key, got.Action, want)
		case s.DecideToNode(&key) != got:
			t.Fatalf("seed %d: %s: DecideToNode differs from Decide", seed, key)
		case effect == policy.Open && !want, effect == policy.Closed && want, !s.JudgesOwnNode() && !want:
			t.Fatalf("seed %d: %s: effect %d, judged %t, the oracle allows: %t", seed, key, effect, s.JudgesOwnNode(), want)
		case pair.Action == filter.Allow && !want:
			t.Fatalf("seed %d: the pair of %s is allowed, but %s is not", seed, k, key)
		case v.Pair && pair.Action != v.Action:
			t.Fatalf("seed %d: %s has Pair set, but the pair has another verdict", seed, k)
		case v.Pair && got.Action != v.Action:
			t.Fatalf("seed %d: %s has Pair set, but %s has another verdict", seed, k, key)
		}
	}
	for what, is := range map[string]bool{
		"allowed": v.Action == filter.Allow, "denied": v.Action == filter.Deny, "pair": v.Pair && effect == policy.Ask,
		"open": effect == policy.Open, "closed": effect == policy.Closed, "ask": effect == policy.Ask, "not judged": !s.JudgesOwnNode(),
	} {
		if is {
			count[what]++
		}
	}
}

// A packet to the node whose source is a pod that is not known yet waits only if a policy may
// deny it, and JudgesOwnNode follows the policies.
func TestToNodeOfPendingPod(t *testing.T) {
	w := policy.NewStore()
	w.SetNode(addrs("192.0.2.77"))
	w.SetPodRanges([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")})
	form := &policy.Policy{
		Ref: policy.Ref{Kind: "Ordered", Namespace: "a", Name: "p"}, Tier: policy.Admin,
		Subject: policy.Subject{Namespace: "a", Pods: labels.Everything()},
	}
	k := filter.NewKey(addrs("10.0.0.1")[0], addrs("192.0.2.77")[0], filter.TCP, 80)
	for _, step := range []struct {
		what   string
		rules  []policy.Rule
		judged bool
	}{
		{"no policy", nil, false},
		{"a rule that accepts", []policy.Rule{{Action: policy.Accept}}, false},
		{"a rule that denies", []policy.Rule{{Action: policy.Pass, Ports: []policy.PortRange{{Protocol: filter.TCP, Low: 1, High: 1}}}, {Action: policy.Deny}}, true},
		{"no rule", []policy.Rule{}, false},
		{"a rule of unknown action", []policy.Rule{{Action: 9}}, true},
	} {
		if step.rules != nil {
			form := *form
			form.Rules[filter.Egress] = step.rules
			w.SetPolicy(&form)
		}
		s, _ := w.Commit()
		v := s.Decide(k)
		if final := s.Final(&k, &v, policy.PendingLocal, policy.Known); s.JudgesOwnNode() != step.judged || final == step.judged || v.Action != filter.Allow {
			t.Errorf("%s: judged %t, final %t, %s", step.what, s.JudgesOwnNode(), final, v.Action)
		}
	}
	w.DeletePolicy(form.Ref)
	if s, _ := w.Commit(); s.JudgesOwnNode() {
		t.Error("the policy is gone, and flows to the node are judged")
	}
}
