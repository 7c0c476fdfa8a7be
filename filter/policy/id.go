package policy

import "net/netip"

// ID stands for all that policies can see of an address: the class of the pod that has it, and the
// prefixes with the address that policies name. Between two IDs, the same packets get the same
// verdict, whatever the addresses are, now and in all later snapshots of the store: as long as an
// address has the ID, nothing that a verdict depends on changes. DecidedByIDs lists the exceptions.
// The same holds for the policies and rules of the verdict, and for its reason. Only Verdict.Pair may
// be false in a later snapshot; if it ever was true, it still holds.
//
// A change that alters verdicts about an address gives it another ID. An ID is never used again for
// something else. It is 0 for an address that has no endpoint and is in no prefix.
//
// Why it holds: a rule matches a peer by selectors of pods, by prefixes and, at the destination, by
// named ports. All pods of a class have the same policy sets, whose rules never change, the same
// selectors, the same named ports and the same way to deny. The longest prefix with an address tells
// which other prefixes have it, because prefixes are nested or disjoint. So a verdict can only change
// while both IDs stay if a selector or a prefix appears or disappears, and then no rule names it that
// is in force before and after: a policy that names a new one has policy sets of its own, and what
// nothing names can alter nothing. For the same reason the id of a selector may be used again, and an
// ID may pass on (see commitIDs).
type ID uint64

// Identify returns the owner of an address, as Endpoint does, and the ID of the address. It does not
// allocate.
func (s *Snapshot) Identify(addr netip.Addr) (*Endpoint, ID) {
	if e, id := s.table.find(addr); e != nil {
		return e, id
	}
	return nil, s.prefixes.find(addr)
}

// DecidedByIDs reports whether the verdict between two addresses is that of their IDs. It is not if
// both are the same address, or if one is the address of a node in whose pod the other is, unless the
// store knows the node as its own. src and dst own the addresses, or are nil.
func DecidedByIDs(srcAddr, dstAddr netip.Addr, src, dst *Endpoint) bool {
	return srcAddr != dstAddr && !dst.runsOn(srcAddr, src) && !src.runsOn(dstAddr, dst)
}

// kind is what the ID of an address with an endpoint stands for: the class of the endpoint, nil for
// this node, and the ID of the longest prefix with the address. No packet has addresses of both
// families. Kinds of their own let the ID of each pass on (see commitIDs) when policies name prefixes
// of one of them.
type kind struct {
	class  *class
	prefix ID
	v6     bool
}

// kindUse is the ID of a kind, and the number of addresses that have it.
type kindUse struct {
	id    ID
	addrs int
}

// newID returns the next ID. Versions of namespaces have the same counter.
func (w *Store) newID() ID {
	w.lastID++
	return w.lastID
}

// move is a change of an address that has, or had, an endpoint.
type move struct {
	entry            // what the address table gets
	before  *kindUse // nil if the address had no endpoint
	now     *kindUse // nil if it has none
	id      ID       // the ID of before
	renewed bool     // the epoch is another one
}

// moveOf counts the kinds of an address whose owner becomes "now". If nothing about the address
// changes, it returns false.
func (w *Store) moveOf(a netip.Addr, now *Endpoint, was, is *prefixTable) (m move, changed bool) {
	owner, id := w.table.find(a)
	m = move{entry: entryOf(a, now, 0), id: id, renewed: owner.Epoch() != now.Epoch()}
	var before, after kind
	if owner != nil {
		before = kind{owner.class, was.find(a), a.Is6()}
	}
	if now != nil {
		after = kind{now.class, is.find(a), a.Is6()}
	}
	if owner == now && before == after {
		return m, false
	}
	if now != nil {
		m.now = w.kinds[after]
		if m.now == nil {
			m.now = new(kindUse)
			w.kinds[after] = m.now
		}
		m.now.addrs++
	}
	if owner != nil {
		m.before = w.kinds[before]
		if m.before.addrs--; m.before.addrs == 0 {
			w.emptied = append(w.emptied, before)
		}
	}
	w.indexAddr(a, owner, now)
	return m, true
}

// indexAddr keeps w.addrs, the index of all addresses with an endpoint.
func (w *Store) indexAddr(a netip.Addr, was, now *Endpoint) {
	switch p := netip.PrefixFrom(a, a.BitLen()); {
	case was == nil && now != nil:
		w.addrs.Insert(p)
	case was != nil && now == nil:
		w.addrs.Delete(p)
	}
}

// commitIDs gives an ID to each kind that is new, and returns the addresses whose epoch or ID has
// changed.
//
// The ID of a kind passes on to a new one if no address is left that has the old kind, and an
// address has moved from the old to the new one without a new epoch: selectors or prefixes that match
// its pod have appeared or disappeared, and nothing else. Otherwise a new policy whose rules match
// all pods of some classes would change the ID of every pod, although it alters no verdict between
// them.
func (w *Store) commitIDs(moves []move) Changes {
	for i := range moves {
		m := &moves[i]
		if m.now != nil && m.now.id == 0 && m.before != nil && m.before.addrs == 0 && !m.renewed {
			m.now.id, m.before.id = m.before.id, 0
		}
	}
	changes := make(Changes, 0, len(moves))
	for i := range moves {
		m := &moves[i]
		if m.now != nil {
			if m.now.id == 0 {
				m.now.id = w.newID()
			}
			m.entry.id = m.now.id
		}
		if m.renewed || m.entry.id != m.id {
			changes = append(changes, m.addr())
		}
	}
	for _, k := range w.emptied {
		if w.kinds[k] != nil && w.kinds[k].addrs == 0 {
			delete(w.kinds, k)
		}
	}
	w.emptied = nil
	return changes
}
