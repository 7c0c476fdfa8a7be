package conntrack

import (
	"context"
	"net/netip"
	"slices"
	"sync"

	"sluice/filter"
)

// Fake is a Table in memory, for tests. It keeps the promises of Table and no
// more: a dump reports connections that were not asked for.
type Fake struct {
	// Interrupt, if set, is asked before each dump; with true, the dump reports
	// the first half and fails as one that was interrupted.
	Interrupt func() bool
	// BeforeSet, if set, is called before updates are applied: a test changes
	// the table there, as the world does between a dump and an update.
	BeforeSet func()

	mu     sync.Mutex
	conns  []*Conn
	dumps  int
	writes int
}

// fakeRef is the name that the fake gives a connection: like the kernel's, it is
// its five-tuple, and says nothing of what the destination is translated to.
func fakeRef(src netip.Addr, srcPort uint16, dst netip.Addr, dstPort uint16, proto filter.Protocol) Ref {
	r := Ref{family: uint8(src.BitLen())}
	raw := r.raw[:0]
	raw = append(raw, src.AsSlice()...)
	raw = append(raw, dst.AsSlice()...)
	raw = append(raw, byte(proto), byte(srcPort>>8), byte(srcPort), byte(dstPort>>8), byte(dstPort))
	r.len = uint8(len(raw))
	return r
}

// Add tracks a connection and returns its name. The original destination, as
// the source sees it, may be other than that of the key. A connection of the
// same name is replaced.
func (f *Fake) Add(key filter.Key, srcPort uint16, original netip.AddrPort, mark uint32) Ref {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := &Conn{Key: key, SrcPort: srcPort, Mark: mark}
	c.Ref = fakeRef(key.SrcAddr(), srcPort, original.Addr(), original.Port(), key.Protocol)
	f.conns = slices.DeleteFunc(f.conns, func(o *Conn) bool { return o.Ref == c.Ref })
	f.conns = append(f.conns, c)
	return c.Ref
}

// PickUp makes a connection one that the table has not seen begin.
func (f *Fake) PickUp(ref Ref) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		c.MidStream = c.MidStream || c.Ref == ref
	}
}

// Remove ends a connection.
func (f *Fake) Remove(ref Ref) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conns = slices.DeleteFunc(f.conns, func(c *Conn) bool { return c.Ref == ref })
}

// Mark returns a connection's mark, and whether there is such a connection.
func (f *Fake) Mark(ref Ref) (uint32, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		if c.Ref == ref {
			return c.Mark, true
		}
	}
	return 0, false
}

// Uses says how many dumps and how many updates the table has seen.
func (f *Fake) Uses() (dumps, updates int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dumps, f.writes
}

// Dump implements Table.
func (f *Fake) Dump(ctx context.Context, _ []netip.Addr, report func(*Conn)) error {
	f.mu.Lock()
	f.dumps++
	interrupted := f.Interrupt != nil && f.Interrupt()
	conns := make([]Conn, len(f.conns))
	for i, c := range f.conns {
		conns[i] = *c
	}
	f.mu.Unlock()
	if interrupted {
		conns = conns[:len(conns)/2]
	}
	for i := range conns {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		report(&conns[i])
	}
	if interrupted {
		return ErrInterrupted
	}
	return nil
}

// SetMarks implements Table.
func (f *Fake) SetMarks(ctx context.Context, updates []Update) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if f.BeforeSet != nil {
		f.BeforeSet()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writes += len(updates)
	for _, u := range updates {
		for _, c := range f.conns {
			if c.Ref == u.Ref {
				c.Mark = c.Mark&^u.Mask | u.Mark
			}
		}
	}
	return nil
}

// Close implements Table.
func (f *Fake) Close() error { return nil }
