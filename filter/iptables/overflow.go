package iptables

import "fmt"

const (
	// MaxSourceShare is the highest rate that every kernel's hashlimit takes.
	MaxSourceShare = 10_000
	// overflowSources is how many sources hashlimit keeps account of at most, at some 100
	// bytes each. It forgets one a second or two after its last packet. A packet for
	// whose source there is no room is dropped (hashlimit_mt_common): so the room is
	// for more sources than the workers could answer a packet each in that time.
	overflowSources = 1 << 18
	// overflowBuckets are the places of its hash table, 8 bytes each. The kernel walks
	// them once a second.
	overflowBuckets = 1 << 14
	// burstsPerSecond is how much of its share a source may have at once: of 1,000,
	// 100 packets, a worker's work of 2 ms. Who is beyond finds an idle worker in the
	// crowd's queue, unless there is a crowd.
	burstsPerSecond = 10
	// limitUnits is what hashlimit divides by a rate; it keeps the whole part.
	limitUnits = 1_000_000
)

// Span is how many queues an agent has, with consecutive numbers: those that are
// balanced, and the crowd's. That number is its own also when no source is set
// apart, so that agents with other shares can take over from each other.
func (o Options) Span() int { return o.Queues + 1 }

// crowd is the rule that sets a source apart which has more than its share of
// packets to be asked about: what is beyond waits in a queue of its own. Nothing
// is denied by that. The queues are first in, first out, and one pod that sends
// to random addresses fills them all; so it fills the crowd's, and others find
// theirs as short as ever.
//
// A source goes on to have its share in the other queues. So a client that is
// merely busy is judged at least at that rate, whatever the crowd does; and packets
// of one flow that are asked about one by one, which conntrack calls INVALID or
// UNTRACKED, or which follow the first before its answer, may overtake each other.
//
// The name bears the rate, because a table that exists keeps the one that it was
// made with, whatever a later rule says. The rate is given as the kernel keeps it,
// which is how iptables-save prints it.
func (o Options) overflow() []string {
	if o.SourceShare == 0 {
		return nil
	}
	rate := limitUnits / (limitUnits / o.SourceShare)
	return []string{fmt.Sprintf("-m hashlimit --hashlimit-above %d/sec --hashlimit-burst %d --hashlimit-mode srcip"+
		" --hashlimit-name sluice-%d --hashlimit-htable-size %d --hashlimit-htable-max %d -j NFQUEUE --queue-num %d%s",
		rate, max(1, o.SourceShare/burstsPerSecond), rate, overflowBuckets, overflowSources, int(o.FirstQueue)+o.Queues, o.bypass())}
}
