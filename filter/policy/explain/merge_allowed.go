package explain

import (
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/policy"
)

// mergeAllowed joins explanations of flows that the same rules allow, although different policies
// isolate the pods. If each app of a namespace has a policy, a question about all pods of the namespace
// then has one answer, instead of one per app. Only text output uses it: JSON names the policies of
// each pod.
func mergeAllowed(all []Explanation) []Explanation {
	alike := func(a, b *Explanation) bool {
		return a.rank() == b.rank() && a.Verdict.Action == filter.Allow && len(a.Depends)+len(b.Depends) == 0 && a.samePort(b) && a.allowedBy() == b.allowedBy()
	}
	all = joinCommon(all, func(a, b *Explanation) bool { return slices.Equal(a.tos(), b.tos()) && alike(a, b) })
	return joinCommon(all, func(a, b *Explanation) bool { return slices.Equal(a.froms(), b.froms()) && alike(a, b) })
}

// joinCommon joins explanations that are alike, and keeps only the policies that they have in common.
func joinCommon(all []Explanation, alike func(a, b *Explanation) bool) (joined []Explanation) {
next:
	for _, e := range all {
		for i := range joined {
			if j := &joined[i]; alike(j, &e) && j.join(&e) {
				j.Egress.keepCommon(&e.Egress)
				j.Ingress.keepCommon(&e.Ingress)
				continue next
			}
		}
		joined = append(joined, e)
	}
	return joined
}

// allowedBy returns the text of the reasons without the policies that only isolate the pods or were not
// evaluated: these do not matter to an allowed flow.
func (e *Explanation) allowedBy() string {
	bare := *e
	bare.Egress, bare.Ingress = e.Egress.withoutIsolation(), e.Ingress.withoutIsolation()
	var b strings.Builder
	bare.writeReasons(&b, "", "")
	return b.String()
}

func (s Side) withoutIsolation() Side {
	if len(s.Policies) > 0 {
		s.Policies, s.others = nil, true
	}
	s.Tiers = slices.Clone(s.Tiers)
	for i := range s.Tiers {
		if t := &s.Tiers[i]; t.isolates() {
			t.Policies, t.others = nil, true
		}
	}
	return s
}

// isolates reports whether the policies of the step do not matter to an allowed flow: they only
// isolate, or were not evaluated.
func (s *Step) isolates() bool {
	return len(s.Policies) > 0 && (s.Result == NotEvaluated || s.Tier == policy.NetworkPolicy)
}

// keepCommon keeps only the policies that both sides have.
func (s *Side) keepCommon(o *Side) {
	s.Policies, s.others = common(s.Policies, o.Policies, s.others || o.others)
	s.Tiers = slices.Clone(s.Tiers)
	for i := range s.Tiers {
		t, u := &s.Tiers[i], &o.Tiers[i] // explanations that are alike have the same tiers
		t.Policies, t.others = common(t.Policies, u.Policies, t.others || u.others)
	}
}

// common returns the names that are in both lists. more reports whether some of the pods have others.
func common(a, b []string, others bool) (both []string, more bool) {
	for _, name := range a {
		if slices.Contains(b, name) {
			both = append(both, name)
		}
	}
	return both, others || len(both) < max(len(a), len(b))
}
