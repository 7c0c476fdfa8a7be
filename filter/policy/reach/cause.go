package reach

import (
	"fmt"
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/policy"
)

// State states whether a policy differs between the old and the new cluster.
type State uint8

// The states.
const (
	Same State = iota
	Added
	Removed
	Changed
)

// String returns the state as in text and JSON.
func (s State) String() string {
	return [...]string{Same: "unchanged", Added: "added", Removed: "removed", Changed: "changed"}[s]
}

// Role is what a policy does, or did, to the flows of a change.
type Role uint8

// The roles. AllowedThem and DeniedThem are about the old cluster: the policy does so no longer.
const (
	Allows      Role = iota // one of its rules allows the flows
	Denies                  // one of its rules denies the flows
	Isolates                // it isolates the pods, and no rule of any policy allows the flows
	AllowedThem             // one of its rules allowed the flows
	DeniedThem              // one of its rules denied the flows, or it isolated the pods
)

// String returns the role as in JSON.
func (r Role) String() string {
	return [...]string{Allows: "allows", Denies: "denies", Isolates: "isolates", AllowedThem: "allowed", DeniedThem: "denied"}[r]
}

// Cause is a policy that causes a change.
type Cause struct {
	Policy    string // its title: see [filter.PolicyTitle]
	Tier      filter.Tier
	Direction filter.Direction
	Role      Role
	State     State
	Rule      int    // index of the rule that has the role; -1 if the policy has it by isolating pods
	RuleName  string // empty if the rule has none
	// NewEnd reports that one of the parties is new. The policy may then be unchanged.
	NewEnd bool
}

// String returns the cause as in text: "pci/allow-web ingress rule 1 (added)".
func (c Cause) String() string {
	text := c.Policy
	if c.Rule >= 0 && c.State != Removed {
		if c.Tier == policy.NetworkPolicy {
			text += " " + c.Direction.String()
		}
		text += fmt.Sprintf(" rule %d", c.Rule+1)
		if c.RuleName != "" {
			text += fmt.Sprintf(" %q", c.RuleName)
		}
	}
	switch {
	case c.State != Same:
		return text + " (" + c.State.String() + ")"
	case c.NewEnd:
		return text
	}
	return text + " (" + [...]string{
		Allows: "matches now", Denies: "matches now", Isolates: "selects it now",
		AllowedThem: "no longer matches", DeniedThem: "no longer applies",
	}[c.Role] + ")"
}

// PolicyState is a policy with its state.
type PolicyState struct {
	Policy string // its title
	State  State
	// Namespace is that of the policy; empty for a ClusterNetworkPolicy.
	Namespace string
}

// statesOf returns the state of each policy, by name, and a list of the policies that are not Same.
func statesOf(before, after []*policy.Policy) (states map[string]State, differ []PolicyState) {
	states = make(map[string]State)
	olds := make(map[string]*policy.Policy)
	for _, p := range before {
		olds[p.Ref.String()], states[p.Ref.String()] = p, Removed
	}
	for _, p := range after {
		name := p.Ref.String()
		switch o := olds[name]; {
		case o == nil:
			states[name] = Added
		case samePolicy(o, p):
			states[name] = Same
		default:
			states[name] = Changed
		}
	}
	seen := make(map[string]bool)
	for _, p := range slices.Concat(after, before) {
		if name := p.Ref.String(); states[name] != Same && !seen[name] {
			seen[name] = true
			differ = append(differ, PolicyState{filter.PolicyTitle(p.Tier, name), states[name], p.Ref.Namespace})
		}
	}
	slices.SortFunc(differ, func(a, b PolicyState) int { return strings.Compare(a.Policy, b.Policy) })
	return states, differ
}

// samePolicy reports whether two versions of a policy decide every flow in the same way.
func samePolicy(a, b *policy.Policy) bool {
	return a.Digest == b.Digest && a.Digest != [32]byte{} || textOf(a) == textOf(b)
}

