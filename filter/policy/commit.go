package policy

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"sluice/filter"
)

// Changes lists the addresses with an endpoint, now or in the previous snapshot, for which verdicts
// may differ from those of the previous snapshot: the owner of the address is new, is gone, or has a
// new epoch, or the address has another ID. Snapshot.PrefixChanges returns by which prefixes the IDs of
// all other addresses have changed.
type Changes []netip.Addr

// Commit compiles what has changed since the last Commit and returns a new snapshot.
// Earlier snapshots stay as they are. If nothing has changed, the new snapshot differs from
// the last one only in its number.
func (w *Store) Commit() (*Snapshot, Changes) {
	ranges := w.commitRanges() // first, because addresses depend on the ranges
	w.renewNodes()
	w.renewHosts()
	w.balance()
	w.undefer()
	w.commitUnknown()
	w.match()
	for _, p := range w.dirtyPods {
		p.due &^= toCompile
		w.commitPod(p)
	}
	for _, k := range w.compiled {
		// The field "recent" is not counted as a reference to the class. Clear it, because the
		// class may be released after this Commit.
		k.recent = nil
	}
	w.compiled = w.compiled[:0]
	changes := w.commitAddrs()
	// The map and the lists are replaced rather than cleared, because a map never shrinks:
	// after the first Commit, dirtyAddrs would stay as large as the cluster, and each later
	// Commit would take as long to clear it.
	w.dirtyPods, w.dirtyAddrs, w.touched = nil, make(map[netip.Addr]struct{}), nil
	w.due = false
	w.lastNumber++
	deleted, removed := w.takeDeleted()
	return &Snapshot{
		number:    w.lastNumber,
		deleted:   deleted,
		removed:   removed,
		changed:   w.takeChanged(),
		digest:    w.versions.digest,
		logging:   w.logs.commit(),
		table:     w.table,
		prefixes:  w.prefixes.table,
		everyone:  w.everyone,
		byLabels:  w.unknowns.policies > 0,
		toNode:    w.toNode > 0,
		mayReject: w.denial == filter.DenialReject || w.rejecting > 0,
		ranges:    ranges,
		nodes:     w.nodes.commit(),
		starting:  w.ranges.live,
		counts: Counts{
			Namespaces: len(w.namespaces), Pods: len(w.pods), Policies: len(w.policies),
			Endpoints: w.table.size, Classes: len(w.classes), PolicySets: len(w.policySets), Tiers: w.tiers,
			Prefixes: w.prefixes.table.ids.Size(), IDs: len(w.kinds),
		},
	}, changes
}

// takeDeleted returns the policies that were deleted since the last Commit and not set again: removed has
// their references, and names the names that verdicts use for them.
func (w *Store) takeDeleted() (names []string, removed []Ref) {
	for _, ref := range w.deleted {
		if w.policies[ref] == nil {
			names, removed = append(names, ref.String()), append(removed, ref)
		}
	}
	w.deleted = nil
	return names, removed
}

// commitPod compiles a pod's endpoint. The endpoint gets a new epoch in two cases: the
// policies that select the pod, its ports or its node's addresses have changed; or the pod
// has new labels, and other peer selectors match them. If a new policy only has a rule that
// names the pod as a peer, the pod keeps its epoch: the pods that the policy selects get new
// ones.
func (w *Store) commitPod(p *pod) {
	old := p.endpoint
	if p.gone {
		if old != nil {
			w.releaseClass(old.class)
			p.endpoint = nil
		}
		return
	}
	c := w.classOf(p)
	keeps := old != nil && !p.due.has(toRenew) && old.host.same(p.host) &&
		old.class.sameChains(c) && old.class.rejects == c.rejects && slices.Equal(old.class.ports, c.ports) &&
		!(p.due.has(relabeled) && !old.class.peers.equal(&c.peers))
	p.due &^= toRenew | relabeled | reselected
	if keeps && old.class == c && old.about == p.about {
		w.releaseClass(c) // classOf has counted a reference, but the endpoint already has one
		return
	}
	e := &Endpoint{Namespace: p.namespace, Name: p.name, class: c, host: p.host, about: p.about}
	if keeps {
		e.epoch = old.epoch
	} else {
		e.epoch = w.newEpoch()
	}
	if old != nil {
		w.releaseClass(old.class)
	}
	p.endpoint = e
	w.touched = append(w.touched, p)
}

func (w *Store) newEpoch() uint64 {
	w.lastEpoch++
	return w.lastEpoch
}

// classOf returns the class of a pod, and increments the class's reference count.
func (w *Store) classOf(p *pod) *class {
	if c := p.identity.recent; c != nil && slices.Equal(c.ports, p.ports) {
		c.refs++
		p.ports = c.ports
		return c
	}
	c := w.classFor(p)
	if p.identity.recent == nil {
		w.compiled = append(w.compiled, p.identity)
	}
	p.identity.recent = c
	return c
}

