package policy

import "sluice/filter"

// Policies returns the names of the policies of a tier that decide about the endpoint in a
// direction, as verdicts contain them. In the tiers Admin and Baseline, the policies are in the
// order of evaluation, and a policy without a rule that can match is omitted. If NetworkPolicies
// isolate the pod, no policy of the tier Baseline decides about it.
func (e *Endpoint) Policies(d filter.Direction, t Tier) []string {
	for l := e.chain(d); l != nil && e.class.unknown == labelsKnown; l = l.next {
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

// policies appends the names of the rules' policies to names. It appends each name once, because
// the rules of a policy are adjacent.
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
