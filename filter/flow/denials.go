package flow

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"

	"sluice/filter"
)

const (
	// MaxDenials bounds the distinct denials that are kept. All of them together take some 200 KiB.
	MaxDenials = 512
	// maxStrangers bounds the denials that have an unowned address of their own, such as an address
	// outside the cluster. Beyond it, denials of other unowned addresses are counted together, as
	// Denial.Many, so that a scan from many addresses does not displace the denials between pods.
	maxStrangers = 128
)

// Denials keeps the last distinct denials, whether anything watches or not. Its methods may be called
// concurrently.
type Denials struct {
	mu        sync.Mutex
	all       map[denialKey]*Denial
	strangers int // number of denials that have an unowned address of their own: see maxStrangers
	displaced uint64
}

// denialKey identifies equal denials. They have the same addresses, protocol and port, and the same
// policies deny them for the same reason. A zero address stands for many unowned addresses, unless the
// packet itself has no address. The policies are compared by pointer, because to compare their names would
// cost each denied packet an allocation.
type denialKey struct {
	filter.Key
	reason    filter.Reason
	rule      *filter.Rule
	isolation *filter.Isolation
	revoked   bool
}

// Denial is a set of equal denials.
type Denial struct {
	Entry              // of the last packet
	Packets     uint64 // if Entry.Revoked is set, the number of connections
	First, Last time.Time
	// Many is set if the denials of many unowned addresses are counted here. Entry has the address of
	// the last packet.
	Many bool

	stranger bool // whether the denial is counted in Denials.strangers
}

// Add counts a denied packet.
func (d *Denials) Add(e *Entry) { d.AddMany(e, 1, e.Time) }

// AddMany counts packets that were denied alike. e describes the last of them, and first is the time of
// the first.
func (d *Denials) AddMany(e *Entry, packets uint64, first time.Time) {
	k := denialKeyOf(e)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.all == nil {
		d.all = make(map[denialKey]*Denial)
	}
	known, many := d.all[k], false
	if known == nil && isStranger(e) && d.strangers >= maxStrangers {
		k, many = k.withoutStrangers(e), true
		known = d.all[k]
	}
	if known == nil {
		d.makeRoom()
		known = &Denial{First: first, Last: first, Many: many, stranger: isStranger(e) && !many}
		d.all[k] = known
		if known.stranger {
			d.strangers++
		}
	}
	known.Packets += packets
	if !e.Time.Before(known.Last) {
		known.Entry, known.Last = *e, e.Time
	}
	if first.Before(known.First) {
		known.First = first
	}
}

// makeRoom removes the denial whose last packet is the oldest, if there is no room for another denial.
func (d *Denials) makeRoom() {
	if len(d.all) < MaxDenials {
		return
	}
	var oldest denialKey
	var at *Denial
	for k, o := range d.all {
		if at == nil || o.Last.Before(at.Last) {
			oldest, at = k, o
		}
	}
	if at.stranger {
		d.strangers--
	}
	delete(d.all, oldest)
	d.displaced++
}

// Displaced returns the number of denials that are no longer kept, because there was no room for them.
func (d *Denials) Displaced() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.displaced
}

// All returns the denials, the most recent first.
func (d *Denials) All() []Denial {
	d.mu.Lock()
	all := make([]Denial, 0, len(d.all))
	for _, o := range d.all {
		all = append(all, *o)
	}
	d.mu.Unlock()
	slices.SortFunc(all, func(a, b Denial) int {
		return cmp.Or(b.Last.Compare(a.Last), strings.Compare(a.Key.String(), b.Key.String()))
	})
	return all
}

func denialKeyOf(e *Entry) denialKey {
	side := denying(&e.Verdict)
	return denialKey{e.Key, e.Verdict.Reason, side.Rule, side.Isolation, e.Revoked}
}

// isStranger reports whether an address of a denial is unowned: it belongs neither to a known pod nor to
// this node.
func isStranger(e *Entry) bool { return e.Src == nil || e.Dst == nil }

func (k denialKey) withoutStrangers(e *Entry) denialKey {
	if e.Src == nil {
		k.Src = [16]byte{}
	}
	if e.Dst == nil {
		k.Dst = [16]byte{}
	}
	return k
}

// denying returns the side of a verdict that denies. If no policy denies, it returns the zero Side.
func denying(v *filter.Verdict) filter.Side {
	if !v.Egress.Allows() {
		return v.Egress
	}
	if !v.Ingress.Allows() {
		return v.Ingress
	}
	return filter.Side{}
}
