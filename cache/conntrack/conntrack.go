// Package conntrack makes live connections follow the policy.
//
// The kernel's rules let every packet of a judged connection pass without
// asking. When the policy changes, what the connection's mark says has to change
// with it: a [Sweeper] judges the live connections of the endpoints that changed
// anew, by the same Decide that new connections get, and rewrites two bits of
// the mark: allowed and revoked. [TrackedFlows] knows under which keys connections may
// live, so that a change which turns no verdict about them, as most do, costs no
// look at the kernel's table. The rules drop both directions of a revoked
// connection. No entry is deleted, because the next reply would make a new one,
// the other way round, and be taken for the first packet of a connection.
//
// Of a TCP connection the kernel tells whether it saw it begin. If not, the entry may
// be the wrong way round, and both directions must be allowed ([Conn.MidStream]).
//
// No verdict of an older snapshot escapes: the caller publishes the snapshot and
// waits for [sluice/filter/policy.Published.Synchronize] before it sweeps. From then
// on every verdict that was given under an older snapshot stands in the mark of
// an entry of the table, and every entry that is made later is judged by the
// new one.
//
// The kernel's table stands behind [Table]; [Netlink] is the real one, by
// ctnetlink.
package conntrack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"sluice/filter"
)

// Marks are the two bits of the connection mark that are Sluice's own. No other
// bit is ever written.
type Marks struct {
	Allowed uint32 // the connection is allowed and passes unasked
	Revoked uint32 // the connection is no longer allowed and is dropped
}

// Mask is both bits.
func (m Marks) Mask() uint32 { return m.Allowed | m.Revoked }

// check says whether the bits can be told apart.
func (m Marks) check() error {
	if m.Allowed == 0 || m.Revoked == 0 || m.Allowed&m.Revoked != 0 {
		return fmt.Errorf("marks allowed %#x and revoked %#x: each must have a bit that the other has not", m.Allowed, m.Revoked)
	}
	return nil
}

// Conn is one tracked connection. It is only valid while it is being reported.
type Conn struct {
	// Key is what the connection's first packet looked like to the rules in
	// POSTROUTING: the source as it came in, the destination and its port after
	// translation.
	Key filter.Key
	// SrcPort is the source port; 0 unless Key.Transport is Ported.
	SrcPort uint16
	// MidStream is set if the entry was not made by the first packet of the
	// connection: its source may be the end that was connected to.
	MidStream bool
	// Malformed says that the entry has no key that could be trusted, as with an
	// IPv4-mapped address in an IPv6 header. Key then says nothing.
	Malformed bool
	// Mark is the whole connection mark.
	Mark uint32
	// Ref names the connection to SetMarks.
	Ref Ref
}

// maxRef is the most that a name can take, in bytes: an IPv6 tuple of ICMPv6
// with a zone of its own, and the zone of the entry.
const maxRef = 104

// Ref names an entry of a table, in the table's own terms. It can be compared,
// and holds no reference to the Conn that it came with.
type Ref struct {
	family uint8
	len    uint8
	raw    [maxRef]byte
}

// bytes is the name.
func (r *Ref) bytes() []byte { return r.raw[:r.len] }

// Update sets those bits of a connection's mark that are in Mask to what they
// are in Mark.
type Update struct {
	Ref        Ref
	Mark, Mask uint32
}

// ErrInterrupted says that the table changed its shape during a dump, so that
// connections may have been left out. The dump has to be repeated.
var ErrInterrupted = errors.New("dump of the connection table was interrupted")

// Table is the table of tracked connections. Its methods are not called
// concurrently, except that report may call SetMarks.
type Table interface {
	// Dump reports at least every connection that has one of the addresses as
	// the source or the destination of its key, and all connections if among is
	// nil. It calls report for one at a time. Connections that are made or vanish meanwhile may be reported or not.
	// It returns an error that is ErrInterrupted if others may be missing.
	Dump(ctx context.Context, among []netip.Addr, report func(*Conn)) error
	// SetMarks applies the updates in order, and has applied them all when it
	// returns nil. An update for a connection that is gone is no error.
	SetMarks(ctx context.Context, updates []Update) error
	// Close releases what the table holds.
	Close() error
}
