package policy

import (
	"fmt"
	"net/netip"
)

// CostOf returns the memory estimate by which Limits refuse a policy.
func CostOf(p *Policy) int64 { return costOf(p, noNodes) }

// Shapes is the number of shapes that SetShape accepts.
const Shapes = 6

// SetShape selects the shape of the rule sets that are compiled from now on:
//
//	0: as an agent compiles them
//	1: segment trees for all ports, into which every rule is copied
//	2: segment trees that refer to rules instead of copying them, where they can
//	3: like 1, but rules of several policies are not merged
//	4: like 0
//	5: like 0, but ordered rules are compiled like others
//
// In shapes 1 to 4 small sets of selectors are also stored like large ones.
func (w *Store) SetShape(n int) {
	if n > 0 && n < 5 {
		w.ids.few, w.peers.few, w.nsSelectors.few, w.subjects.few = 0, 0, 0, 0
		w.peers.wide.few = 0
	}
	switch n {
	case 1:
		w.shape = shape{floor: -1, flat: 0, tree: 1 << 20}
	case 2:
		w.shape = shape{floor: -1, flat: 0, tree: 0}
	case 3:
		w.shape = shape{floor: -1, flat: 0, tree: 1 << 20, apart: true}
	default:
		w.shape = defaultShape()
		w.shape.noTables = n == 5
	}
}

// SetLarge sets a size in bytes. If the store uses drafts, a policy whose encoded form is larger
// becomes a draft before it comes into force.
func (w *Store) SetLarge(bytes int) { w.large = bytes }

// Versions returns the digests of the policies in force, by namespace and name.
func (w *Store) Versions() map[[2]string][32]byte {
	all := make(map[[2]string][32]byte, len(w.policies))
	for key, p := range w.policies {
		all[[2]string{key.Namespace, key.Name}] = p.sum
	}
	return all
}

// Deferred returns the deferred addresses (see the type deferred) by the namespace and name of
// their pods.
func (w *Store) Deferred() map[[2]string][]netip.Addr {
	all := make(map[[2]string][]netip.Addr)
	for _, claims := range w.deferred {
		for c := range claims {
			key := [2]string{c.pod.namespace, c.pod.name}
			all[key] = append(all[key], c.addr)
		}
	}
	return all
}

// Forms counts the parts of the rule sets in use: flat port tables, port tables that are
// trees, peer sets that refer to other peer sets, rule sets that are a part of another rule
// set, and rank tables.
func (w *Store) Forms() (flat, trees, refer, apart, tables int) {
	for _, g := range w.policySets {
		apart += len(g.alone.rules.parts())
		if g.alone.table != nil {
			tables++
		}
		for t := range g.alone.rules.ports {
			var sets []*peerSet
			if list := g.alone.rules.ports[t].flat; list != nil {
				flat++
				for _, i := range list {
					sets = append(sets, i.set)
				}
			} else if g.alone.rules.extra != nil && g.alone.rules.extra.trees[t].sets != nil {
				trees++
				sets = g.alone.rules.extra.trees[t].sets
			}
			for _, s := range sets {
				if s != nil && s.more != nil {
					refer++
				}
			}
		}
	}
	return flat, trees, refer, apart, tables
}

// Kept counts the records that the store keeps, by kind.
func (w *Store) Kept() map[string]int {
	kept := map[string]int{
		"namespaces": len(w.namespaces), "pods": len(w.pods), "policies": len(w.policies), "faulty policies": len(w.faulty), "faulty namespaces": len(w.faultyNS),
		"owners": len(w.owners), "rivals": len(w.rivals), "hosts": len(w.hosts), "policy sets": len(w.policySets), "classes": len(w.classes),
		"deferred":  len(w.deferred),
		"selectors": len(w.nsSelectors.byKey) + len(w.scopes.byKey) + len(w.subjects.byKey) + len(w.peers.byKey),
		"scopes":    len(w.nsSelectors.byScope) + len(w.scopes.byScope) + len(w.subjects.byScope) + len(w.peers.byScope),
		"nodes":     len(w.nodes.byName) + len(w.nodes.table) + len(w.nodes.moved), "node selectors": len(w.nodes.selectors), "policies with nodes": len(w.nodes.users),
		"rule entries of policies in no namespace": w.cluster.size + w.cluster.merged,
	}
	kept["prefixes"] = w.prefixes.table.ids.Size() + len(w.prefixes.added) + len(w.prefixes.changed)
	kept["addresses without an endpoint"] = w.addrs.Size() - w.table.size
	for k := range w.kinds {
		if k.class != nil {
			kept["IDs"]++
		}
	}
	for _, ns := range w.namespaces {
		ns.scopes.all(func(uint32) { kept["scopes of namespaces"]++ })
		kept["identities"] += ns.identities.all.count()
		kept["hashes of identities"] += len(ns.identities.byHash)
		kept["labels of identities"] += len(ns.identities.byLabel)
	}
	return kept
}

// SetFew sets up to how many addresses move to other groups one by one.
func (w *Store) SetFew(n int) { w.few = n }

// CheckGroups returns an error if the counts of addresses by group or by kind are not those of the
// address table, or if an address is not in the group of its longest prefix.
func (w *Store) CheckGroups() error {
	groups, kinds := make(map[*group]int), make(map[kind]int)
	for a, e := range w.table.all() {
		g := w.groups[groupKey{w.prefixes.table.find(a), !a.Is4()}]
		if g == nil {
			return fmt.Errorf("%s has no group", a)
		}
		k := kind{e.owner.class, g}
		groups[g]++
		kinds[k]++
		if _, id := w.table.find(a); w.kinds[k] == nil || w.kinds[k].id != id {
			return fmt.Errorf("%s has the ID %d, and its kind %+v", a, id, w.kinds[k])
		}
	}
	for key, g := range w.groups {
		if g.key != key || g.addrs != groups[g] || g.addrs == 0 {
			return fmt.Errorf("group %v: %+v, but it has %d addresses", key, *g, groups[g])
		}
	}
	for k, use := range w.kinds {
		if use.addrs != kinds[k] || use.addrs == 0 {
			return fmt.Errorf("kind %+v: %+v, but it has %d addresses", k, *use, kinds[k])
		}
	}
	return nil
}

// Epoch returns the epoch of an endpoint; 0 for nil.
func (e *Endpoint) Epoch() uint64 {
	if e == nil {
		return 0
	}
	return e.epoch
}
