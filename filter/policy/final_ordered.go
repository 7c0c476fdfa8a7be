package policy

import (
	"slices"

	"sluice/filter"
)

// orderedOutcome is the method "outcome" for an end whose chain begins with ordered rules, and
// whose peer is pending. Ordered rules may deny a pod by its labels although they allow it while
// its labels are not known.
func (s *Snapshot) orderedOutcome(k *filter.Key, d filter.Direction, side *filter.Side, e *Endpoint) outcome {
	now := side.Allows()
	switch {
	case e.chain(d).mayDiffer(s, k, d, e, now):
		return depends
	case now:
		return always
	}
	return never
}

// mayDiffer reports whether the chain may decide differently about a flow once its pending peer
// is known. own is the endpoint that the chain belongs to. allows reports whether the chain
// allows the flow while the peer is not known.
func (l *link) mayDiffer(s *Snapshot, k *filter.Key, d filter.Direction, own *Endpoint, allows bool) bool {
	q := query{key: k, addr: k.DstAddr(), everyone: s.everyone}
	if d == filter.Ingress {
		q.addr, q.dst = k.SrcAddr(), own
	}
	for ; l != nil; l = l.next {
		if l.isolation != nil {
			// NetworkPolicies that allow an address allow every pod that may have it.
			return !allows && l.rules.mayAllow(k, d, own.class.ports)
		}
		found, differs := l.rules.mayDiffer(&q, d, allows)
		if differs || found.rule != nil && found.action != Pass {
			return differs
		}
	}
	return false
}

// mayDiffer reports whether ordered rules may decide otherwise about a flow once its pending
// peer is known. found is the rule that matches the flow now, while the peer is not known.
func (r *ruleSet) mayDiffer(q *query, d filter.Direction, allows bool) (found match, differs bool) {
	if r.peers == nil {
		for _, part := range r.parts() {
			if found, differs = part.mayDiffer(q, d, allows); differs || found.rule != nil {
				return found, differs
			}
		}
		return match{}, false
	}
	found, _ = r.lowest(q)
	x := contrary{ranks: r.extra.ranks, before: noRule, action: Accept}
	if allows {
		x.action = Deny
	}
	if found.rule != nil {
		isFound := func(o rank) bool { return o.rule == found.rule }
		x.before, x.passes = uint32(slices.IndexFunc(r.extra.ranks, isFound)), found.action != Pass
	}
	return found, r.hasContraryAt(q.key, &x) || q.key.Transport == filter.Ported && r.hasContraryNamed(q, d, &x)
}

// hasContraryAt reports whether a rule for all ports, or for the number of the flow's port, is
// contrary (see contrary) and names pods by labels.
func (r *ruleSet) hasContraryAt(k *filter.Key, x *contrary) bool {
	if r.extra.table != nil {
		return r.extra.table.hasContrary(k, x)
	}
	if r.portless.hasContrary(x, false) {
		return true
	}
	if k.Transport != filter.Ported {
		return false
	}
	table := portTableOf(k.Protocol)
	t, tree := &r.ports[table], &r.extra.trees[table]
	if t.all.hasContrary(x, false) || t.at(k.Port).hasContrary(x, false) {
		return true
	}
	for node := tree.leaf(k.Port); node > 0; node /= 2 {
		if tree.sets[node].hasContrary(x, false) {
			return true
		}
	}
	return false
}

// hasContraryNamed reports whether a rule with a named port that may be the flow's port is
// contrary (see contrary).
func (r *ruleSet) hasContraryNamed(q *query, d filter.Direction, x *contrary) bool {
	k := q.key
	if d == filter.Egress { // the destination, which defines the names, is not known
		for name, set := range r.named {
			if name.protocol == k.Protocol && set.hasContrary(x, true) {
				return true
			}
		}
		return false
	}
	for i := range q.dst.class.ports {
		np := &q.dst.class.ports[i]
		if np.number == k.Port && np.protocol == k.Protocol && r.named[portName{np.name, np.protocol}].hasContrary(x, false) {
			return true
		}
	}
	return false
}

// hasContrary reports whether the row of a flow has a contrary rule that names pods by labels. The
// row has only the first rule of each selector: later rules of a selector never decide about the
// pods that it matches.
func (t *rankTable) hasContrary(k *filter.Key, x *contrary) bool {
	row := t.rows[t.rowOf(k)*t.width:][:t.width-1] // without the last column, of the rules for every peer
	return slices.ContainsFunc(row, func(r ranks) bool { return r.atPort != noRank && x.is(uint32(r.atPort>>rankShift)) })
}

// contrary describes the rules that would change the decision about a flow if its pending peer
// turned out to match them.
type contrary struct {
	ranks  []rank
	before uint32 // rank of the rule that matches now; only earlier rules are contrary
	action Action // a rule with this action is contrary
	passes bool   // a rule with the action Pass is contrary too
}

func (x *contrary) is(rule uint32) bool {
	if rule >= x.before {
		return false
	}
	action := x.ranks[rule].action
	return action == x.action || x.passes && action == Pass
}

// hasContrary reports whether the set has a contrary rule that names pods by labels or, with
// anyPeer, any contrary rule.
func (s *peerSet) hasContrary(x *contrary, anyPeer bool) bool {
	switch {
	case s == nil:
		return false
	case slices.ContainsFunc(s.peers, func(p peerRule) bool { return x.is(p.rule) }):
		return true
	case anyPeer && (x.is(s.everyone) || slices.ContainsFunc(s.blocks, func(b blockRange) bool { return x.is(b.rule) })):
		return true
	}
	return s.more != nil && slices.ContainsFunc(s.more.list, func(o *peerSet) bool { return o.hasContrary(x, anyPeer) })
}
