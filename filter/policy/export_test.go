package policy

import "net/netip"

// CostOf is the estimate by which policies are refused.
func CostOf(p *Policy) int64 { return costOf(p) }

// Shapes are the forms that rule sets can have: as agents compile them, always
// trees, trees that copy no rule of which they can do without a copy, and one for each
// policy.
const Shapes = 4

// SetShape has what is compiled from now on take one of the forms. In the second and
// third, few selectors are kept as many are.
func (w *Store) SetShape(n int) {
	if n > 0 {
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
	}
}

// SetLarge has policies of more bytes be drafts, if the store uses any.
func (w *Store) SetLarge(bytes int) { w.large = bytes }

// Versions are the policies in force, each by the sum of its spec.
func (w *Store) Versions() map[[2]string][32]byte {
	all := make(map[[2]string][32]byte, len(w.policies))
	for key, p := range w.policies {
		all[[2]string{key.Namespace, key.Name}] = p.sum
	}
	return all
}

// Deferred are the addresses that are not known yet, by the namespace and name of their pods.
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

// Forms counts, in the rule sets in use, the port tables that are flat and trees,
// the peer sets that refer to
// others, and the rule sets that are parts of others.
func (w *Store) Forms() (flat, trees, refer, apart int) {
	for _, g := range w.policySets {
		apart += len(g.alone.rules.parts())
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
	return flat, trees, refer, apart
}

// Kept counts what the world keeps of objects, by what it is.
func (w *Store) Kept() map[string]int {
	kept := map[string]int{
		"namespaces": len(w.namespaces), "pods": len(w.pods), "policies": len(w.policies), "faulty policies": len(w.faulty),
		"owners": len(w.owners), "rivals": len(w.rivals), "hosts": len(w.hosts), "groups": len(w.policySets), "classes": len(w.classes),
		"deferred":  len(w.deferred),
		"selectors": len(w.nsSelectors.byKey) + len(w.subjects.byKey) + len(w.peers.byKey),
		"scopes":    len(w.nsSelectors.byScope) + len(w.subjects.byScope) + len(w.peers.byScope),
	}
	for _, ns := range w.namespaces {
		kept["identities"] += ns.identities.all.count()
		kept["hashes of identities"] += len(ns.identities.byHash)
		kept["labels of identities"] += len(ns.identities.byLabel)
	}
	return kept
}
