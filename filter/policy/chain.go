package policy

import (
	"fmt"

	"sluice/filter"
)

// Tier is a stage of a decision. Tiers are evaluated in order, until one decides.
type Tier uint8

// The tiers.
const (
	_ Tier = iota // a policy without a tier is malformed
	// Admin policies decide by their first rule that matches.
	Admin
	// NetworkPolicy policies isolate their pods: flows that no rule accepts are denied.
	NetworkPolicy
	// Baseline policies also decide by their first rule that matches, but only for pods that
	// no NetworkPolicy isolates.
	Baseline

	numTiers
)

// String returns the name of the tier, as in messages.
func (t Tier) String() string {
	switch t {
	case Admin:
		return "Admin"
	case NetworkPolicy:
		return "NetworkPolicy"
	case Baseline:
		return "Baseline"
	}
	return fmt.Sprintf("tier %d", uint8(t))
}

// Action is what a rule does with a flow that matches it. The zero value denies.
type Action uint8

// The actions.
const (
	Deny Action = iota
	Accept
	// Pass leaves the flow to the next tier.
	Pass
)

// Effect summarizes the decisions about all packets of an endpoint in one direction: a cache
// may use it instead of asking for each decision. It does not apply to packets between the
// endpoint and its node, or from the endpoint to itself.
type Effect uint8

// The effects.
const (
	Ask    Effect = iota // each packet needs a decision
	Open                 // no packet is denied
	Closed               // every packet is denied
)

// link is an element of a chain: the rules of one tier for a pod in one direction, and the
// next tier. A chain contains only tiers whose policies select the pod. A tier that isolates
// the pod is always the last link, because it decides every flow. A nil link is an empty chain.
type link struct {
	rules     *ruleSet
	isolation *filter.Isolation // the policies that isolate the pod, if this tier isolates; nil if the rules are ordered
	set       *policySet
	next      *link  // nil for the last link
	miss      Action // the action for a flow that no rule of this link matches
	effect    Effect // the effect of the chain that begins with this link
}

// same reports whether two chains consist of the same policy sets.
func (l *link) same(o *link) bool {
	for ; l != o; l, o = l.next, o.next {
		if l == nil || o == nil || l.set != o.set {
			return false
		}
	}
	return true
}

// findIsolation returns the policies of the chain that isolate its pods; nil if no policy
// does.
func (l *link) findIsolation() *filter.Isolation {
	for ; l != nil; l = l.next {
		if l.isolation != nil {
			return l.isolation
		}
	}
	return nil
}

// newSetLink returns the link of a policy set that ends a chain. All chains that end with this
// policy set share it.
func newSetLink(set *policySet, rules *ruleSet, isolation *filter.Isolation) link {
	l := link{rules: rules, isolation: isolation, set: set, miss: Pass}
	if isolation != nil {
		l.miss = Deny
	}
	l.effect = l.conclude()
	return l
}

// newLink returns a link of a policy set; "next" is the link that follows it in the chain. If
// that is nil, newLink returns the link that all pods of the set share.
func newLink(set *policySet, next *link) *link {
	if next == nil {
		return &set.alone
	}
	l := set.alone
	l.next = next
	l.effect = l.conclude()
	return &l
}

// conclude returns the effect of the chain that begins with l.
func (l *link) conclude() Effect {
	switch {
	case l.isolation != nil && l.rules.none(), l.rules.deniesAll():
		return Closed
	case l.isolation == nil && !l.rules.mayDeny() && l.next.effectOf() == Open:
		return Open
	}
	return Ask
}

// effectOf returns the effect of a chain. An empty chain is open.
func (l *link) effectOf() Effect {
	if l == nil {
		return Open
	}
	return l.effect
}

// decision is the decision of a chain about a flow.
type decision struct {
	action    Action
	rule      *filter.Rule
	isolation *filter.Isolation // the policies that isolate the pod; nil if their tier was not evaluated
	pair      bool              // the decision is the same for all flows between the two addresses
	// unknown is set if the rule has an action that decide() does not know. decide() treats
	// such an action as Deny.
	unknown bool
}

// decide evaluates the tiers of a chain that begins with ordered rules.
func (l *link) decide(q *query) (d decision) {
	d.pair = true
	for ; l != nil; l = l.next {
		if l.isolation != nil {
			d.isolation = l.isolation
			rule, pair := l.rules.find(q.key, q.peer, q.addr, q.dst, q.everyone)
			if d.rule, d.pair = rule, d.pair && pair; rule == nil {
				d.action = l.miss
				return d
			}
			d.action = Accept
			return d
		}
		at, pair := l.rules.lowest(q)
		d.pair = d.pair && pair
		action := l.miss
		if at.rule != nil {
			action = at.action
		}
		switch action {
		case Pass:
			continue
		case Accept, Deny:
			d.action, d.rule = action, at.rule
		default:
			d.action, d.rule, d.unknown = Deny, at.rule, true
		}
		return d
	}
	d.action = Accept // no tier has decided
	return d
}
