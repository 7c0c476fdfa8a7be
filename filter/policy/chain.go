package policy

import (
	"fmt"

	"sluice/filter"
)

// Tier is a stage of a decision. The tiers are asked in their order, until one decides.
type Tier uint8

// The tiers.
const (
	_ Tier = iota // a policy that no reader has given a tier is malformed
	// Admin policies decide by their first rule that matches.
	Admin
	// NetworkPolicy policies isolate: what none of their rules accepts is denied.
	NetworkPolicy
	// Baseline policies decide as Admin policies do, for pods that are not isolated.
	Baseline

	numTiers
)

// String is the tier in the spelling of messages.
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

// Effect is what caches may conclude about the packets of an endpoint in a direction
// without asking, but for what goes to or comes from its node or itself.
type Effect uint8

// The effects. The zero value concludes nothing.
const (
	Ask    Effect = iota
	Open          // no packet is denied
	Closed        // every packet is denied
)

// link is one tier of a chain: what the policies of the tier decide for a pod in one
// direction, and the tier that is asked next. A pod that policies of no tier select has no
// link. What follows a tier that isolates is never asked, and is left out.
type link struct {
	rules     *ruleSet
	isolation *filter.Isolation // the policies, if the tier isolates; nil for ordered rules
	set       *policySet
	next      *link // nil for the last
	miss      Action
	effect    Effect // of this link and all that follow
}

// same reports whether two chains ask the same policies.
func (l *link) same(o *link) bool {
	for ; l != o; l, o = l.next, o.next {
		if l == nil || o == nil || l.set != o.set {
			return false
		}
	}
	return true
}

// isolating returns the policies that isolate; nil if none do.
func (l *link) isolating() *filter.Isolation {
	for ; l != nil; l = l.next {
		if l.isolation != nil {
			return l.isolation
		}
	}
	return nil
}

// newSetLink returns the link of policies that no other tier follows.
func newSetLink(set *policySet, rules *ruleSet, isolation *filter.Isolation) link {
	l := link{rules: rules, isolation: isolation, set: set, miss: Pass}
	if isolation != nil {
		l.miss = Deny
	}
	l.effect = l.conclude()
	return l
}

// newLink puts policies before the next tier. The link of policies that nothing follows is
// shared by all pods that they select.
func newLink(set *policySet, next *link) *link {
	if next == nil {
		return &set.alone
	}
	l := set.alone
	l.next = next
	l.effect = l.conclude()
	return &l
}

// conclude returns what may be concluded without asking.
func (l *link) conclude() Effect {
	switch {
	case l.isolation != nil && l.rules.none(), l.rules.deniesAll():
		return Closed
	case l.isolation == nil && !l.rules.mayDeny() && l.next.effectOf() == Open:
		return Open
	}
	return Ask
}

// effectOf is the effect of a chain, which may be nil.
func (l *link) effectOf() Effect {
	if l == nil {
		return Open
	}
	return l.effect
}

// decision is what a chain decides about a flow.
type decision struct {
	action    Action
	rule      *filter.Rule
	isolation *filter.Isolation // if the tier that isolates was asked
	pair      bool              // it is the same for all flows between the two
	// unknown reports an action that decide does not know, which it denies.
	unknown bool
}

// decide asks the tiers of a chain that begins with ordered rules.
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
	d.action = Accept // no tier denies
	return d
}
