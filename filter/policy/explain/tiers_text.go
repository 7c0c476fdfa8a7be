package explain

import (
	"fmt"
	"strings"

	"sluice/filter"
	"sluice/filter/policy"
)

// writeTiers writes which tier decides, and then what each tier did, in order.
func (s *Side) writeTiers(b *strings.Builder) {
	switch t := s.decider(); {
	case t == nil:
		fmt.Fprintln(b, "allowed, because no tier denies it")
	case t.Result == Denied:
		fmt.Fprintf(b, "denied by the tier %s\n", t.Tier)
	default:
		fmt.Fprintf(b, "allowed by the tier %s\n", t.Tier)
	}
	for i := range s.Tiers {
		s.writeStep(b, &s.Tiers[i])
	}
	s.writeProblems(b)
}

// writeStep writes what one tier did. If it denies the flow, the nearest rules follow.
func (s *Side) writeStep(b *strings.Builder, t *Step) {
	fmt.Fprintf(b, "    %s: ", t.Tier)
	titles := make([]string, len(t.Policies))
	for i, p := range t.Policies {
		titles[i] = filter.PolicyTitle(t.Tier, p)
	}
	names := policyList(titles, 8, t.others)
	switch {
	case t.OwnNode:
		fmt.Fprintln(b, "does not apply to the pod's own node")
	case t.Result == NotEvaluated:
		fmt.Fprintf(b, "not evaluated (%s)\n", names)
	case len(titles) == 0 && !t.others:
		fmt.Fprintln(b, "no policy selects it")
	case t.Tier == policy.NetworkPolicy:
		fmt.Fprintf(b, "isolated by %s", names)
		if t.Rule != nil {
			fmt.Fprintf(b, "\n      %s allows it: %s\n", ruleTitle(&t.Rule.Rule), t.Rule.matches())
			return
		}
		fmt.Fprintln(b, "; no rule allows it")
	case t.Rule == nil:
		fmt.Fprintf(b, "no rule of %s matches\n", names)
	default:
		fmt.Fprintf(b, "%s by %s: %s\n", participle[string(t.Result)], ruleTitle(&t.Rule.Rule), t.Rule.matches())
	}
	if t.Result != Denied {
		return
	}
	s.writeNearest(b, "      ")
	if s.Late != nil {
		verb := map[policy.Action]string{policy.Accept: "allows", policy.Pass: "passes"}[s.Late.Rule.Action]
		fmt.Fprintf(b, "      %s %s it, but comes later\n", ruleTitle(&s.Late.Rule), verb)
	}
}
