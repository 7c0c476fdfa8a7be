package policy_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"sluice/filter"
	"sluice/filter/policy"
)

// world builds a store of the cluster from nothing.
func (c *cluster) world() *policy.Store {
	w := policy.NewStore()
	w.SetShape(c.shape)
	w.SetNode(c.Node)
	w.SetLocalNode(localNode)
	w.SetPodRanges(c.Ranges)
	c.into(w)
	return w
}

// disagreement says how a verdict differs from the oracle's judgement; it is
// empty where they agree.
func (j judgement) disagreement(v filter.Verdict) string {
	if v.Action != j.Action || v.Reason != j.reason() {
		return fmt.Sprintf("%s, %s, want %s, %s", v.Action, v.Reason, j.Action, j.reason())
	}
	if j.exempt() {
		if v.Egress != (filter.Side{}) || v.Ingress != (filter.Side{}) {
			return "a side of an exempt flow says something"
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

// reason is the word for the judgement.
func (j judgement) reason() filter.Reason {
	switch {
	case j.SameAddress:
		return filter.SameAddress
	case j.OwnNode:
		return filter.OwnNode
	case !j.Egress.allows():
		return filter.EgressDenied
	case !j.Ingress.allows():
		return filter.IngressDenied
	case len(j.Egress.Isolating)+len(j.Ingress.Isolating) > 0:
		return filter.RuleAllows
	}
	return filter.NotIsolated
}

func (s sideJudgement) disagreement(d filter.Direction, got filter.Side) string {
	switch {
	case got.Isolation == nil:
		if len(s.Isolating) > 0 {
			return fmt.Sprintf("not isolated, want %q", s.Isolating)
		}
	case got.Isolation.Direction != d || !slices.Equal(got.Isolation.Policies, s.Isolating):
		return fmt.Sprintf("isolated by %v, want %q", *got.Isolation, s.Isolating)
	}
	switch {
	case got.Rule == nil:
		if len(s.Allowing) > 0 {
			return fmt.Sprintf("no rule allows, want one of %v", s.Allowing)
		}
	case !slices.Contains(s.Allowing, *got.Rule):
		return fmt.Sprintf("allowed by %v, want one of %v", *got.Rule, s.Allowing)
	}
	return ""
}

// The decisions that TestDecideAgainstOracle makes: so many flows in each of so
// many clusters.
const (
	flowsPerCluster = 250
	clustersFull    = 4_400
	clustersBrief   = 600 // -race or -short
)

// TestDecideAgainstOracle compares over a million random decisions, and then
// makes sure that they were worth making.
func TestDecideAgainstOracle(t *testing.T) {
	clusters := uint64(clustersFull)
	if raceEnabled || testing.Short() {
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

// decideRandomly compares the decisions in the cluster of one seed, and reports
// the first that differs.
func decideRandomly(seed uint64, seen *coverage) string {
	r := newChance(seed)
	c := r.cluster()
	c.shape = int(seed % policy.Shapes)
	w := c.world()
	s, _ := w.Commit()
	seen.noteForms(w.Forms())
	for range flowsPerCluster {
		f := r.flow(c)
		v, want := s.Decide(f.key()), c.judge(f)
		if d := want.disagreement(v); d != "" {
			return fmt.Sprintf("seed %d: %s: %s\noracle: %s\n%s", seed, f.key(), d, want, c.shrunk(f))
		}
		seen.note(c, f, want)
	}
	return ""
}

// shrunk is what is left of the cluster when everything is taken away without
// which engine and oracle still disagree about the flow.
func (c *cluster) shrunk(f flow) *cluster {
	disagree := func(c cluster) bool {
		s, _ := c.world().Commit()
		return c.judge(f).disagreement(s.Decide(f.key())) != ""
	}
	small := *c
	for i := len(small.Policies) - 1; i >= 0; i-- {
		if less := small.withoutPolicy(i); disagree(less) {
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

// TestDecideAllocatesNothing asks about flows of every kind.
func TestDecideAllocatesNothing(t *testing.T) {
	for seed := uint64(1); seed <= 50; seed++ {
		r := newChance(seed)
		c := r.cluster()
		c.shape = int(seed % policy.Shapes)
		s, _ := c.world().Commit()
		for range 100 {
			key := r.flow(c).key()
			if n := testing.AllocsPerRun(10, func() { s.Decide(key) }); n != 0 {
				t.Fatalf("seed %d: %s: %v allocations", seed, key, n)
			}
		}
	}
}
