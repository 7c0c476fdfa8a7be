package policy

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"sluice/filter"
)

// Changes are the addresses about which some verdict may differ from the
// snapshot before: those that came, went, changed hands or changed epoch.
type Changes []netip.Addr

// Commit compiles what has changed since the last Commit. The snapshot before
// stays as it was. With nothing changed it is the same snapshot in a new number.
func (w *Store) Commit() (*Snapshot, Changes) {
	ranges := w.commitRanges() // before the addresses, which depend on them
	w.balance()
	w.undefer()
	w.match()
	for _, p := range w.dirtyPods {
		p.dirty = false
		w.commitPod(p)
	}
	for _, k := range w.compiled {
		k.recent = nil // which would keep a class that no pod has any more
	}
	w.compiled = w.compiled[:0]
	for _, p := range w.renewed {
		w.commitRenewed(p)
	}
	changes := w.commitAddrs()
	// New ones, because a map never shrinks: after the first lists these would stay
	// as large as the cluster, and to clear them would cost as much each time.
	w.dirtyPods, w.renewed, w.dirtyAddrs, w.touched = nil, nil, make(map[netip.Addr]struct{}), nil
	w.due = false
	w.lastNumber++
	return &Snapshot{
		number:   w.lastNumber,
		newest:   w.lastEpoch,
		table:    w.table,
		everyone: w.everyone,
		ranges:   ranges,
		starting: w.ranges.live,
		counts: Counts{
			Namespaces: len(w.namespaces), Pods: len(w.pods), Policies: len(w.policies),
			Endpoints: w.table.size, Classes: len(w.classes), PolicySets: len(w.policySets),
		},
	}, changes
}

// commitPod compiles a pod's endpoint. It gets a new epoch only if its own
// labels matched differently, or if its policies or ports are others: that a new
// policy elsewhere names it as a peer is that policy's pods' affair.
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
	keeps := old != nil && !p.renewed && old.host.same(p.host) &&
		old.class.groups == c.groups && slices.Equal(old.class.ports, c.ports) &&
		!(p.relabeled && !old.class.peers.equal(&c.peers))
	p.renewed, p.relabeled, p.reselected = false, false, false
	if keeps && old.class == c {
		w.releaseClass(c) // of the two uses, the endpoint needs one
		return
	}
	e := &Endpoint{Namespace: p.namespace, Name: p.name, class: c, host: p.host}
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

// commitRenewed gives a pod a new epoch, unless it has been given one.
func (w *Store) commitRenewed(p *pod) {
	if !p.renewed || p.gone || p.endpoint == nil {
		return
	}
	p.renewed = false
	e := *p.endpoint
	e.epoch = w.newEpoch()
	p.endpoint = &e
	w.touched = append(w.touched, p)
}

func (w *Store) newEpoch() uint64 {
	w.lastEpoch++
	return w.lastEpoch
}

// classOf returns the pod's class with one more use.
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
	groups := w.policySetsOf(p)

	var key []byte
	key = binary.AppendUvarint(key, uint64(p.identity.ns.id))
	for _, g := range groups {
		key = binary.AppendUvarint(key, g.number())
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
		for _, g := range groups {
			w.releasePolicySet(g) // the class holds it already
		}
		p.ports = c.ports // the same ones, once for all
		return c
	}
	c = &class{key: string(key), refs: 1, namespace: p.identity.ns.id, peers: p.identity.peers, groups: groups, ports: p.ports}
	w.classes[c.key] = c
	return c
}

func (w *Store) releaseClass(c *class) {
	if c.refs--; c.refs > 0 {
		return
	}
	delete(w.classes, c.key)
	for _, g := range c.groups {
		w.releasePolicySet(g)
	}
}

// policySetsOf returns the pod's groups by direction, with one more use of each.
func (w *Store) policySetsOf(p *pod) [2]*policySet {
	if p.reselected || p.endpoint == nil {
		return [2]*policySet{w.policySetOf(p, filter.Egress), w.policySetOf(p, filter.Ingress)}
	}
	groups := p.endpoint.class.groups
	for _, g := range groups {
		if g != nil {
			g.refs++
		}
	}
	return groups
}

