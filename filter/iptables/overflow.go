package iptables

import "fmt"

const (
	// MaxSourceShare is the highest rate that the hashlimit of every kernel accepts.
	MaxSourceShare = 10_000
	// overflowSources bounds the sources that hashlimit tracks, at some 100 bytes each. An
	// entry expires one or two seconds after the last packet of its source. If the table is
	// full, hashlimit drops the packets of further sources (hashlimit_mt_common). So the bound
	// exceeds the number of packets that the workers could answer in two seconds.
	overflowSources = 1 << 18
	// overflowBuckets is the number of buckets of hashlimit's table, 8 bytes each. The kernel
	// walks the table once a second.
	overflowBuckets = 1 << 14
	// burstsPerSecond sets the burst of a source: the number of packets that it may send at
	// once is its limit in packets per second, divided by burstsPerSecond. With a limit of
	// 1,000, the burst is 100 packets, which take a worker 2 ms. Excess packets go to the
	// overflow queue, whose worker is usually idle.
	burstsPerSecond = 10
	// limitUnits is the number of hashlimit's time units in a second. hashlimit stores a rate
	// as the time between two packets, in whole units: limitUnits divided by the packets per
	// second, rounded down.
	limitUnits = 1_000_000
)

// Span returns how many consecutive queue numbers an agent uses: those of the balanced queues
// and that of the overflow queue. The number of the overflow queue is reserved even if there is
// no per-source limit, so that agents with different limits can take over from each other.
func (o Options) Span() int { return o.Queues + 1 }

// overflow returns the rule that sends the packets of a source beyond its limit to the
// overflow queue. The rule denies nothing. Queues are first in, first out, and without the
// rule, one pod that sends to random addresses would fill them all. With it, the pod fills
// only the overflow queue, and the queues of other sources stay short.
//
// The packets of a source within its limit stay in the balanced queues. So during a flood by
// another source, a client that is merely busy gets verdicts at least at the rate of its limit.
//
// Two queued packets of a flow may be in different queues and overtake each other. A flow has
// two queued packets only if conntrack calls them INVALID or UNTRACKED, or if the second arrives
// before the first has its verdict.
//
// The name of hashlimit's table includes the rate, because an existing table keeps the rate of
// its creation. The rate is rounded as the kernel stores it and iptables-save prints it.
func (o Options) overflow() []string {
	if o.SourceShare == 0 {
		return nil
	}
	rate := limitUnits / (limitUnits / o.SourceShare)
	return []string{fmt.Sprintf("-m hashlimit --hashlimit-above %d/sec --hashlimit-burst %d --hashlimit-mode srcip"+
		" --hashlimit-name sluice-%d --hashlimit-htable-size %d --hashlimit-htable-max %d -j NFQUEUE --queue-num %d%s",
		rate, max(1, o.SourceShare/burstsPerSecond), rate, overflowBuckets, overflowSources, int(o.FirstQueue)+o.Queues, o.bypass())}
}
