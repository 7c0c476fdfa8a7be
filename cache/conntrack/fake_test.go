package conntrack

import (
	"context"
	"net/netip"
	"slices"
	"sync"

	"sluice/filter"
)

// Fake is a Table in memory, for tests. A dump reports all connections, including those
// that the caller did not ask for, because Table permits that too.
type Fake struct {
	// Interrupt, if set, is called before each dump. If it returns true, the dump reports
	// the first half of the connections and returns ErrInterrupted.
	Interrupt func() bool
	// BeforeSet, if set, is called before updates are applied. A test changes the table
	// there, because connections begin and end between a dump and an update.
	BeforeSet func()

	mu     sync.Mutex
	conns  []*Conn
	dumps  int
	writes int
}

// fakeRef returns the Ref of a connection. Like the kernel's, it contains the five-tuple
// and not the destination after translation.
func fakeRef(src netip.Addr, srcPort uint16, dst netip.Addr, dstPort uint16, proto filter.Protocol) Ref {
	r := Ref{family: uint8(src.BitLen())}
	raw := r.raw[:0]
	raw = append(raw, src.AsSlice()...)
	raw = append(raw, dst.AsSlice()...)
	raw = append(raw, byte(proto), byte(srcPort>>8), byte(srcPort), byte(dstPort>>8), byte(dstPort))
	r.len = uint8(len(raw))
	return r
}

// Add adds a connection and returns its Ref. "original" is the destination before translation;
// the destination in the key is the one after it. A connection with the same Ref is replaced.
func (f *Fake) Add(key filter.Key, srcPort uint16, original netip.AddrPort, mark uint32) Ref {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := &Conn{Key: key, SrcPort: srcPort, Mark: mark}
	c.Ref = fakeRef(key.SrcAddr(), srcPort, original.Addr(), original.Port(), key.Protocol)
	f.conns = slices.DeleteFunc(f.conns, func(o *Conn) bool { return o.Ref == c.Ref })
	f.conns = append(f.conns, c)
	return c.Ref
}

// SetMidStream marks a connection as picked up in the middle.
func (f *Fake) SetMidStream(ref Ref) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		c.MidStream = c.MidStream || c.Ref == ref
	}
}

// SetClosed marks a connection as closed by both ends.
func (f *Fake) SetClosed(ref Ref) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		c.Closed = c.Closed || c.Ref == ref
	}
}

// Remove ends a connection.
func (f *Fake) Remove(ref Ref) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conns = slices.DeleteFunc(f.conns, func(c *Conn) bool { return c.Ref == ref })
}

// Mark returns the mark of a connection, and whether the connection exists.
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

// Uses returns the number of dumps and of updates.
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