// policySetOf returns the group of policies that isolate the pod, compiled, with one
// more use; nil if there are none.
func (w *Store) policySetOf(p *pod, d filter.Direction) *policySet {
	policies := p.selectedBy(d)
	if len(policies) == 0 {
		return nil
	}
	key := policySetKey{direction: d}
	for _, pol := range policies {
		key.policies = key.policies.with(pol.mark)
	}
	if g := w.policySets[key]; g != nil {
		g.refs++
		return g
	}
	slices.SortFunc(policies, byText)
	isolation := &filter.Isolation{Direction: d, Policies: make([]string, len(policies))}
	for i, pol := range policies {
		isolation.Policies[i] = pol.text
	}
	w.lastPolicySet++
	g := &policySet{key: key, id: w.lastPolicySet, refs: 1, isolation: isolation, ns: p.identity.ns}
	g.rules = w.rulesOf(g, policies)
	w.policySets[g.key] = g
	return g
}

// grantedToPolicySets is how many entries of rules that are merged for sets of policies a
// namespace has in any case; beside that, as many as there are in its policies. Where
// each pod is selected by policies of its own, all merged would take the policies'
// size times the pods.
const grantedToPolicySets = 1 << 15

// rulesOf compiles the rules of some policies together, or lists each policy's.
func (w *Store) rulesOf(g *policySet, policies []*policy) *ruleSet {
	d := g.key.direction
	if len(policies) == 1 {
		return w.rulesOfOne(d, policies[0])
	}
	if slices.ContainsFunc(policies, func(p *policy) bool { return p.large }) {
		return w.besideLarge(g, policies)
	}
	size := 0
	for _, p := range policies {
		size += p.size[d]
	}
	if g.ns.merged+size <= grantedToPolicySets+g.ns.size && !w.shape.apart {
		g.size = size
		g.ns.merged += size
		return compile(d, policies, w.shape)
	}
	all := &oversized{parts: make([]*ruleSet, 0, len(policies))}
	for _, p := range policies {
		if len(p.rules[d]) > 0 {
			all.parts = append(all.parts, w.rulesOfOne(d, p))
		}
	}
	return &ruleSet{oversized: all}
}

// besideLarge compiles the rules of some policies of which a few are large. Those are
// merged with no others: that would take as long with each change of any of them.
func (w *Store) besideLarge(g *policySet, policies []*policy) *ruleSet {
	all := &oversized{parts: make([]*ruleSet, 0, len(policies))}
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
	return &ruleSet{oversized: all}
}

func (w *Store) rulesOfOne(d filter.Direction, p *policy) *ruleSet {
	if p.compiled[d] == nil {
		p.compiled[d] = compile(d, []*policy{p}, w.shape)
	}
	return p.compiled[d]
}

// number is the group's id; that of no group is 0.
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
		g.ns.merged -= g.size
		delete(w.policySets, g.key)
	}
}

// commitAddrs brings the table of addresses up to date.
func (w *Store) commitAddrs() Changes {
	changes := make(Changes, 0, len(w.touched)+len(w.dirtyAddrs))
	moved := make([]entry, 0, len(w.touched)+len(w.dirtyAddrs))
	commit := func(a netip.Addr, now *Endpoint) {
		was := w.table.get(a)
		if was.Epoch() != now.Epoch() {
			changes = append(changes, a)
		}
		if was != now {
			moved = append(moved, entryOf(a, now))
		}
	}
	for _, p := range w.touched {
		for _, a := range p.addrs {
			if _, later := w.dirtyAddrs[a]; later {
				continue
			}
			if _, own := w.node[a]; own || len(w.rivals) > 0 && len(w.rivals[a]) > 0 || w.deferred.has(p, a) {
				w.dirtyAddrs[a] = struct{}{}
			} else {
				commit(a, p.endpoint)
			}
		}
	}
	for a := range w.dirtyAddrs {
		commit(a, w.occupant(a))
	}
	if len(moved) > 0 {
		w.table = w.table.with(moved)
	}
	return changes
}

// occupant is who has the address: this node before any pod, and of the pods
// that claim it the one that beats the others, if its address is not deferred.
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