func (w *Store) classFor(p *pod) *class {
	sets := w.policySetsOf(p)

	rejects, key := w.rejects(p.identity.ns), make([]byte, 1)
	if rejects {
		key[0] = 1
	}
	key[0] |= byte(p.identity.ns.unknown) << 1
	key = binary.AppendUvarint(key, uint64(p.identity.ns.version))
	for d := range sets {
		for _, set := range sets[d][Admin:] {
			key = binary.AppendUvarint(key, set.number())
		}
	}
	for _, sum := range p.identity.sum {
		key = binary.LittleEndian.AppendUint64(key, sum)
	}
	for _, np := range p.ports {
		key = append(key, np.name...)
		key = append(key, 0, byte(np.protocol), byte(np.number>>8), byte(np.number))
	}
	c := w.classes[string(key)]
	if c != nil {
		c.refs++
		for d := range sets {
			for _, set := range sets[d] {
				w.releasePolicySet(set) // policySetsOf has counted a reference, but c already has one
			}
		}
		p.ports = c.ports // the lists are equal: keep only one of them
		return c
	}
	c = &class{key: string(key), refs: 1, namespace: p.identity.ns.id, rejects: rejects, unknown: p.identity.ns.unknown, peers: p.identity.peers, chains: sets.chains(), ports: p.ports}
	w.classes[c.key] = c
	return c
}

func (w *Store) releaseClass(c *class) {
	if c.refs--; c.refs > 0 {
		return
	}
	delete(w.classes, c.key)
	for _, l := range c.chains {
		for ; l != nil; l = l.next {
			w.releasePolicySet(l.set)
		}
	}
}

// sameChains reports whether the same policies decide for two classes.
func (c *class) sameChains(o *class) bool {
	return c.chains[filter.Egress].same(o.chains[filter.Egress]) && c.chains[filter.Ingress].same(o.chains[filter.Ingress])
}

// policySets holds the policies that decide for a pod, by direction and tier.
type policySets [2][numTiers]*policySet

// chains links the policy sets of each direction in the order of their tiers.
func (sets *policySets) chains() (chains [2]*link) {
	for d := range sets {
		for t := numTiers - 1; t >= Admin; t-- {
			if set := sets[d][t]; set != nil {
				chains[d] = newLink(set, chains[d])
			}
		}
	}
	return chains
}

// policySetsOf returns the policy sets that decide for a pod, and increments the reference count of
// each.
func (w *Store) policySetsOf(p *pod) (sets policySets) {
	if state := p.identity.ns.unknown; state != labelsKnown {
		return w.useUnknown(state)
	}
	for d := range sets {
		if p.due.has(reselected) || p.endpoint == nil {
			w.selectPolicies(&sets, p, filter.Direction(d))
			continue
		}
		for l := p.endpoint.class.chains[d]; l != nil; l = l.next {
			l.set.refs++
			sets[d][l.set.key.tier] = l.set
		}
	}
	return sets
}

// selectPolicies stores in sets, for direction d, the policy set of each tier that has
// policies for the pod. It stops after the tier NetworkPolicy if that tier has any: these
// policies isolate the pod and decide about every flow, so later tiers are never asked.
func (w *Store) selectPolicies(sets *policySets, p *pod, d filter.Direction) {
	selected := w.selecting(p, d)
	for t := Admin; t < numTiers; t++ {
		if len(selected[t]) > 0 {
			sets[d][t] = w.policySetOf(p, d, t, selected[t])
		}
		if t == NetworkPolicy && sets[d][t] != nil {
			return
		}
	}
}

// policySetOf returns the policy set of the given policies, and increments the set's reference
// count. If there is no such set, it compiles one.
func (w *Store) policySetOf(p *pod, d filter.Direction, t Tier, policies []*policy) *policySet {
	key := policySetKey{direction: d, tier: t}
	for _, pol := range policies {
		key.policies = key.policies.with(pol.mark)
	}
	if set := w.policySets[key]; set != nil {
		set.refs++
		return set
	}
	slices.SortFunc(policies, byPriority)
	var isolation *filter.Isolation
	if t == NetworkPolicy {
		isolation = &filter.Isolation{Direction: d, Denial: denialOf(policies), Policies: make([]string, len(policies))}
		for i, pol := range policies {
			isolation.Policies[i] = pol.text
		}
	}
	w.lastPolicySet++
	set := &policySet{key: key, id: w.lastPolicySet, refs: 1, budget: &p.identity.ns.budget}
	if slices.ContainsFunc(policies, func(pol *policy) bool { return pol.ref.clusterWide() }) {
		set.budget = &w.cluster
	}
	set.alone = newSetLink(set, w.rulesOf(set, policies), isolation)
	set.overlaps = overlapsOf(d, policies)
	w.countOverlaps(set.overlaps, 1)
	w.policySets[key] = set
	return set
}

