package engine

import (
	"math/bits"
	"sync/atomic"
	"time"

	"sluice/filter"
)

const (
	// One in sampleInterval decisions is timed. Timing each one would cost too much:
	// reading the clock twice takes about as long as a cache hit.
	sampleInterval = 64
	// latencyBuckets is the number of buckets. The last one counts all decisions of 8.4 ms
	// (2^23 ns) or longer.
	latencyBuckets = 25
)

// Sides is a bit set of the isolated ends of a flow. Bit 0 is set if policies isolate the
// source for egress, bit 1 if policies isolate the destination for ingress.
type Sides uint8

// SidesOf returns the sides of a verdict.
func SidesOf(v *filter.Verdict) Sides {
	var s Sides
	if v.Egress.Isolation != nil || v.Egress.Rule != nil {
		s |= 1 << filter.Egress
	}
	if v.Ingress.Isolation != nil || v.Ingress.Rule != nil {
		s |= 1 << filter.Ingress
	}
	return s
}

// Has reports whether policies decided about the flow in a direction.
func (s Sides) Has(d filter.Direction) bool { return s&(1<<d) != 0 }

// Verdicts counts verdicts by action, by reason and by Sides.
type Verdicts [2][filter.NumReasons][4]uint64

// Latency is a histogram of how long decisions took. One in 64 decisions is timed.
// Buckets[i] counts decisions of at least 2^(i-1) and less than 2^i ns; the last bucket also
// counts all longer ones.
type Latency struct {
	Buckets [latencyBuckets]uint64
	Sum     time.Duration
}

// Tally holds counts of verdicts, and how long the decisions took.
type Tally struct {
	Verdicts Verdicts
	Rejected uint64 // denied packets that were rejected; Verdicts includes them
	Latency  Latency
	Denials  Denials
}

// Add adds o, the tally of another evaluator, to t.
func (t *Tally) Add(o *Tally) {
	for a := range t.Verdicts {
		for r := range t.Verdicts[a] {
			for s := range t.Verdicts[a][r] {
				t.Verdicts[a][r][s] += o.Verdicts[a][r][s]
			}
		}
	}
	for i := range t.Latency.Buckets {
		t.Latency.Buckets[i] += o.Latency.Buckets[i]
	}
	t.Rejected += o.Rejected
	t.Denials.add(&o.Denials)
	t.Latency.Sum += o.Latency.Sum
}

// tally is a Tally that one goroutine writes while others read it. The padding keeps it
// from sharing a cache line with data of another worker.
type tally struct {
	_        [64]byte
	verdicts [2][filter.NumReasons][4]atomic.Uint64
	rejected atomic.Uint64
	buckets  [latencyBuckets]atomic.Uint64
	sum      atomic.Int64
	turn     uint32 // number of decisions; only the writer uses it
	denials  denialCounter
	_        [64]byte
}

// due reports whether the next decision is timed.
func (t *tally) due() bool {
	t.turn++
	return t.turn%sampleInterval == 0
}

// took counts a timed decision of the given duration.
func (t *tally) took(d time.Duration) {
	t.buckets[min(bits.Len64(uint64(max(d, 0))), latencyBuckets-1)].Add(1)
	t.sum.Add(int64(d))
}

// count counts a verdict on n packets.
func (t *tally) count(v *filter.Verdict, n uint64) {
	t.verdicts[counted(v.Action)][min(v.Reason, filter.NumReasons-1)][SidesOf(v)].Add(n)
	if v.Reject {
		t.rejected.Add(n)
	}
	if v.Action == filter.Deny {
		t.denials.count(v, n)
	}
}

// Counter counts verdicts that come from no evaluator, such as those of the kernel. Its methods may be
// called concurrently.
type Counter struct{ tally tally }

// NewCounter returns a counter that shares a Series with other counters.
func NewCounter(series *Series) *Counter {
	c := new(Counter)
	c.tally.denials.series = series
	return c
}

// Count counts a verdict on n packets.
func (c *Counter) Count(v *filter.Verdict, n uint64) { c.tally.count(v, n) }

// Tally returns the counts.
func (c *Counter) Tally() *Tally { return c.tally.read() }

// Forget removes the named policies from the denials in Tally.
func (c *Counter) Forget(policies []string) { c.tally.denials.forget(policies) }

// counted returns the action under which a verdict is counted: Deny for all actions except
// Allow, because the kernel drops a packet that is not allowed.
func counted(a filter.Action) filter.Action {
	if a == filter.Allow {
		return filter.Allow
	}
	return filter.Deny
}

func (t *tally) read() *Tally {
	var out Tally
	for a := range t.verdicts {
		for r := range t.verdicts[a] {
			for s := range t.verdicts[a][r] {
				out.Verdicts[a][r][s] = t.verdicts[a][r][s].Load()
			}
		}
	}
	for i := range t.buckets {
		out.Latency.Buckets[i] = t.buckets[i].Load()
	}
	out.Rejected = t.rejected.Load()
	t.denials.addTo(&out.Denials)
	out.Latency.Sum = time.Duration(t.sum.Load())
	return &out
}
