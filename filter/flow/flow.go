// Package flow keeps records of what happens on a node: of connections that begin, of packets that are
// denied, and of connections that have ended.
//
// Records have three sources. The first is the verdicts of the workers. The second is the events of the
// connection table, which include connections that the kernel allows without a worker. The third is the
// events of the kernel's flow cache, about packets that it denies without a worker. A worker that allows a
// packet makes no record while connections are recorded from the connection table. Each connection thus
// has one record of its begin.
//
// A [Log] keeps the last records, and passes them to watchers. While nothing watches, the log records
// nothing, and a verdict costs one atomic load more. [Denials] counts the last distinct denials, whether
// anything watches or not.
package flow

import (
	"net/netip"
	"time"

	"sluice/filter"
	"sluice/filter/policy"
)

// Kind is what a record is about.
type Kind uint8

// The kinds of records.
const (
	// Opened: a connection has begun, and is allowed.
	Opened Kind = iota
	// Denied: a packet was dropped or rejected.
	Denied
	// Ended: a connection has ended.
	Ended
	// LeftOut: records are missing here. Count is their number.
	LeftOut
	// Unrecorded: nothing was recorded for Duration until Time, because nothing watched. If
	// OnlyConnections is set, denials were recorded and connections were not.
	Unrecorded
)

var kinds = [...]string{Opened: "allowed", Denied: "denied", Ended: "ended", LeftOut: "left-out", Unrecorded: "unrecorded"}

// String returns the kind as in JSON.
func (k Kind) String() string { return kinds[k] }

// Entry is a record as the log keeps it. It points to the pods and policies that were in force at its
// time. Only for watchers, a Describer converts it to a Record with texts.
type Entry struct {
	Kind    Kind
	Kernel  bool // the kernel has denied the packet without a worker
	Revoked bool // Denied is about a connection that was open, or idle, when the policies changed, not about a new attempt
	Time    time.Time
	Key     filter.Key
	SrcPort uint16
	// Verdict is the verdict about the packet. It is zero unless the kind is Opened or Denied.
	Verdict filter.Verdict
	// Src and Dst are the owners of the addresses: a pod or this node. They are nil for other addresses.
	Src, Dst *policy.Endpoint
	// To is the address and port to which the client has sent, before DNAT. For a Service, it differs from
	// the destination in Key. It is invalid if it is not known. Its port is 0 if the protocol has no
	// ports.
	To netip.AddrPort
	// Duration, Sent and Received describe a connection that has ended. Duration is 0 if it is not known.
	// Sent and Received are valid only if Counted is set, because the kernel does not always count
	// packets.
	Duration time.Duration
	// Idle is the part of Duration after the last packet of a connection that has ended.
	Idle           time.Duration
	Sent, Received Traffic
	Counted        bool
	// OnlyConnections may be set if the kind is Unrecorded. Its meaning is described there.
	OnlyConnections bool
	// Count is the number of missing records, if the kind is LeftOut.
	Count uint64
}

// Traffic counts packets and their bytes, IP headers included.
type Traffic struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}