// textOf returns all that affects the decisions of a policy, as text.
func textOf(p *policy.Policy) string {
	var b strings.Builder
	fmt.Fprint(&b, p.Tier, p.Priority, p.Isolates, p.Denial, p.Subject, len(p.Problems))
	for d := range p.Rules {
		for _, r := range p.Rules[d] {
			fmt.Fprint(&b, "\n", d, r.Name, r.Action, r.Ports)
			for _, peer := range r.Peers {
				if peer.Block != nil {
					fmt.Fprint(&b, *peer.Block)
					peer.Block = nil
				}
				fmt.Fprint(&b, peer)
			}
		}
	}
	return b.String()
}

// opening returns the causes of a flow that opens. For each side that denied the flow, these are the
// rule that allows it now, or the policies that denied it before. A verdict is nil if the cluster has
// no such flow, or if policies do not decide about it.
func (c *comparison) opening(was, now *filter.Verdict) (causes []Cause) {
	if now == nil {
		return nil
	}
	for _, d := range []filter.Direction{filter.Egress, filter.Ingress} {
		n := sideOf(now, d)
		switch {
		case was == nil && n.Rule != nil:
			cause := c.ruleCause(n.Rule, Allows)
			cause.NewEnd = true
			causes = append(causes, cause)
		case was != nil && !sideOf(was, d).Allows():
			causes = append(causes, c.allowedNow(sideOf(was, d), n)...)
		}
	}
	return causes
}

// allowedNow returns the causes for which a side allows a flow that it denied before.
func (c *comparison) allowedNow(was, now filter.Side) []Cause {
	var denied, allows []Cause
	if was.Rule != nil {
		denied = append(denied, c.ruleCause(was.Rule, DeniedThem))
	} else {
		denied = c.isolation(was.Isolation, DeniedThem)
	}
	if now.Rule != nil {
		allows = append(allows, c.ruleCause(now.Rule, Allows))
	}
	return mostLikely(allows, denied)
}

// closing returns the causes of a flow that closes. For each side that denies the flow now, these are
// the policies that deny it, or the rule that no longer allows it.
func (c *comparison) closing(was, now *filter.Verdict) (causes []Cause) {
	if was == nil || now == nil {
		return nil
	}
	for _, d := range []filter.Direction{filter.Egress, filter.Ingress} {
		w, n := sideOf(was, d), sideOf(now, d)
		if n.Allows() {
			continue
		}
		var denies, allowed []Cause
		if n.Rule != nil {
			denies = append(denies, c.ruleCause(n.Rule, Denies))
		} else {
			denies = c.isolation(n.Isolation, Isolates)
		}
		if w.Rule != nil {
			allowed = append(allowed, c.ruleCause(w.Rule, AllowedThem))
		}
		if n.Rule == nil && w.Rule != nil {
			causes = append(causes, mostLikely(allowed, denies)...)
			continue
		}
		causes = append(causes, mostLikely(denies, allowed)...)
	}
	return causes
}

// mostLikely returns the causes in first whose policies were added, removed or changed; if there are
// none, those in second. If all policies are unchanged, the pods or their namespaces must have
// changed, and mostLikely returns the first list that is not empty.
func mostLikely(first, second []Cause) []Cause {
	for _, list := range [][]Cause{first, second} {
		if i := slices.DeleteFunc(slices.Clone(list), func(c Cause) bool { return c.State == Same }); len(i) > 0 {
			return i
		}
	}
	if len(first) > 0 {
		return first
	}
	return second
}

func sideOf(v *filter.Verdict, d filter.Direction) filter.Side {
	if d == filter.Egress {
		return v.Egress
	}
	return v.Ingress
}

func (c *comparison) ruleCause(r *filter.Rule, role Role) Cause {
	return Cause{Policy: r.PolicyTitle(), Tier: r.Tier, Direction: r.Direction, Role: role, State: c.states[r.Policy], Rule: r.Index, RuleName: r.Name}
}

// isolation returns the policies that isolate a pod, as causes.
func (c *comparison) isolation(i *filter.Isolation, role Role) (causes []Cause) {
	if i == nil {
		return nil
	}
	for _, name := range i.Policies {
		causes = append(causes, Cause{Policy: name, Tier: policy.NetworkPolicy, Direction: i.Direction, Role: role, State: c.states[name], Rule: -1})
	}
	return causes
}
