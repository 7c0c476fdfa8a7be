package policy

import (
	"net/netip"
	"slices"
	"strings"
)

// local is what is known of the node that enforces, to tell its pods from others.
type local struct {
	node   string         // name of its Node
	ranges []netip.Prefix // in which its pods have their addresses
}

// SetLocalNode names the Node that enforces: pods whose spec.nodeName it is are its own.
// It is called before the first pod is set.
func (w *Store) SetLocalNode(name string) { w.local.node = name }

// setLocalRanges sets the ranges in which pods of the node that enforces have their
// addresses.
func (w *Store) setLocalRanges(ranges []netip.Prefix) {
	if slices.Equal(ranges, w.local.ranges) {
		return
	}
	w.local.ranges = ranges
	for a := range w.rivals {
		w.dirtyAddrs[a] = struct{}{}
	}
}

// beats reports whether p has an address that o claims too. No order of events decides
// it.
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
	Winner string   // the pod that counts, "namespace/name"
	Others []string // the other pods, in the same form, sorted
}

// Pods names the pods that claim the address, the one that counts first.
func (c Clash) Pods() string { return strings.Join(append([]string{c.Winner}, c.Others...), ", ") }

// Clashes lists the addresses that several pods claim of which none is being deleted,
// sorted. It is the state of the last Commit. A pod that is being deleted may have given
// its address back already.
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
