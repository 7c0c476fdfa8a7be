// Package flow records what happens on a node: connections that are allowed, packets that are
// denied, and connections that end.
//
// Records come from three places, and are the same everywhere: the verdicts of the workers, the
// events of the connection table, which show what the kernel lets pass without a worker, and those of
// the kernel's flow cache, which show what it denies without one. The workers' allowed packets are
// left to the connection table, so that a connection has one record.
//
// A [Log] keeps the last records for those who watch. While nothing watches, it keeps none, and costs
// a verdict one atomic load. [Denials] counts the last distinct denials, whether anything watches or
// not.
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
	// Unrecorded: nothing has watched for Duration until now, so that what happened was not recorded.
	// If OnlyConnections is set, denials were.
	Unrecorded
)

var kinds = [...]string{Opened: "allowed", Denied: "denied", Ended: "ended", LeftOut: "left-out", Unrecorded: "unrecorded"}

// String returns the kind as in JSON.
func (k Kind) String() string { return kinds[k] }

// Entry is a record as the log keeps it: with what is in force when it happens, and without the
// texts, which only those who watch need.
type Entry struct {
	Kind    Kind
	Kernel  bool // the kernel has answered without a worker
	Time    time.Time
	Key     filter.Key
	SrcPort uint16
	// Verdict is that of the packet; zero unless the kind is Opened or Denied.
	Verdict filter.Verdict
	// Src and Dst are the owners of the addresses; nil outside the cluster.
	Src, Dst *policy.Endpoint
	// To is the destination that the client has talked to, if it is not that of the key: that of a
	// Service. Otherwise it is invalid.
	To netip.AddrPort
	// Duration, Sent and Received are those of a connection that has ended. Duration is 0 if it is not
	// known, and Counted reports whether the kernel has counted packets.
	Duration       time.Duration
	Sent, Received Traffic
	Counted        bool
	// OnlyConnections is for Unrecorded.
	OnlyConnections bool
	// Count is the number of records that LeftOut stands for.
	Count uint64
}

// Traffic counts packets and their bytes, IP headers included.
type Traffic struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}
