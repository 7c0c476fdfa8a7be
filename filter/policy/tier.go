package policy

import "sluice/filter"

// Policies returns the policies of a tier that decide about the endpoint in a direction, as
// verdicts name them. Those of ordered rules come in their order, and only if they have a
// rule that can match. Those of the tier Baseline do not decide about a pod that others
// isolate.
func (e *Endpoint) Policies(d filter.Direction, t Tier) []string {
	for l := e.chain(d); l != nil; l = l.next {
		switch {
		case l.set.key.tier != t:
		case l.isolation != nil:
			return l.isolation.Policies
		default:
			return l.rules.policies(nil)
		}
	}
	return nil
}

// policies appends the policies of ordered rules to names. Each comes once, because the rules
// are in the order of their policies.
func (r *ruleSet) policies(names []string) []string {
	if r.extra == nil {
		return names // the rules are not ordered
	}
	for i := range r.extra.ranks {
		if name := r.extra.ranks[i].rule.Policy; len(names) == 0 || names[len(names)-1] != name {
			names = append(names, name)
		}
	}
	for _, part := range r.parts() {
		names = part.policies(names)
	}
	return names
}
