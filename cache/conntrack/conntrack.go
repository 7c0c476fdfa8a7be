// Package conntrack makes live connections follow the policy.
//
// The kernel's rules let every packet of an allowed connection pass without a verdict. When
// the policy changes, a [Sweeper] evaluates the live connections of the changed endpoints
// again, with the same decision that new connections get, and rewrites two bits of their
// marks: allowed and revoked. The rules drop both directions of a revoked connection. A
// [Follower] sweeps after a publication if the verdict about a live connection may have
// changed; due.go lists the conditions.
//
// No verdict of an older snapshot is missed: the caller publishes the snapshot and waits
// for [sluice/filter/policy.Published.Synchronize] before it sweeps. From then on, every
// verdict of an older snapshot is in the mark of an entry of the table, and later entries
// get the verdict of the new snapshot.
//
// No entry is deleted: the next reply would create a new entry in the opposite direction,
// and would be taken for the first packet of a connection.
//
// [Table] is the kernel's table; [Netlink] implements it with ctnetlink.
package conntrack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"sluice/filter"
)

// Marks are the two bits of the connection mark that Sluice owns. No other bit is
// written. A connection with both bits is no longer allowed, and its packets are rejected where
// that is possible.
type Marks struct {
	Allowed uint32 // the connection is allowed and passes without a verdict
	Revoked uint32 // the connection is no longer allowed and is dropped
}

// Mask returns both bits.
func (m Marks) Mask() uint32 { return m.Allowed | m.Revoked }

// of returns the bits of the connection mark for a verdict.
func (m Marks) of(v *filter.Verdict) uint32 {
	switch v.Answer() {
	case filter.Allow:
		return m.Allowed
	case filter.Reject:
		return m.Mask()
	}
	return m.Revoked
}

// check returns an error unless each mark is set and the two have no bit in common.
func (m Marks) check() error {
	if m.Allowed == 0 || m.Revoked == 0 || m.Allowed&m.Revoked != 0 {
		return fmt.Errorf("marks allowed %#x and revoked %#x: both must be set, and have no bit in common", m.Allowed, m.Revoked)
	}
	return nil
}

// Conn is one tracked connection. It is valid only while it is being reported.
type Conn struct {
	// Key is the key that the connection's first packet has in the chain POSTROUTING of
	// mangle: its source is from before SNAT, its destination and port are from after DNAT.
	Key filter.Key
	// SrcPort is the source port; 0 unless Key.Transport is Ported.
	SrcPort uint16
	// MidStream is set if a later packet than the first of the connection made the entry.
	// That packet may be a reply, so the source in Key may be the server.
	MidStream bool
	// Closed is set if both ends of a TCP connection have closed it, or one has reset it. Its entry stays in
	// the table for some time, usually two minutes.
	Closed   bool
	tcpState uint8 // enum tcp_conntrack; 0 if it is not reported
	// Malformed is set if no reliable key can be derived from the entry, for example because
	// an IPv6 entry contains an IPv4-mapped address. Key is then meaningless.
	Malformed bool
	// Mark is the whole connection mark.
	Mark uint32
	// Ref identifies the connection for SetMarks.
	Ref Ref
}

// maxRef bounds the size of a Ref in bytes. The largest attributes are those of ICMPv6, which
// take 100: 92 for the tuple (4 header + 44 addresses + 36 protocol + 8 zone), and 8 for the
// entry's zone.
const maxRef = 104

// Ref identifies an entry of a table, in the table's own terms. It is comparable, and
// holds no reference to its Conn.
type Ref struct {
	family uint8
	len    uint8
	raw    [maxRef]byte
}

// bytes returns the identification as the table encodes it.
func (r *Ref) bytes() []byte { return r.raw[:r.len] }

// Update sets the bits in Mask of a connection's mark to those of Mark.
type Update struct {
	Ref        Ref
	Mark, Mask uint32
}

// ErrInterrupted means that the table was resized during a dump, so that connections may
// be missing. The dump must be repeated.
var ErrInterrupted = errors.New("dump of the connection table was interrupted")

// Table is the table of tracked connections. Its methods are not called
// concurrently, except that the function "report" may call SetMarks.
type Table interface {
	// Dump reports at least every connection that has one of the addresses as the source or
	// the destination of its key, and all connections if the list of addresses is nil. It calls
	// report() for one connection at a time. Connections that begin or end meanwhile may be
	// reported or not. If other connections may be missing, Dump returns ErrInterrupted,
	// possibly wrapped.
	Dump(ctx context.Context, among []netip.Addr, report func(*Conn)) error
	// SetMarks applies the updates in order, and has applied them all when it returns nil.
	// An update for a connection that is gone is not an error.
	SetMarks(ctx context.Context, updates []Update) error
	// Close releases the table's resources.
	Close() error
}
