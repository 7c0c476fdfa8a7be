package policy

import (
	"iter"
	"net/netip"

	"github.com/gaissmai/bart"
)

// prefixes holds the prefixes that the rules of policies name: those of ipBlocks and of their
// exceptions, networks, and the addresses of Nodes.
type prefixes struct {
	all     map[netip.Prefix]*prefix
	changed []*prefix // that were added, or lost their last use, since the last Commit
	table   *prefixTable
}

// prefix is a prefix that policies name.
type prefix struct {
	is   netip.Prefix
	id   ID
	uses int // of policies; Commit removes a prefix without a use
	// changed is set if the prefix is in prefixes.changed.
	changed bool
}

// prefixTable holds the prefixes of a snapshot. It never changes.
type prefixTable struct {
	number  uint64 // of the table among those of its store
	ids     *bart.Table[ID]
	set     []PrefixID // what has changed since the table with the previous number
	removed []netip.Prefix
}

// PrefixID is a prefix that policies name, and the ID of its addresses that have no endpoint and are
// in no longer prefix.
type PrefixID struct {
	Prefix netip.Prefix
	ID     ID
}

func newPrefixes() prefixes {
	return prefixes{all: make(map[netip.Prefix]*prefix), table: &prefixTable{ids: new(bart.Table[ID])}}
}

// find returns the ID of the longest prefix with an address, or 0.
func (t *prefixTable) find(a netip.Addr) ID {
	if t.ids.Size() == 0 {
		return 0
	}
	id, _ := t.ids.Lookup(a)
	return id
}

// Prefixes yields the prefixes that policies name, in no particular order.
func (s *Snapshot) Prefixes() iter.Seq2[netip.Prefix, ID] { return s.prefixes.ids.All() }

// PrefixChanges returns how the prefixes of the snapshot differ from those of an earlier snapshot of
// the same store: the prefixes that are new or have another ID, and those that are gone. It takes
// long only if there were several changes in between. The lists must not be changed.
func (s *Snapshot) PrefixChanges(before *Snapshot) (set []PrefixID, removed []netip.Prefix) {
	was, now := before.prefixes, s.prefixes
	switch now.number - was.number {
	case 0:
		return nil, nil
	case 1:
		return now.set, now.removed
	}
	for p, id := range now.ids.All() {
		if old, ok := was.ids.Get(p); !ok || old != id {
			set = append(set, PrefixID{p, id})
		}
	}
	for p := range was.ids.All() {
		if _, ok := now.ids.Get(p); !ok {
			removed = append(removed, p)
		}
	}
	return set, removed
}

// usePrefixes counts a use of each prefix that a policy names.
func (w *Store) usePrefixes(p *policy) {
	x := &w.prefixes
	p.prefixes = make([]*prefix, len(p.named))
	for i, is := range p.named {
		e := x.all[is]
		if e == nil {
			e = &prefix{is: is, id: w.newID()}
			x.all[is] = e
			x.change(e)
		}
		e.uses++
		p.prefixes[i] = e
	}
	p.named = nil
}

// releasePrefixes ends the uses of prefixes by a policy.
func (w *Store) releasePrefixes(p *policy) {
	for _, e := range p.prefixes {
		if e.uses--; e.uses == 0 {
			w.prefixes.change(e)
		}
	}
	p.prefixes = nil
}

func (x *prefixes) change(e *prefix) {
	if !e.changed {
		e.changed = true
		x.changed = append(x.changed, e)
	}
}

// commit returns the table of the next snapshot.
func (x *prefixes) commit() *prefixTable {
	if len(x.changed) == 0 {
		return x.table
	}
	next := &prefixTable{number: x.table.number + 1}
	for _, e := range x.changed {
		e.changed = false
		switch _, known := x.table.ids.Get(e.is); {
		case e.uses > 0 && !known:
			next.set = append(next.set, PrefixID{e.is, e.id})
		case e.uses == 0:
			if delete(x.all, e.is); known {
				next.removed = append(next.removed, e.is)
			}
		}
	}
	x.changed = nil
	if len(next.set)+len(next.removed) == 0 {
		return x.table
	}
	next.ids = x.table.with(next.set, next.removed)
	x.table = next
	return next
}

// fewChanges is the number of changes up to which a table shares its unchanged parts with the table
// before it. Such a change makes hundreds of allocations. For more changes, a copy of the whole table is
// faster.
const fewChanges = 16

func (t *prefixTable) with(set []PrefixID, removed []netip.Prefix) *bart.Table[ID] {
	ids := t.ids
	if len(set)+len(removed) <= fewChanges+ids.Size()/256 {
		for _, p := range set {
			ids = ids.InsertPersist(p.Prefix, p.ID)
		}
		for _, p := range removed {
			ids = ids.DeletePersist(p)
		}
		return ids
	}
	ids = ids.Clone()
	for _, p := range set {
		ids.Insert(p.Prefix, p.ID)
	}
	for _, p := range removed {
		ids.Delete(p)
	}
	return ids
}

// prefixesOf appends to list the prefixes that together are exactly the addresses of a range.
func prefixesOf(list []netip.Prefix, r addrRange) []netip.Prefix {
	for low := r.low; ; {
		p := netip.PrefixFrom(low, low.BitLen())
		for p.Bits() > 0 {
			wider := netip.PrefixFrom(low, p.Bits()-1)
			if wider.Masked() != wider || r.high.Less(lastOf(wider)) {
				break
			}
			p = wider
		}
		list = append(list, p)
		if last := lastOf(p); last == r.high {
			return list
		} else {
			low = last.Next()
		}
	}
}
