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
func (w *World) Commit() (*Snapshot, Changes) {
	w.commitNamespaces()
	for p := range w.dirtyPods {
		w.commitPod(p)
	}
	changes := w.commitAddrs()
	// New ones, because a map never shrinks: after the first lists these would stay
	// as large as the cluster, and to clear them would cost as much each time.
	w.dirtyPods, w.dirtyAddrs = make(map[*pod]struct{}), make(map[netip.Addr]struct{})
	w.lastNumber++
	return &Snapshot{
		number:   w.lastNumber,
		newest:   w.lastEpoch,
		table:    w.table,
		everyone: w.everyone,
		counts: Counts{
			Namespaces: len(w.namespaces), Pods: len(w.pods), Policies: len(w.policies),
			Endpoints: w.table.size, Classes: len(w.classes), Groups: len(w.groups),
		},
	}, changes
}

// commitNamespaces rewrites, in a copy, which selectors match whole namespaces.
func (w *World) commitNamespaces() {
	if len(w.dirtyNS) == 0 {
		return
	}
	everyone := make([][]uint32, max(len(w.everyone), len(w.namespaces)+len(w.unusedNS)))
	copy(everyone, w.everyone)
	for ns := range w.dirtyNS {
		if w.namespaces[ns.name] == ns {
			everyone[ns.id] = w.wholeSelectors(ns)
		}
	}
	w.everyone = everyone
	clear(w.dirtyNS)
}

func (w *World) wholeSelectors(ns *namespace) []uint32 {
	var ids []uint32
	if s := w.peers.everyone(scope{namespace: ns.name}); s != nil {
		ids = append(ids, s.id)
	}
	for _, m := range ns.matched {
		if s := w.peers.everyone(scope{selector: m}); s != nil {
			ids = append(ids, s.id)
		}
	}
	slices.Sort(ids)
	return ids
}

// commitPod compiles a pod's endpoint. It gets a new epoch only if its own
// labels matched differently, or if its policies or ports are others: that a new
// policy elsewhere names it as a peer is that policy's pods' affair.
func (w *World) commitPod(p *pod) {
	old := p.endpoint
	if w.pods[p.objectKey] != p {
		if old != nil {
			w.releaseClass(old.class)
			p.endpoint = nil
		}
		return
	}
	c := w.classOf(p)
	keeps := old != nil && !p.changed && slices.Equal(old.hosts, p.hosts) &&
		old.class.groups == c.groups && slices.Equal(old.class.ports, c.ports)
	p.changed = false
	if keeps && old.class == c {
		w.releaseClass(c) // of the two uses, the endpoint needs one
		return
	}
	e := &Endpoint{Namespace: p.namespace, Name: p.name, class: c, hosts: p.hosts}
	if keeps {
		e.epoch = old.epoch
	} else {
		e.epoch = w.newEpoch()
	}
	if old != nil {
		w.releaseClass(old.class)
	}
	p.endpoint = e
	for _, a := range p.addrs {
		w.dirtyAddrs[a] = struct{}{}
	}
}

func (w *World) newEpoch() uint64 {
	w.lastEpoch++
	return w.lastEpoch
}

// classOf returns the pod's class with one more use.
func (w *World) classOf(p *pod) *class {
	peers := make([]uint32, len(p.kin.peers))
	for i, s := range p.kin.peers {
		peers[i] = s.id
	}
	slices.Sort(peers)
	groups := [2]*group{w.groupOf(p, filter.Egress), w.groupOf(p, filter.Ingress)}

	var key []byte
	key = binary.AppendUvarint(key, uint64(p.kin.ns.id))
	for _, g := range groups {
		key = binary.AppendUvarint(key, g.number())
	}
	key = binary.AppendUvarint(key, uint64(len(peers)))
	for _, id := range peers {
		key = binary.AppendUvarint(key, uint64(id))
	}
	for _, np := range p.ports {
		key = append(key, np.name...)
		key = append(key, 0, byte(np.protocol), byte(np.number>>8), byte(np.number))
	}
	c := w.classes[string(key)]
	if c != nil {
		c.refs++
		for _, g := range groups {
			w.releaseGroup(g) // the class holds it already
		}
		p.ports = c.ports // the same ones, once for all
		return c
	}
	c = &class{key: string(key), refs: 1, namespace: p.kin.ns.id, peers: peers, groups: groups, ports: p.ports}
	w.classes[c.key] = c
	return c
}

func (w *World) releaseClass(c *class) {
	if c.refs--; c.refs > 0 {
		return
	}
	delete(w.classes, c.key)
	for _, g := range c.groups {
		w.releaseGroup(g)
	}
}

// groupOf returns the group of policies that isolate the pod, compiled, with one
// more use; nil if there are none.
func (w *World) groupOf(p *pod, d filter.Direction) *group {
	policies := p.selectedBy(d)
	if len(policies) == 0 {
		return nil
	}
	key := []byte{'0' + byte(d)}
	for _, pol := range policies {
		key = binary.AppendUvarint(key, pol.id)
	}
	if g := w.groups[string(key)]; g != nil {
		g.refs++
		return g
	}
	isolation := &filter.Isolation{Direction: d}
	for _, pol := range policies {
		isolation.Policies = append(isolation.Policies, pol.text)
	}
	w.lastGroup++
	g := &group{key: string(key), id: w.lastGroup, refs: 1, isolation: isolation, rules: compile(d, policies, w.shape)}
	w.groups[g.key] = g
	return g
}

// number is the group's id; that of no group is 0.
func (g *group) number() uint64 {
	if g == nil {
		return 0
	}
	return g.id
}

func (w *World) releaseGroup(g *group) {
	if g == nil {
		return
	}
	if g.refs--; g.refs == 0 {
		delete(w.groups, g.key)
	}
}

// commitAddrs brings the table of addresses up to date.
func (w *World) commitAddrs() Changes {
	var changes Changes
	var moved []entry
	for a := range w.dirtyAddrs {
		was, now := w.table.get(a), w.occupant(a)
		if was.Epoch() != now.Epoch() {
			changes = append(changes, a)
		}
		if was != now {
			moved = append(moved, entryOf(a, now))
		}
	}
	if len(moved) > 0 {
		w.table = w.table.with(moved)
	}
	return changes
}

// occupant is who has the address: this node before any pod, and of the pods
// that claim it the one that beats the others.
func (w *World) occupant(a netip.Addr) *Endpoint {
	if _, own := w.node[a]; own {
		return w.self
	}
	best := w.owners[a]
	if best == nil {
		return nil
	}
	for _, p := range w.rivals[a] {
		if p.beats(best) {
			best = p
		}
	}
	return best.endpoint
}
