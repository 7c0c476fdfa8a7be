package policy_test

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"

	"sluice/filter"
	"sluice/filter/policy"
)

// newStore returns a new store with the objects of the cluster.
func (c *cluster) newStore() *policy.Store {
	w := policy.NewStore()
	w.SetShape(c.shape)
	w.SetNode(c.Node)
	w.SetLocalNode(localNode)
	if c.assumed {
		w.AssumeNodeAddrs()
	}
	if c.complete {
		w.RequireNamespaces()
	}
	w.SetPodRanges(c.Ranges)
	c.into(w)
	return w
}

// disagreement describes how a verdict differs from the oracle's. It is empty if they agree.
func (j judgement) disagreement(v filter.Verdict) string {
	switch notKnown := (filter.Verdict{Reason: filter.NamespaceNotKnown, Pair: true}); {
	case j.Unknown && v == notKnown:
		return ""
	case j.Unknown && j.ToNode && j.Action == filter.Allow && v.Reason == filter.OwnNode:
		return "" // no policy can deny what pods send to their node, so its rules were not evaluated
	}
	if v.Action != j.Action || !slices.Contains(j.reasons(), v.Reason) {
		return fmt.Sprintf("%s, %s, want %s, %s", v.Action, v.Reason, j.Action, j.reasons())
	}
	if j.exempt() {
		if v.Egress != (filter.Side{}) || v.Ingress != (filter.Side{}) {
			return "a side of an exempt flow is not empty"
		}
		return ""
	}
	if d := j.Egress.disagreement(filter.Egress, v.Egress); d != "" {
		return "egress: " + d
	}
	if d := j.Ingress.disagreement(filter.Ingress, v.Ingress); d != "" {
		return "ingress: " + d
	}
	return ""
}

// effects describes how the effects of the ends contradict the oracle's verdict. It is empty
// if they do not.
func (j judgement) effects(s *policy.Snapshot, f flow) string {
	if j.exempt() || j.ToNode {
		return ""
	}
	for d, side := range []sideJudgement{filter.Egress: j.Egress, filter.Ingress: j.Ingress} {
		e := s.Endpoint([]netip.Addr{filter.Egress: f.Src, filter.Ingress: f.Dst}[d])
		effect := e.Effect(filter.Direction(d))
		if effect == policy.Open && !side.allows() || effect == policy.Closed && side.allows() {
			return fmt.Sprintf("the effect for %s is %d", filter.Direction(d), effect)
		}
	}
	return ""
}

// reason returns the reason that the engine must give.
func (j judgement) reason() filter.Reason { return j.reasons()[0] }

// reasons returns the reasons that the engine may give. If a ClusterNetworkPolicy has rules for
// a pod, but none matches, the engine may give NotDenied or NotIsolated: it drops rules that
// cannot match, and gives NotIsolated if none is left.
func (j judgement) reasons() []filter.Reason {
	none := filter.NotIsolated
	if j.ToNode {
		none = filter.OwnNode
	}
	switch decided := len(j.Egress.Isolating)+len(j.Ingress.Isolating) > 0 || j.Egress.Ordered != nil || j.Ingress.Ordered != nil; {
	case j.SameAddress:
		return []filter.Reason{filter.SameAddress}
	case j.FromNode:
		return []filter.Reason{filter.OwnNode}
	case !j.Egress.allows():
		return []filter.Reason{filter.EgressDenied}
	case !j.Ingress.allows():
		return []filter.Reason{filter.IngressDenied}
	case decided:
		return []filter.Reason{filter.RuleAllows}
	case !j.ToNode && (j.Egress.Concerned || j.Ingress.Concerned):
		return []filter.Reason{filter.NotDenied, none}
	}
	return []filter.Reason{none}
}

// withoutDenial returns the rule without its Denial, which the oracle does not know.
func withoutDenial(r *filter.Rule) *filter.Rule {
	if r == nil {
		return nil
	}
	rule := *r
	rule.Denial = filter.DenialUnset
	return &rule
}

func (s sideJudgement) disagreement(d filter.Direction, got filter.Side) string {
	got.Rule, got.Passed = withoutDenial(got.Rule), withoutDenial(got.Passed)
	switch {
	case got.Isolation == nil:
		if len(s.Isolating) > 0 {
			return fmt.Sprintf("not isolated, want %q", s.Isolating)
		}
	case got.Isolation.Direction != d || !slices.Equal(got.Isolation.Policies, s.Isolating):
		return fmt.Sprintf("isolated by %v, want %q", *got.Isolation, s.Isolating)
	}
	if ruleText(got.Passed) != ruleText(s.Passed) {
		return fmt.Sprintf("passed by %s, want %s", ruleText(got.Passed), ruleText(s.Passed))
	}
	switch {
	case s.Ordered != nil:
		if got.Rule == nil || *got.Rule != *s.Ordered {
			return fmt.Sprintf("decided by %s, want %s", ruleText(got.Rule), ruleText(s.Ordered))
		}
	case got.Rule == nil:
		if len(s.Allowing) > 0 {
			return fmt.Sprintf("no rule allows, want one of %v", s.Allowing)
		}
	case !slices.Contains(s.Allowing, *got.Rule):
		return fmt.Sprintf("allowed by %v, want one of %v", *got.Rule, s.Allowing)
	}
	return ""
}

