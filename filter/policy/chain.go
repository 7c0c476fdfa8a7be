package policy

import "sluice/filter"

// Tier is the tier of a policy.
type Tier = filter.Tier

// The tiers, in the order in which they are evaluated.
const (
	Admin         = filter.AdminTier
	NetworkPolicy = filter.NetworkPolicyTier
	Baseline      = filter.BaselineTier

	numTiers = filter.NumTiers
)

// Action is what a rule does with a flow that matches it. The zero value denies.
type Action = filter.RuleAction

// The actions.
const (
	Deny   = filter.RuleDenies
	Accept = filter.RuleAccepts
	Pass   = filter.RulePasses
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
	next      *link      // nil for the last link
	table     *rankTable // of rules; nil if they have none
	miss      Action     // applies if no rule matches
	tier      Tier
	effect    Effect // of this link and all that follow
	toNode    Effect // the same for packets from the pod to its node
	// denial is how the rules of this tier deny packets; mixed is set if they differ.
	denial filter.Denial
	mixed  bool
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
	l := link{rules: rules, isolation: isolation, set: set, miss: Pass, tier: set.key.tier}
	if rules.extra != nil {
		l.table = rules.extra.table
	}
	if isolation != nil {
		l.miss, l.denial = Deny, isolation.Denial
	} else if rules != nil {
		denial, uniform := rules.uniformDenial()
		l.denial, l.mixed = denial, !uniform
	}
	l.effect, l.toNode = l.conclude(), l.concludeToNode()
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
	l.effect, l.toNode = l.conclude(), l.concludeToNode()
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

// concludeToNode returns the effect of the chain that begins with l on packets from a pod to
// its node. NetworkPolicies never deny these packets, and a link with NetworkPolicies ends the
// chain.
func (l *link) concludeToNode() Effect {
	switch {
	case l.isolation != nil:
		return Open
	case l.rules.deniesAll():
		return Closed
	case !l.rules.mayDeny() && l.next.effectToNode() == Open:
		return Open
	}
	return Ask
}

// effectToNode returns the effect of a chain on packets to the pod's node. An empty chain is
// open.
func (l *link) effectToNode() Effect {
	if l == nil {
		return Open
	}
	return l.toNode
}

// decision is what a chain decides about a flow.
type decision struct {
	action    Action
	rule      *filter.Rule
	passed    *filter.Rule      // the Admin rule that passed the flow on
	isolation *filter.Isolation // set if the tier that isolates was evaluated
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
			if q.ownNode {
				break // NetworkPolicies never deny what a pod sends to its node
			}
			d.isolation = l.isolation
			rule, pair := l.rules.find(q.key, q.peer, q.addr, q.dst, q.everyone)
			if d.rule, d.pair = rule, d.pair && pair; rule == nil {
				d.action = l.miss
				return d
			}
			d.action = Accept
			return d
		}
		at, pair := l.first(q)
		if d.pair = d.pair && pair; !pair && q.key.Transport == filter.Any {
			return d // denied: the rules differ by port, and a pair is allowed only if all its packets are
		}
		action := l.miss
		if at.rule != nil {
			action = at.action
		}
		switch action {
		case Pass:
			if l.tier == Admin {
				d.passed = at.rule
			} else {
				d.rule = at.rule
			}
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

// first returns the first of the ordered rules of l that matches a flow: see ruleSet.lowest.
func (l *link) first(q *query) (m match, pair bool) {
	if l.table != nil {
		return l.table.first(q)
	}
	return l.rules.lowest(q)
}
