package policy

import (
	"net/netip"
	"slices"
	"strings"
)

// local holds what distinguishes the pods of this node from those of other nodes.
type local struct {
	node   string         // name of this node's Node object
	ranges []netip.Prefix // address ranges of this node's pods
}

// SetLocalNode sets the name of this node's Node object. Pods with this spec.nodeName run
// on this node. It must be called before the first pod is set.
func (w *Store) SetLocalNode(name string) { w.local.node = name }

// setLocalRanges sets the address ranges of this node's pods.
func (w *Store) setLocalRanges(ranges []netip.Prefix) {
	if slices.Equal(ranges, w.local.ranges) {
		return
	}
	w.local.ranges = ranges
	for a := range w.rivals {
		w.dirtyAddrs[a] = struct{}{}
	}
}

// beats reports whether p rather than o owns an address that both claim. The result does
// not depend on the order of events.
func (w *Store) beats(p, o *pod, a netip.Addr) bool {
	if p.local != o.local && w.inLocalRanges(a) {
		return p.local
	}
	return p.beats(o)
}

func (w *Store) inLocalRanges(a netip.Addr) bool {
	return slices.ContainsFunc(w.local.ranges, func(r netip.Prefix) bool { return r.Contains(a) })
}

// Clash is an address that several live pods claim.
type Clash struct {
	Addr   netip.Addr
	Winner string   // the pod that owns the address, as "namespace/name"
	Others []string // the other pods, as "namespace/name", sorted
}

// Pods returns the names of the pods that claim the address, separated by commas, the
// winner first.
func (c Clash) Pods() string { return strings.Join(append([]string{c.Winner}, c.Others...), ", ") }

// Clashes returns, sorted, the addresses that two or more live pods claim, with the winners
// as of the last Commit. It does not count a pod that is being deleted, because that pod may
// already have released its address.
func (w *Store) Clashes() []Clash {
	var all []Clash
	for a, rivals := range w.rivals {
		now := w.table.get(a)
		if now == nil || now.IsNode() {
			continue
		}
		c := Clash{Addr: a, Winner: now.String()}
		live := 0
		for _, p := range append([]*pod{w.owners[a]}, rivals...) {
			if !p.ending {
				live++
			}
			if name := p.String(); name != c.Winner {
				c.Others = append(c.Others, name)
			}
		}
		if live < 2 {
			continue
		}
		slices.Sort(c.Others)
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b Clash) int { return a.Addr.Compare(b.Addr) })
	return all
}