// The numbers of clusters, and of decisions in each, that TestDecideAgainstOracle compares.
const (
	flowsPerCluster = 250
	clustersFull    = 9_000 // with SLUICE_FULL_TEST: a million decisions in clusters with ClusterNetworkPolicies
	clustersUsual   = 2_400
	clustersBrief   = 600 // with -race or -short
)

// TestDecideAgainstOracle compares random decisions with the oracle, and checks that they
// reached all kinds of rules and verdicts. Half of the clusters have up to eight
// ClusterNetworkPolicies.
func TestDecideAgainstOracle(t *testing.T) {
	clusters := uint64(clustersUsual)
	switch {
	case os.Getenv("SLUICE_FULL_TEST") != "":
		clusters = clustersFull
	case raceEnabled || testing.Short():
		clusters = clustersBrief
	}
	var mu sync.Mutex
	all := newCoverage()
	inParallel(clusters, func(seed uint64) bool {
		seen := newCoverage()
		if failure := decideRandomly(seed, seen); failure != "" {
			t.Error(failure)
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		all.add(seen)
		return true
	})
	if !t.Failed() {
		all.check(t, int(clusters)*flowsPerCluster)
	}
}

// decideRandomly compares decisions in the cluster of one seed with the oracle. It returns a
// description of the first difference, or "".
func decideRandomly(seed uint64, seen *coverage) string {
	r := newChance(seed)
	c := r.cluster()
	c.shape, c.complete = int(seed%policy.Shapes), r.oneIn(4)
	w := c.newStore()
	s, _ := w.Commit()
	seen.countForms(w.Forms())
	for range flowsPerCluster {
		f := r.flow(c)
		v, want := s.Decide(f.key()), c.judge(f)
		if d := want.disagreement(v); d != "" {
			return fmt.Sprintf("seed %d: %s: %s\noracle: %s\n%s", seed, f.key(), d, want, c.shrunk(f))
		}
		if d := want.effects(s, f); d != "" {
			return fmt.Sprintf("seed %d: %s: %s\noracle: %s\n%s", seed, f.key(), d, want, c)
		}
		seen.count(c, f, want)
	}
	return ""
}

// shrunk returns a smaller cluster about which engine and oracle still disagree: it removes
// the policies and pods that do not matter to the flow.
func (c *cluster) shrunk(f flow) *cluster {
	disagree := func(c cluster) bool {
		s, _ := c.newStore().Commit()
		return c.judge(f).disagreement(s.Decide(f.key())) != ""
	}
	small := *c
	for i := len(small.Policies) - 1; i >= 0; i-- {
		if less := small.withoutPolicy(i); disagree(less) {
			small = less
		}
	}
	for i := len(small.Cluster) - 1; i >= 0; i-- {
		less := small
		less.Cluster = slices.Delete(slices.Clone(small.Cluster), i, i+1)
		if disagree(less) {
			small = less
		}
	}
	for i := len(small.Nodes) - 1; i >= 0; i-- {
		less := small
		less.Nodes = slices.Delete(slices.Clone(small.Nodes), i, i+1)
		if disagree(less) {
			small = less
		}
	}
	for i := len(small.Pods) - 1; i >= 0; i-- {
		if less := small.withoutPod(i); disagree(less) {
			small = less
		}
	}
	return &small
}

func (c cluster) withoutPolicy(i int) cluster {
	c.Policies = slices.Delete(slices.Clone(c.Policies), i, i+1)
	return c
}

func (c cluster) withoutPod(i int) cluster {
	c.Pods = slices.Delete(slices.Clone(c.Pods), i, i+1)
	return c
}

// Decide allocates no memory for any kind of flow.
func TestDecideAllocatesNothing(t *testing.T) {
	for seed := uint64(1); seed <= 50; seed++ {
		r := newChance(seed)
		c := r.cluster()
		c.shape, c.complete = int(seed%policy.Shapes), r.oneIn(4)
		s, _ := c.newStore().Commit()
		for range 100 {
			key := r.flow(c).key()
			if n := testing.AllocsPerRun(10, func() { s.Decide(key) }); n != 0 {
				t.Fatalf("seed %d: %s: %v allocations", seed, key, n)
			}
		}
	}
}
