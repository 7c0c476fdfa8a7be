// Package iptables keeps the iptables rules that bring new pod connections to the
// queues, and that let judged ones pass without asking.
//
// [Options] say which marks and queues; [Options.Wanted] is the text of the
// rules. A [Manager] applies them, and restores them when somebody flushes,
// changes or reorders them. [Traces] takes all of it away again.
//
// The rules stand in chains of our own, named by [Chain] and beginning with its
// name, behind one jump that is the first rule of mangle's POSTROUTING. There
// the destination is after DNAT and the source before SNAT, and nobody's filter
// rules can accept ahead of us. Another jump is the first rule of mangle's
// PREROUTING, where packets are still as they came, and drops those with a source
// that they cannot have; it is left out where the guard does that. Nothing else is touched. Where mangle of nf_tables cannot be
// used, the same rules are in a table of our own: see place and ownTable.
//
// Every change is one transaction of iptables-restore, because go-iptables,
// which reads the rules, writes one rule at a time: between flushing a chain and
// filling it again its connections would pass unjudged. With iptables-restore
// --noflush a packet meets the old rules or the new ones and nothing between,
// and the hook itself is never taken away: that would drop every packet that
// waits in a queue. Over netlink goes what iptables refuses to do beside rules of others
// that it cannot express, and what must be known faster than a command can tell.
package iptables

import (
	"errors"
	"fmt"
	"math/bits"
	"strings"
)

// Family is an IP version. All that the package does for one it does for both,
// by the same code.
type Family uint8

// The two families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Families are both, in the order in which they are handled and printed.
var Families = []Family{IPv4, IPv6}

// String gives "IPv4" or "IPv6".
func (f Family) String() string { return fmt.Sprintf("IPv%d", uint8(f)) }

// command is the name of the family's command without its backend.
func (f Family) command() string {
	if f == IPv6 {
		return "ip6tables"
	}
	return "iptables"
}

// Backend is which of the kernel's two packet filters iptables talks to. A rule
// in one is not seen in the other, although packets meet both.
type Backend string

// The backends, as the flag spells them.
const (
	// Auto takes the backend that the node's other rules use.
	Auto   Backend = "auto"
	NFT    Backend = "nft"
	Legacy Backend = "legacy"
)

// Options say what the rules are to be. The names of flags in the errors of
// Validate are those of the command.
type Options struct {
	// AllowedMark is the bit that says "allowed": in the connection mark for the
	// life of the connection, and in the packet mark from the verdict until the
	// rules have seen it.
	AllowedMark uint32
	// RevokedMark is the bit of the connection mark that says "no longer allowed".
	RevokedMark uint32
	// FirstQueue is the number of the first of Queues NFQUEUEs. One worker reads
	// each. The one behind them is the crowd's.
	FirstQueue uint16
	Queues     int
	// SourceShare is how many packets a second a source may have in these queues.
	// What it sends beyond goes to the crowd's; 0 leaves that one out.
	SourceShare int
	// FailOpen lets packets pass while nobody reads their queue; otherwise they
	// are dropped.
	FailOpen bool
	// AnySource leaves out the rules that drop forged sources.
	AnySource bool
	// Guarded leaves out the chain of these rules and the jump to it, because the guard
	// drops forged sources at every interface. Even an empty chain there costs 1.5% of a
	// connection.
	Guarded bool
	// Backend is which iptables to use.
	Backend Backend
	// AllowPin and DenyPin are the paths of pinned BPF programs, which are asked
	// before the queue: whether a packet may pass, and whether it must not. Each
	// may be empty; see the package cache/bpf.
	AllowPin, DenyPin string
}

// Defaults are the options that hold unless flags say otherwise.
var Defaults = Options{
	AllowedMark: 0x10,
	RevokedMark: 0x20,
	Queues:      4,
	SourceShare: 1000,
	Backend:     Auto,
}

// The bits that kube-proxy and kubelet set in packet marks on every node. A
// packet that is to be masqueraded would count as allowed if we shared them.
const kubeMarks = 0x4000 | 0x8000

// maxPinLen is the room that the kernel has for a path in a rule
// (XT_BPF_PATH_MAX), with the byte that ends it.
const maxPinLen = 512

// Mask is both of our bits. No other bit of a mark is ever written.
func (o Options) Mask() uint32 { return o.AllowedMark | o.RevokedMark }

// Validate says all that is wrong with the options, and what would be right.
func (o Options) Validate() error {
	var errs []error
	for _, m := range []struct {
		flag string
		mark uint32
	}{{"--allowed-mark", o.AllowedMark}, {"--revoked-mark", o.RevokedMark}} {
		switch {
		case bits.OnesCount32(m.mark) != 1:
			errs = append(errs, fmt.Errorf("%s %#x has %d bits set: give a number with exactly one, such as 0x10", m.flag, m.mark, bits.OnesCount32(m.mark)))
		case m.mark&kubeMarks != 0:
			errs = append(errs, fmt.Errorf("%s %#x is a bit that kube-proxy uses: give another, such as 0x10", m.flag, m.mark))
		}
	}
	if o.AllowedMark == o.RevokedMark {
		errs = append(errs, fmt.Errorf("--allowed-mark and --revoked-mark are both %#x: give two different bits", o.AllowedMark))
	}
	switch room := 1<<16 - 1 - int(o.FirstQueue); {
	case room == 0:
		errs = append(errs, fmt.Errorf("--queue-first %d: queue numbers end at 65535, and the crowd's queue comes behind the others, so give 0 to 65534", o.FirstQueue))
	case o.Queues < 1 || o.Queues > room:
		errs = append(errs, fmt.Errorf("--queues %d with --queue-first %d: queue numbers end at 65535, and the crowd's queue comes behind the others, so give 1 to %d", o.Queues, o.FirstQueue, room))
	}
	if o.SourceShare < 0 || o.SourceShare > MaxSourceShare {
		errs = append(errs, fmt.Errorf("--source-share %d: give 1 to %d new connections a second, or 0 to set no source apart", o.SourceShare, MaxSourceShare))
	}
	for _, path := range []string{o.AllowPin, o.DenyPin} {
		if strings.ContainsAny(path, " \t\n\"'\\") || len(path) >= maxPinLen {
			errs = append(errs, fmt.Errorf("the path of a BPF program, %q, is no word that iptables reads: give one without blanks and quotes, shorter than %d bytes", path, maxPinLen))
		}
	}
	switch o.Backend {
	case Auto, NFT, Legacy:
	default:
		errs = append(errs, fmt.Errorf("--iptables %q: give auto, nft or legacy", o.Backend))
	}
	return errors.Join(errs...)
}