// rulesOf compiles the rules of some policies into one rule set. If merging them would take
// too much memory, the rule set has a part for each policy instead. policies must be sorted by
// byPriority, because ordered rules decide in this order.
func (w *Store) rulesOf(g *policySet, policies []*policy) *ruleSet {
	d := g.key.direction
	if len(policies) == 1 {
		return w.rulesOfOne(d, policies[0])
	}
	switch large := slices.ContainsFunc(policies, isLargePolicy); {
	case large && g.key.tier == NetworkPolicy:
		return w.rulesOfLarge(g, policies)
	case large:
		return w.betweenLarge(g, policies)
	}
	size := 0
	for _, p := range policies {
		size += p.size[d]
	}
	if w.grants(g.budget, size) && !w.shape.apart {
		g.size += size
		g.budget.merged += size
		return compile(d, policies, w.shape)
	}
	all := &extra{parts: make([]*ruleSet, 0, len(policies))}
	for _, p := range policies {
		if len(p.rules[d]) > 0 {
			all.parts = append(all.parts, w.rulesOfOne(d, p))
		}
	}
	return &ruleSet{extra: all}
}

// rulesOfLarge compiles a list of policies that contains large ones. Each large policy
// becomes a part of its own. If it were merged with other policies, each change of one of
// those would compile the large policy again.
func (w *Store) rulesOfLarge(g *policySet, policies []*policy) *ruleSet {
	all := &extra{parts: make([]*ruleSet, 0, len(policies))}
	var small []*policy
	for _, p := range policies {
		if !p.large {
			small = append(small, p)
		} else if rules := w.rulesOfOne(g.key.direction, p); !rules.none() {
			all.parts = append(all.parts, rules)
		}
	}
	if len(small) > 0 {
		switch rules := w.rulesOf(g, small); {
		case len(rules.parts()) > 0:
			all.parts = append(all.parts, rules.parts()...)
		case !rules.none():
			all.parts = append(all.parts, rules)
		}
	}
	return &ruleSet{extra: all}
}

func isLargePolicy(p *policy) bool { return p.large }

// betweenLarge is like rulesOfLarge, for ordered rules. It merges only the small policies
// between two large ones, so that the parts are in the order of the policies.
func (w *Store) betweenLarge(g *policySet, policies []*policy) *ruleSet {
	all := &extra{}
	for len(policies) > 0 {
		n := slices.IndexFunc(policies, isLargePolicy)
		if n < 0 {
			n = len(policies)
		}
		n = max(n, 1)
		rules := w.rulesOf(g, policies[:n])
		policies = policies[n:]
		if parts := rules.parts(); len(parts) > 0 {
			all.parts = append(all.parts, parts...)
		} else if !rules.none() {
			all.parts = append(all.parts, rules)
		}
	}
	return &ruleSet{extra: all}
}

func (w *Store) rulesOfOne(d filter.Direction, p *policy) *ruleSet {
	if p.compiled[d] == nil {
		p.compiled[d] = compile(d, []*policy{p}, w.shape)
	}
	return p.compiled[d]
}

// number returns the id of the policy set; 0 for nil.
func (g *policySet) number() uint64 {
	if g == nil {
		return 0
	}
	return g.id
}

func (w *Store) releasePolicySet(g *policySet) {
	if g == nil {
		return
	}
	if g.refs--; g.refs == 0 {
		g.budget.merged -= g.size
		w.countOverlaps(g.overlaps, -1)
		delete(w.policySets, g.key)
	}
}

// commitAddrs updates the address table, and returns the addresses for which verdicts may
// have changed.
func (w *Store) commitAddrs() Changes {
	m := mover{Store: w, was: w.prefixes.table}
	var set, removed []*prefix
	m.is, set, removed = w.prefixes.commit()
	m.in = outermost(m.regroup(set, removed))
	m.moves = make([]move, 0, len(w.touched)+len(w.dirtyAddrs))
	for _, p := range w.touched {
		for _, a := range p.addrs {
			if _, later := w.dirtyAddrs[a]; later {
				continue
			}
			if _, own := w.node[a]; own || len(w.rivals) > 0 && len(w.rivals[a]) > 0 || w.deferred.has(p, a) {
				w.dirtyAddrs[a] = struct{}{}
			} else {
				m.move(a, p.endpoint)
			}
		}
	}
	for a := range w.dirtyAddrs {
		m.move(a, w.occupant(a))
	}
	m.moveInPrefixes()
	changes := m.identify()
	if moved := m.changed(); len(moved) > 0 {
		w.table = w.table.with(moved)
	}
	return changes
}

// occupant returns the owner of an address: this node if the address is one of its own, or
// the pod that beats all other pods that claim the address. It returns nil if the address of
// that pod is deferred.
func (w *Store) occupant(a netip.Addr) *Endpoint {
	if _, own := w.node[a]; own {
		return w.self
	}
	best := w.owners[a]
	if best == nil {
		return nil
	}
	for _, p := range w.rivals[a] {
		if w.beats(p, best, a) {
			best = p
		}
	}
	if w.deferred.has(best, a) {
		return nil
	}
	return best.endpoint
}
