package engine

import (
	"math/bits"
	"sync/atomic"
	"time"

	"sluice/filter"
)

const (
	// One of so many decisions is timed: two looks at the clock cost about as much
	// as a hit in the cache.
	sampleInterval = 64
	// Decisions of 2^latencies ns, which is 17 ms, or longer share a bucket.
	latencyBuckets = 25
)

// Sides says which ends of a flow are isolated in the direction that concerns
// them: bit 0 is the source in egress, bit 1 the destination in ingress.
type Sides uint8

// SidesOf are those of a verdict.
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

// Has says whether the flow is isolated in a direction.
func (s Sides) Has(d filter.Direction) bool { return s&(1<<d) != 0 }

// Verdicts counts verdicts by action, by reason and by what was isolated.
type Verdicts [2][filter.NumReasons][4]uint64

// Latency says how long decisions took: of the decisions that were timed, which
// are one in 64, Buckets[i] counts those of less than 2^i ns and no less than
// half of that; the last one also all that took longer.
type Latency struct {
	Buckets [latencyBuckets]uint64
	Sum     time.Duration
}

// Tally is what evaluators have decided, and how fast.
type Tally struct {
	Verdicts Verdicts
	Latency  Latency
}

// Add adds another evaluator's tally.
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

// tally is a Tally that one goroutine writes while others read. It shares no
// cache line with anything that another worker writes.
type tally struct {
	_        [64]byte
	verdicts [2][filter.NumReasons][4]atomic.Uint64
	buckets  [latencyBuckets]atomic.Uint64
	sum      atomic.Int64
	turn     uint32 // of decisions, for the sampling; the writer's alone
	_        [64]byte
}

// due says whether the next decision is to be timed.
func (t *tally) due() bool {
	t.turn++
	return t.turn%sampleInterval == 0
}

// took counts a decision that was timed.
func (t *tally) took(d time.Duration) {
	t.buckets[min(bits.Len64(uint64(max(d, 0))), latencyBuckets-1)].Add(1)
	t.sum.Add(int64(d))
}

// count counts a verdict.
func (t *tally) count(v *filter.Verdict) {
	t.verdicts[v.Action&1][min(v.Reason, filter.NumReasons-1)][SidesOf(v)].Add(1)
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
