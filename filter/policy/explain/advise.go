package explain

import (
	"slices"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
)

// Effects are the side effects of changes: what changes, apart from the flows that they are meant to
// allow.
type Effects struct {
	// Opens lists all other flows that the changes would allow.
	Opens []Opening
	// Isolates lists pods that no policy isolates in this direction now, but that a new policy would
	// isolate: all their other flows would be denied.
	Isolates []*policy.Pod

	sizes map[policy.Ref]int // the number of pods of each workload that Opens names
	// own are the flows from nodes to their own pods at the ports of the changes; these always pass. If
	// the changes let a node reach all other pods of a workload, own completes them to all pods of the
	// workload.
	own []Opening
}

// none reports whether the changes have no side effects.
func (e *Effects) none() bool { return len(e.Opens) == 0 && len(e.Isolates) == 0 }

// better reports whether e has fewer effects than the effects than. Isolating a pod counts as the worst
// effect, because it denies flows.
func (e *Effects) better(than *Effects) bool {
	if a, b := len(e.Isolates), len(than.Isolates); a != b {
		return a < b
	}
	return len(e.Opens) < len(than.Opens)
}

// Opening is a set of flows from one end to another that changes would allow.
type Opening struct {
	From, To *End
	Family   string             // "IPv4" or "IPv6"
	Ports    []policy.PortRange // ICMP, with the ports 0 to 0, stands for all protocols without ports
	// Depends reports that the flows are allowed only for some of the addresses that an end may have.
	Depends bool
}

// Advise computes the side effects of the changes in an explanation, and replaces a change by a
// narrower one that has fewer. It does nothing if a change that is needed cannot be written as a
// policy.
func (c *Cluster) Advise(e *Explanation) {
	changes := e.changes()
	if len(changes) == 0 || slices.ContainsFunc(changes, func(c *Change) bool { return !c.Written() }) {
		return
	}
	best := c.effects(e, changes)
	for i := range changes {
		for _, other := range c.narrower(e, changes[i]) {
			if best.none() {
				break
			}
			tried := slices.Clone(changes)
			tried[i] = other
			if effects := c.effects(e, tried); effects.better(best) {
				best, changes = effects, tried
			}
		}
	}
	e.Effects = best
	for _, ch := range changes {
		e.side(ch.Direction).Change = ch
	}
}

// changes returns the changes of the denying sides.
func (e *Explanation) changes() (all []*Change) {
	for _, s := range []*Side{&e.Egress, &e.Ingress} {
		if s.Change != nil {
			all = append(all, s.Change)
		}
	}
	return all
}

func (e *Explanation) side(d filter.Direction) *Side {
	if d == filter.Egress {
		return &e.Egress
	}
	return &e.Ingress
}

// narrower returns other changes for the same flows that may allow less: a rule of its own, and a
// policy of its own.
func (c *Cluster) narrower(e *Explanation, ch *Change) (all []*Change) {
	if ch.New != nil || ch.Before != nil {
		return nil
	}
	s := e.side(ch.Direction)
	rule := c.newRule(s, e.Flow, ch.Policy.String(), nil)
	for _, o := range []*Change{rule, c.newPolicy(s, e.Flow)} {
		if !o.Written() {
			continue
		}
		if peers := ch.Rule.Peers; len(peers) > 0 && peers[0].Block != nil {
			o = o.withPeers(peers) // if the change is for several ends, peers has the blocks of all of them
		}
		all = append(all, o)
	}
	return all
}

// effects applies the changes to a copy of the inventory, and compares the flows before and after.
func (c *Cluster) effects(e *Explanation, changes []*Change) *Effects {
	x := comparison{before: c, asked: e.flows(), found: make(map[pairKey]int), own: make(map[pairKey]int)}
	after := inventory.New(c.changed(changes))
	x.after = New(after, nil)
	x.from, x.to = after.Everything(false), after.Everything(true)
	for _, ch := range changes {
		x.compare(ch)
	}
	x.effects.sizes = make(map[policy.Ref]int)
	for _, o := range x.effects.Opens {
		for _, end := range []*End{o.From, o.To} {
			if end.Workload != (policy.Ref{}) {
				x.effects.sizes[end.Workload] = running(after.PodsOf(end.Workload))
			}
		}
	}
	return &x.effects
}

// running counts the pods that have not ended.
func running(pods []*policy.Pod) (n int) {
	for _, p := range pods {
		if p.Ended == "" {
			n++
		}
	}
	return n
}

// changed returns the objects of the inventory with the changes applied.
func (c *Cluster) changed(changes []*Change) inventory.Objects {
	o := c.inventory.Objects
	o.Policies = slices.Clone(o.Policies)
	for _, ch := range changes {
		if ch.New != nil {
			o.Policies = append(o.Policies, ch.New)
			continue
		}
		i := slices.IndexFunc(o.Policies, func(p *policy.Policy) bool { return p.Ref == ch.Policy })
		p := *o.Policies[i]
		p.Digest, p.Source = [32]byte{}, policy.Source{} // they describe the policy before the change
		p.Rules[ch.Direction] = ch.apply(p.Rules[ch.Direction])
		o.Policies[i] = &p
	}
	return o
}

// apply returns the rules with the change applied.
func (c *Change) apply(rules []policy.Rule) []policy.Rule {
	rules = slices.Clone(rules)
	switch {
	case c.Before != nil:
		return slices.Insert(rules, c.Before.Index, c.Rule)
	case c.To == nil:
		return append(rules, c.Rule)
	}
	r := &rules[c.To.Index]
	r.Peers = slices.Concat(r.Peers, c.Rule.Peers)
	r.Ports = slices.Concat(r.Ports, c.Rule.Ports)
	return rules
}
