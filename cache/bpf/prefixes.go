package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/gaissmai/bart"

	"sluice/filter/policy"
)

// unowned is a value of the map prefixes, laid out as struct unowned in program.c.
type unowned struct {
	ID            policy.ID
	Host, Pending uint32
}

// prefix is a key of the map prefixes, laid out as struct prefix in program.c.
type prefix struct {
	Bits  uint32
	First [16]byte
}

func prefixOf(p netip.Prefix) prefix {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return prefix{uint32(bits), p.Addr().As16()}
}

// prefixMap is the map prefixes: an [ebpf.Map].
type prefixMap interface {
	Update(key, value any, flags ebpf.MapUpdateFlags) error
	Delete(key any) error
}

// prefixTable keeps the map prefixes, which says what is known of addresses without an endpoint. An
// entry has all that holds for its addresses, also by shorter prefixes, because the programs read
// only the entry of the longest one.
type prefixTable struct {
	in      prefixMap
	written bart.Table[entry]     // what the map has
	within  bart.Lite             // prefixes in written that repeat the ID of a shorter prefix; only those of which the programs need the ID
	pending *bart.Lite            // ranges of pods, and addresses of starting pods
	ranges  map[netip.Prefix]bool // the same
	hosts   *hosts
}

func newPrefixTable() *prefixTable {
	return &prefixTable{pending: new(bart.Lite), ranges: make(map[netip.Prefix]bool), hosts: newHosts(0)}
}

// entry is an entry of the map. It is named if policies name its prefix.
type entry struct {
	unowned
	named bool
}

// allIPv4 is always in the map; see program.c.
var allIPv4 = netip.MustParsePrefix("0.0.0.0/0")

// unusable reports whether a prefix must not be in the map. No packet has an address in it, and its key
// would be that of a prefix of IPv4.
func unusable(p netip.Prefix) bool { return !p.IsValid() || p.Addr().Is4In6() }

// edits are changes of the map, by prefix.
type edits map[netip.Prefix]edit

// edit is a change of an entry in two steps. The first is made while the programs read the table of
// endpoints of the previous snapshot, the second when none reads it any longer; see Cache.publish.
type edit struct {
	first, last entry
	gone        bool // the second step deletes the entry
}

// previous is what the map was written for.
type previous struct {
	snapshot *policy.Snapshot
	pending  *bart.Lite
}

// setPending sets the prefixes with pending addresses, and returns those that are new or gone.
func (t *prefixTable) setPending(prefixes []netip.Prefix) (changed []netip.Prefix) {
	now := make(map[netip.Prefix]bool, len(prefixes))
	pending := new(bart.Lite)
	for _, p := range prefixes {
		if p = p.Masked(); unusable(p) || now[p] {
			continue
		}
		now[p] = true
		pending.Insert(p)
		if !t.ranges[p] {
			changed = append(changed, p)
		}
	}
	for p := range t.ranges {
		if !now[p] {
			changed = append(changed, p)
		}
	}
	t.ranges, t.pending = now, pending
	return changed
}

// plan returns the changes of entries that follow if policies now name or no longer name some
// prefixes, and if the pending addresses or the hosts of others have changed: changes of their
// entries, and of those of longer prefixes in them. A prefix that policies name has an ID of its own,
// so that shorter ones do not matter to it.
func (t *prefixTable) plan(s *policy.Snapshot, before previous, named, others []netip.Prefix) edits {
	all := make(edits)
	for _, p := range slices.DeleteFunc(slices.Clone(named), unusable) {
		t.planOne(all, s, before, p)
		for in := range t.within.Subnets(p) {
			t.planOne(all, s, before, in)
		}
	}
	for _, p := range slices.DeleteFunc(slices.Clone(others), unusable) {
		t.planOne(all, s, before, p)
		for in := range t.written.Subnets(p) {
			t.planOne(all, s, before, in)
		}
	}
	return all
}

func (t *prefixTable) planOne(all edits, s *policy.Snapshot, before previous, p netip.Prefix) {
	if _, ok := all[p]; ok {
		return
	}
	named, _ := s.LongestPrefix(p)
	var e edit
	e.last.ID, e.last.named = named.ID, named.Prefix == p
	if t.pending.LookupPrefix(p) {
		e.last.Pending = 1
	}
	if p.IsSingleIP() {
		e.last.Host = t.hosts.at(p.Addr())
	}
	e.gone = !e.last.named && !t.ranges[p] && e.last.Host == 0 && p != allIPv4
	e.first = e.last
	was, known := t.written.Get(p)
	if before.snapshot != nil {
		if old, ok := before.snapshot.LongestPrefix(p); ok && old.Prefix.Bits() > named.Prefix.Bits() {
			e.first.ID = old.ID
		}
		if before.pending.LookupPrefix(p) {
			e.first.Pending = 1
		}
	}
	switch {
	case was.Host == e.last.Host, was.Host == 0:
	case e.last.Host == 0:
		e.first.Host = was.Host
	default:
		e.first.Host = several
	}
	for _, one := range []*entry{&e.first, &e.last} {
		if one.Pending == 1 {
			one.ID = 0 // the programs do not need it, so that the ranges in a new prefix stay as they are
		}
	}
	if known && !e.gone && was == e.first && was == e.last || !known && e.gone {
		return
	}
	all[p] = e
}

// begin makes the first step of the changes.
func (t *prefixTable) begin(all edits) error {
	for p, e := range all {
		if err := t.set(p, e.first); err != nil {
			return err
		}
	}
	return nil
}

// end makes the second step of the changes: it removes the entries that are gone, and writes the others
// as they stay.
func (t *prefixTable) end(all edits) error {
	if err := t.remove(all); err != nil {
		return err
	}
	for p, e := range all {
		if !e.gone {
			if err := t.set(p, e.last); err != nil {
				return err
			}
		}
	}
	return nil
}

// remove deletes the entries that are gone from the map, and takes them out of the changes.
func (t *prefixTable) remove(all edits) error {
	for p, e := range all {
		if !e.gone {
			continue
		}
		if err := t.in.Delete(prefixOf(p)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove prefix %s from the kernel's flow cache: %w", p, err)
		}
		t.written.Delete(p)
		t.within.Delete(p)
		delete(all, p)
	}
	return nil
}

func (t *prefixTable) set(p netip.Prefix, now entry) error {
	was, ok := t.written.Get(p)
	if ok && was == now {
		return nil
	}
	if !ok || was.unowned != now.unowned {
		if err := t.in.Update(prefixOf(p), now.unowned, ebpf.UpdateAny); err != nil {
			return fmt.Errorf("add prefix %s to the kernel's flow cache: %w", p, err)
		}
	}
	t.written.Insert(p, now)
	if now.named || now.Pending == 1 {
		t.within.Delete(p)
	} else {
		t.within.Insert(p)
	}
	return nil
}
