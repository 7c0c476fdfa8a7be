// Package iptables installs the iptables rules that send new pod connections to the
// queues and let allowed connections pass, and keeps them in place.
//
// [Options] select marks and queues; [Options.Wanted] returns the text of the rules. A
// [Manager] applies the rules and restores them after a change by another program.
// [Cleanup] removes all of them.
//
// The rules are in chains whose names begin with [Chain]. The first rule of POSTROUTING in the
// table mangle jumps to [Chain] itself: there the destination is after DNAT, the source is before
// SNAT, and the filter rules of other programs cannot accept a packet first. The first rules of
// other built-in chains jump to further chains only when these are needed:
//
//   - PREROUTING, to drop forged sources, unless the package guard drops them;
//   - INPUT, while a policy may deny what pods send to their node;
//   - FORWARD, and chains of the table filter, while denied packets may be rejected: see
//     reject.go.
//
// Where mangle of nf_tables cannot be used, the rules are in a separate table: see place and
// ownTable.
//
// Every change is one transaction of iptables-restore --noflush: a packet traverses either the
// old rules or the new ones. The library go-iptables is used only to read: it writes one rule
// at a time, so connections would pass without a verdict while a chain is being filled. The
// built-in chains, also called hooks, are never removed, because the kernel would drop every
// queued packet. Netlink is used where iptables fails because of rules that it cannot express,
// and for notifications of changes.
package iptables

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"strings"
)

// Family is an IP version. Both families share all code of the package.
type Family uint8

// The two families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Families lists both families in the order in which they are handled and printed.
var Families = []Family{IPv4, IPv6}

// String returns "IPv4" or "IPv6".
func (f Family) String() string { return fmt.Sprintf("IPv%d", uint8(f)) }

// command returns the name of the family's command without a backend.
func (f Family) command() string {
	if f == IPv6 {
		return "ip6tables"
	}
	return "iptables"
}

// Backend is one of the kernel's two packet filters behind iptables. Packets traverse the rules
// of both, but a command for one backend does not see the rules of the other.
type Backend string

// The backends, as written in the flag --iptables.
const (
	// Auto selects the backend that the node's other rules use.
	Auto   Backend = "auto"
	NFT    Backend = "nft"
	Legacy Backend = "legacy"
)

// Options configure the rules. Errors of Validate use the names of the command's flags.
type Options struct {
	// AllowedMark is the bit for "allowed": in the connection mark for the life of the
	// connection, and in the packet mark from the verdict until the rules have read it.
	AllowedMark uint32
	// RevokedMark is the bit of the connection mark for "no longer allowed".
	RevokedMark uint32
	// FirstQueue is the number of the first queue, and Queues is the number of queues. Their
	// numbers are consecutive, and the overflow queue has the next one. Each queue has one
	// worker.
	FirstQueue uint16
	Queues     int
	// SourceShare is the number of packets per second that a source may send to these
	// queues. Excess packets go to the overflow queue; 0 disables the limit.
	SourceShare int
	// FailOpen accepts packets while their queue has no reader; otherwise they are dropped.
	FailOpen bool
	// AnySource omits the rules that drop forged sources.
	AnySource bool
	// Guarded omits the chain that drops forged sources, and the jump to it, because the guard
	// drops them at every interface. Even an empty chain adds 1.5% to the cost of a
	// connection.
	Guarded bool
	// NodeSources are address ranges of pods. Packets from them to this node are judged. Without
	// such ranges, there are no rules about packets to the node.
	NodeSources []netip.Prefix
	// Reject adds the rules with which denied packets can be rejected. Without it, there are no
	// rules in FORWARD.
	Reject bool
	// BridgePorts adds the rules about resets for clients behind ports of a bridge. Set it only if
	// the kernel module br_netfilter is loaded: the match physdev of these rules would load it.
	BridgePorts bool
	// Backend selects the iptables backend.
	Backend Backend
	// AllowPin and DenyPin are the paths of pinned BPF programs that the rules call before
	// the queue: the first matches packets that may pass, the second packets that must not.
	// In POSTROUTING, the rules call those at ForwardedPin and OthersPin instead of the first.
	// Each may be empty; see the package cache/bpf.
	AllowPin, DenyPin string
	// ForwardedPin and OthersPin are the paths of two programs that match like the one at AllowPin: the
	// first only TCP, UDP and SCTP packets that arrived on an interface, the second only the others.
	// Both are set if AllowPin is.
	ForwardedPin, OthersPin string
	// LaterPin and RejectPin are the paths of two more programs, for FORWARD and INPUT: the first
	// matches packets that other programs decide in POSTROUTING, the second packets that
	// must not pass and are rejected. Each may be empty.
	LaterPin, RejectPin string
}

// Defaults are the options of an agent that is started without flags.
var Defaults = Options{
	AllowedMark: 0x10,
	RevokedMark: 0x20,
	Queues:      4,
	SourceShare: 1000,
	Backend:     Auto,
}

// kubeMarks are the bits that kube-proxy and kubelet set in packet marks on every node. If one
// of these bits were AllowedMark, a packet to be masqueraded would count as allowed.
const kubeMarks = 0x4000 | 0x8000

// maxPinLen bounds the path of a pinned program, including its final zero byte (XT_BPF_PATH_MAX).
const maxPinLen = 512

// Mask returns AllowedMark and RevokedMark. Sluice writes no other bit of a mark.
func (o Options) Mask() uint32 { return o.AllowedMark | o.RevokedMark }

// Validate reports every invalid option with a hint.
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
		errs = append(errs, fmt.Errorf("--queue-first %d: queue numbers end at 65535, and the overflow queue follows the others, so give 0 to 65534", o.FirstQueue))
	case o.Queues < 1 || o.Queues > room:
		errs = append(errs, fmt.Errorf("--queues %d with --queue-first %d: queue numbers end at 65535, and the overflow queue follows the others, so give 1 to %d", o.Queues, o.FirstQueue, room))
	}
	if o.SourceShare < 0 || o.SourceShare > MaxSourceShare {
		errs = append(errs, fmt.Errorf("--source-share %d: give 1 to %d new connections a second, or 0 for no limit", o.SourceShare, MaxSourceShare))
	}
	for _, path := range []string{o.AllowPin, o.DenyPin, o.ForwardedPin, o.OthersPin, o.LaterPin, o.RejectPin} {
		if strings.ContainsAny(path, " \t\n\"'\\") || len(path) >= maxPinLen {
			errs = append(errs, fmt.Errorf("the path of a BPF program, %q, is not a word that iptables reads: give one without blanks and quotes, shorter than %d bytes", path, maxPinLen))
		}
	}
	switch o.Backend {
	case Auto, NFT, Legacy:
	default:
		errs = append(errs, fmt.Errorf("--iptables %q: give auto, nft or legacy", o.Backend))
	}
	return errors.Join(errs...)
}
