package policy

import (
	"net/netip"
	"slices"

	"sluice/filter"
)

// ID stands for all that policies can see of an address: the class of the pod that has it, and the
// prefixes with the address that policies name. Between two IDs of one family, the same packets get the
// same verdict, whatever the addresses are, now and in all later snapshots of the store: as long as an
// address has the ID, nothing that a verdict depends on changes. DecidedByIDs lists the exceptions.
// The same holds for the policies and rules of the verdict, and for its reason. Only Verdict.Pair may
// change, from true to false; a verdict that was stored while it was true stays right.
//
// A change that alters verdicts about an address gives it another ID. An ID is never used again for
// something else. It is 0 for an address that has no endpoint and is in no prefix. The prefixes of all
// addresses, 0.0.0.0/0 and ::/0, do not count, because they tell no addresses apart.
//
// Why it holds: a rule matches a peer by selectors of pods, by prefixes and, at the destination, by
// named ports. All pods of a class have the same policy sets, whose rules never change, the same
// selectors and the same named ports, and they deny in the same way. The longest prefix with an address
// tells which other prefixes have it, because prefixes are nested or disjoint. So while both IDs stay, a
// verdict could change only if a selector or a prefix were added or removed. But no rule names it that is
// in force both before and after that: a policy that names a new selector or prefix gets new policy sets,
// and with them its pods get new IDs; and a selector or prefix that no rule names affects no verdict. For
// the same reason the id of a selector may be used again, and all addresses with an ID may take it along
// when they become another kind of address (see mover.identify).
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
// both are the same address, or if one is a pod's and the other is an address of the pod's node that
// has no endpoint. (This node's addresses have one.) src and dst own the addresses, or are nil.
//
// IDs say nothing about whether a packet must be held: see Pending and Final.
func DecidedByIDs(srcAddr, dstAddr netip.Addr, src, dst *Endpoint) bool {
	return srcAddr != dstAddr && !dst.runsOn(srcAddr, src) && !src.runsOn(dstAddr, dst)
}

// kind is what the ID of an address with an endpoint stands for: the class of the endpoint, nil for
// this node, and the group of the address.
type kind struct {
	class *class
	group *group
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

// mover finds the IDs of addresses with an endpoint in a Commit. move is called once for each address
// whose endpoint may have changed, then moveInPrefixes and identify once.
type mover struct {
	*Store
	// was and is are the tables of the last Commit and of this one. regroup changes "was": it has the
	// prefixes by which addresses are grouped now.
	was, is *prefixTable
	in      []netip.Prefix        // all addresses whose longest prefix differs in the tables are in one of these
	strays  map[netip.Addr]*group // addresses in the group of another prefix; see regroup
	moves   []move
	emptied []kind // kinds that no address had at some moment
}

// move is a change of an address that has, or had, an endpoint.
type move struct {
	entry            // what the address table gets
	before  *kindUse // nil if the address had no endpoint
	now     *kindUse // nil if it has none
	was     *Endpoint
	wasID   ID
	renewed bool // the epoch is another one
}

// move counts the kinds of an address, whose owner becomes now.
func (m *mover) move(a netip.Addr, now *Endpoint) {
	was, id := m.table.find(a)
	before, after := m.groupOf(a), m.groupKeyOf(a)
	if was == now && (was == nil || before == m.groups[after]) {
		return
	}
	m.add(move{entry: entryOf(a, now), was: was, wasID: id, renewed: was == nil || now == nil || was.epoch != now.epoch}, before, after)
	switch p := netip.PrefixFrom(a, a.BitLen()); {
	case was == nil:
		m.addrs.Insert(p)
	case now == nil:
		m.addrs.Delete(p)
	}
}

// add adds a move, and counts the kinds of its address, which was in the group "before" and is in the
// one with the key "after".
func (m *mover) add(one move, before *group, after groupKey) {
	if one.owner != nil {
		k := kind{one.owner.class, m.useGroup(after)}
		if one.now = m.kinds[k]; one.now == nil {
			one.now = new(kindUse)
			m.kinds[k] = one.now
		}
		one.now.addrs++
	}
	if one.was != nil {
		before.addrs--
		k := kind{one.was.class, before}
		one.before = m.kinds[k]
		if one.before.addrs--; one.before.addrs == 0 {
			m.emptied = append(m.emptied, k)
		}
	}
	m.moves = append(m.moves, one)
}

// moveInPrefixes moves the addresses that are not in the group of their longest prefix, except those
// that were moved before.
func (m *mover) moveInPrefixes() {
	if len(m.in)+len(m.strays) == 0 {
		return
	}
	moved := make(map[netip.Addr]struct{}, len(m.moves))
	for i := range m.moves {
		moved[m.moves[i].addr()] = struct{}{}
	}
	for _, in := range m.in {
		for p := range m.addrs.Subnets(in) {
			a := p.Addr()
			if _, is := m.strays[a]; !is {
				m.moveToGroup(a, moved)
			}
		}
	}
	for a := range m.strays {
		m.moveToGroup(a, moved)
	}
}

// moveToGroup moves an address to the group of its longest prefix, unless it is moved already.
func (m *mover) moveToGroup(a netip.Addr, moved map[netip.Addr]struct{}) {
	before, after := m.groupOf(a), m.groupKeyOf(a)
	if _, is := moved[a]; is || before == m.groups[after] {
		return
	}
	owner, id := m.table.find(a)
	m.add(move{entry: entryOf(a, owner), was: owner, wasID: id}, before, after)
}

// identify gives an ID to each kind that is new, and returns the addresses whose epoch or ID has
// changed.
//
// The ID of a kind passes on to a new one if no address is left that has the old kind, and an
// address has moved from the old to the new one without a new epoch: selectors or prefixes that match
// its pod have appeared or disappeared, and nothing else. Otherwise a new policy whose rules match
// all pods of some classes would change the ID of every pod, although it alters no verdict between
// them.
func (m *mover) identify() Changes {
	for i := range m.moves {
		one := &m.moves[i]
		if one.now != nil && one.now.id == 0 && one.before != nil && one.before.addrs == 0 && !one.renewed {
			one.now.id, one.before.id = one.before.id, 0
		}
	}
	var changes Changes
	for i := range m.moves {
		one := &m.moves[i]
		if one.now != nil {
			if one.now.id == 0 {
				one.now.id = m.newID()
			}
			one.id = one.now.id
		}
		if one.renewed || one.id != one.wasID {
			changes = append(changes, one.addr())
		}
	}
	for _, k := range m.emptied {
		if u := m.kinds[k]; u != nil && u.addrs == 0 {
			delete(m.kinds, k)
		}
		m.releaseGroup(k.group)
	}
	return changes
}

// changed returns the moves that change the address table.
func (m *mover) changed() []move {
	return slices.DeleteFunc(m.moves, func(one move) bool { return one.owner == one.was && one.id == one.wasID })
}

// IDKey is a filter.Key with the IDs of the addresses instead of the addresses. If DecidedByIDs, flows
// with the same IDKey have the same verdict, in all snapshots of a store in which their addresses have
// these IDs. So caches need not forget a verdict that they keep by IDKey.
type IDKey struct {
	Src, Dst  ID
	Port      uint16
	Protocol  filter.Protocol
	Transport filter.Transport
}

// NewIDKey returns the IDKey of a key. With filter.Any, it is that of all packets between the IDs.
func NewIDKey(k *filter.Key, src, dst ID) IDKey {
	return IDKey{src, dst, k.Port, k.Protocol, k.Transport}
}
