package policy

import (
	"iter"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
)

// prefixes holds the prefixes that the rules of policies name: those of ipBlocks and of their
// exceptions, networks, and the addresses of Nodes.
type prefixes struct {
	table   *prefixTable             // as of the last Commit
	added   map[netip.Prefix]*prefix // that are not in table
	changed []*prefix                // that the next Commit may have to add to table or to remove
}

// prefix is a prefix that policies name. Only the Store uses it.
type prefix struct {
	is   netip.Prefix
	id   ID
	uses int32 // of policies and drafts; Commit removes a prefix without a use
	// known is set if the prefix is in prefixes.table, and changed if it is in prefixes.changed.
	known, changed bool
}

// prefixTable holds the prefixes of a snapshot. Its numbers, IDs and lists never change.
type prefixTable struct {
	number uint64 // of the table among those of its store
	ids    *bart.Table[prefixValue]
	// If listed is set, set and removed are what has changed since the table with the previous number.
	listed  bool
	set     []PrefixID
	removed []netip.Prefix
}

// prefixValue has a copy of the ID, so that a look-up reads no further memory.
type prefixValue struct {
	id ID
	of *prefix
}

// PrefixID is a prefix that policies name, and the ID of its addresses that have no endpoint and are
// in no longer prefix.
type PrefixID struct {
	Prefix netip.Prefix
	ID     ID
}

func newPrefixes() prefixes {
	return prefixes{table: &prefixTable{ids: new(bart.Table[prefixValue])}, added: make(map[netip.Prefix]*prefix)}
}

// find returns the ID of the longest prefix with an address, or 0.
func (t *prefixTable) find(a netip.Addr) ID {
	if t.ids.Size() == 0 {
		return 0
	}
	found, _ := t.ids.Lookup(a)
	return found.id
}

// Prefixes yields the prefixes that policies name, except those of all addresses, in no particular order.
func (s *Snapshot) Prefixes() iter.Seq2[netip.Prefix, ID] {
	return func(yield func(netip.Prefix, ID) bool) {
		for p, v := range s.prefixes.ids.All() {
			if !yield(p, v.id) {
				return
			}
		}
	}
}

// LongestPrefix returns the longest prefix that policies name and that contains all of p.
func (s *Snapshot) LongestPrefix(p netip.Prefix) (longest PrefixID, ok bool) {
	is, found, ok := s.prefixes.ids.LookupPrefixLPM(p)
	return PrefixID{is, found.id}, ok
}

// PrefixChanges returns how the prefixes of the snapshot differ from those of an earlier snapshot of
// the same store: the prefixes that are new or have another ID, and those that are gone. It compares
// all prefixes if there were several changes in between, or many changed at once. The lists must not
// be changed.
func (s *Snapshot) PrefixChanges(before *Snapshot) (set []PrefixID, removed []netip.Prefix) {
	was, now := before.prefixes, s.prefixes
	switch {
	case was == now:
		return nil, nil
	case now.listed && now.number == was.number+1:
		return now.set, now.removed
	}
	for p, v := range now.ids.All() {
		if old, _ := was.ids.Get(p); old.id != v.id {
			set = append(set, PrefixID{p, v.id})
		}
	}
	for p := range was.ids.All() {
		if _, ok := now.ids.Get(p); !ok {
			removed = append(removed, p)
		}
	}
	return set, removed
}

// usePrefixes counts uses by a policy: of the next prefixes that it names, up to most. The prefixes of
// a draft do not come into the table before enterPrefixes.
func (w *Store) usePrefixes(p *policy, most int) {
	x, n := &w.prefixes, min(most, len(p.named))
	if p.prefixes == nil {
		p.prefixes = make([]*prefix, 0, len(p.named))
	}
	for _, is := range p.named[:n] {
		if is.Bits() == 0 {
			continue // all addresses of the family are in it, so that it tells none apart
		}
		e := x.find(is)
		if e == nil {
			e = &prefix{is: is, id: w.newID()}
			x.added[is] = e
		}
		e.uses++
		p.prefixes = append(p.prefixes, e)
	}
	if p.named = p.named[n:]; len(p.named) == 0 {
		p.named = nil
	}
}

// enterPrefixes makes the next Commit add all prefixes of a policy to the table.
func (w *Store) enterPrefixes(p *policy) {
	w.usePrefixes(p, len(p.named))
	for _, e := range p.prefixes {
		if !e.known {
			w.prefixes.change(e)
		}
	}
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

func (x *prefixes) find(is netip.Prefix) *prefix {
	if known, ok := x.table.ids.Get(is); ok {
		return known.of
	}
	return x.added[is]
}

func (x *prefixes) change(e *prefix) {
	if !e.changed {
		e.changed = true
		x.changed = append(x.changed, e)
	}
}

// commit returns the table of the next snapshot, and how it differs from the one before.
func (x *prefixes) commit() (now *prefixTable, set, removed []*prefix) {
	if len(x.changed) == 0 {
		return x.table, nil, nil
	}
	for _, e := range x.changed {
		e.changed = false
		switch is := e.uses > 0; {
		case is && !e.known:
			set = append(set, e)
		case !is && e.known:
			removed = append(removed, e)
		}
		e.known = e.uses > 0
		delete(x.added, e.is)
	}
	x.changed = nil
	if len(x.added) == 0 {
		x.added = make(map[netip.Prefix]*prefix) // a map never shrinks
	}
	if len(set)+len(removed) > 0 {
		x.table = x.table.with(set, removed)
	}
	return x.table, set, removed
}

const (
	// fewChanges is the number of changes up to which a table always shares its unchanged parts with
	// the table before it. Each change makes up to hundreds of allocations. For many changes, a copy of
	// the whole table is faster.
	fewChanges = 16
	// mostSearched is the number of prefixes up to which the addresses in each of them are searched.
	// Otherwise all addresses are.
	mostSearched = 1024
)

// with returns a table with more prefixes, and without others.
func (t *prefixTable) with(set, removed []*prefix) *prefixTable {
	next := &prefixTable{number: t.number + 1, ids: t.ids}
	n := len(set) + len(removed)
	if n <= fewChanges+t.ids.Size()/4 {
		next.list(set, removed)
	}
	if n <= fewChanges+t.ids.Size()/256 {
		for _, e := range set {
			next.ids = next.ids.InsertPersist(e.is, prefixValue{e.id, e})
		}
		for _, e := range removed {
			next.ids = next.ids.DeletePersist(e.is)
		}
		return next
	}
	next.ids = t.ids.Clone()
	for _, e := range set {
		next.ids.Insert(e.is, prefixValue{e.id, e})
	}
	for _, e := range removed {
		next.ids.Delete(e.is)
	}
	return next
}

// list stores what PrefixChanges returns.
func (t *prefixTable) list(set, removed []*prefix) {
	t.listed = true
	for _, e := range set {
		t.set = append(t.set, PrefixID{e.is, e.id})
	}
	for _, e := range removed {
		t.removed = append(t.removed, e.is)
	}
}

// outermost returns those prefixes that are in no other one. If there are many, it returns two
// prefixes with all addresses instead.
func outermost(list []*prefix) []netip.Prefix {
	switch {
	case len(list) == 0:
		return nil
	case len(list) > mostSearched:
		return []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
	}
	all := make([]netip.Prefix, len(list))
	for i, e := range list {
		all[i] = e.is
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	outer := all[:1]
	for _, p := range all[1:] {
		if !outer[len(outer)-1].Overlaps(p) {
			outer = append(outer, p)
		}
	}
	return outer
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
		last := lastOf(p)
		if last == r.high {
			return list
		}
		low = last.Next()
	}
}
