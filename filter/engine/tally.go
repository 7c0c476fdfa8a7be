package engine

import (
	"math/bits"
	"sync/atomic"
	"time"

	"sluice/filter"
)

const (
	// sampleInterval is the number of decisions of which one is timed: reading the clock
	// twice costs about as much as a cache hit.
	sampleInterval = 64
	// latencyBuckets bounds the buckets: decisions of 17 ms or longer share the last one.
	latencyBuckets = 25
)

// Sides are the ends of a flow that are isolated: bit 0 is the source in egress, bit 1 the
// destination in ingress.
type Sides uint8

// SidesOf returns the sides of a verdict.
func SidesOf(v *filter.Verdict) Sides {
	var s Sides
	if v.Egress.Isolation != nil {
		s |= 1 << filter.Egress
	}
	if v.Ingress.Isolation != nil {
		s |= 1 << filter.Ingress
	}
	return s
}

// Has reports whether the flow is isolated in a direction.
func (s Sides) Has(d filter.Direction) bool { return s&(1<<d) != 0 }

// Verdicts counts verdicts by action, by reason and by isolated sides.
type Verdicts [2][filter.NumReasons][4]uint64

// Latency is how long decisions took. Of the timed decisions, one in 64, Buckets[i] counts
// those from 2^(i-1) to 2^i ns; the last bucket also all longer ones.
type Latency struct {
	Buckets [latencyBuckets]uint64
	Sum     time.Duration
}

// Tally counts the decisions of evaluators, and how long they took.
type Tally struct {
	Verdicts Verdicts
	Latency  Latency
}

// Add adds the tally of another evaluator.
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
	t.Latency.Sum += o.Latency.Sum
}

// tally is a Tally that one goroutine writes while others read. It shares no cache line with
// data of another worker.
type tally struct {
	_        [64]byte
	verdicts [2][filter.NumReasons][4]atomic.Uint64
	buckets  [latencyBuckets]atomic.Uint64
	sum      atomic.Int64
	turn     uint32 // decisions so far; only the writer uses it
	_        [64]byte
}

// due reports whether the next decision is timed.
func (t *tally) due() bool {
	t.turn++
	return t.turn%sampleInterval == 0
}

// took counts a timed decision.
func (t *tally) took(d time.Duration) {
	t.buckets[min(bits.Len64(uint64(max(d, 0))), latencyBuckets-1)].Add(1)
	t.sum.Add(int64(d))
}

// count counts a verdict.
func (t *tally) count(v *filter.Verdict) {
	t.verdicts[counted(v.Action)][min(v.Reason, filter.NumReasons-1)][SidesOf(v)].Add(1)
}

// counted is the action that a verdict counts as: the kernel drops what is not allowed.
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
	out.Latency.Sum = time.Duration(t.sum.Load())
	return &out
}
