package engine

import (
	"testing"
	"time"

	"sluice/cache"
	"sluice/filter"
	"sluice/filter/policy"
)

func TestTallyCounts(t *testing.T) {
	isolation, rule := &filter.Isolation{Policies: []string{"a/b"}}, &filter.Rule{Policy: "a/b", Action: filter.RuleAccepts}
	var one tally
	for _, v := range []filter.Verdict{
		{Action: filter.Allow, Reason: filter.NotIsolated},
		{Action: filter.Deny, Reason: filter.Malformed},
		{Action: filter.Allow, Reason: filter.RuleAllows, Ingress: filter.Side{Isolation: isolation, Rule: rule}},
		{Action: filter.Deny, Reason: filter.EgressDenied, Egress: filter.Side{Isolation: isolation}, Ingress: filter.Side{Isolation: isolation}},
		{Action: filter.Deny, Reason: filter.EgressDenied, Egress: filter.Side{Isolation: isolation}},
		{Action: filter.Deny, Reason: filter.EgressDenied, Egress: filter.Side{Isolation: isolation}},
	} {
		one.count(&v, 1)
	}
	var want Verdicts
	want[filter.Allow][filter.NotIsolated][0] = 1
	want[filter.Deny][filter.Malformed][0] = 1
	want[filter.Allow][filter.RuleAllows][1<<filter.Ingress] = 1
	want[filter.Deny][filter.EgressDenied][1<<filter.Egress|1<<filter.Ingress] = 1
	want[filter.Deny][filter.EgressDenied][1<<filter.Egress] = 2
	got := one.read()
	if got.Verdicts != want {
		t.Errorf("counted %v, want %v", got.Verdicts, want)
	}
	got.Add(one.read())
	if n := got.Verdicts[filter.Deny][filter.EgressDenied][1]; n != 4 {
		t.Errorf("the sum of two tallies has %d denials, want 4", n)
	}
	if s := Sides(2); s.Has(filter.Egress) || !s.Has(filter.Ingress) {
		t.Errorf("sides %d: egress %t, ingress %t", s, s.Has(filter.Egress), s.Has(filter.Ingress))
	}
}

func TestLatencyBuckets(t *testing.T) {
	var one tally
	for d, bucket := range map[time.Duration]int{-5: 0, 0: 0, 1: 1, 127: 7, 128: 8, 255: 8, 256: 9, time.Hour: latencyBuckets - 1} {
		before := one.buckets[bucket].Load()
		one.took(d)
		if one.buckets[bucket].Load() != before+1 {
			t.Errorf("%d ns are not in bucket %d", d, bucket)
		}
	}
	if sum := one.read().Latency.Sum; sum != time.Hour+127+128+255+256+1-5 {
		t.Errorf("the sum is %v", sum)
	}
}

// One in sampleInterval decisions is timed, and every one is counted, without allocations.
func TestEvaluatorTally(t *testing.T) {
	var published policy.Published
	e := New(Config{Published: &published}, cache.NewFlows(16))
	defer e.Close()
	const n = 10*sampleInterval + 1
	for range n {
		e.Evaluate([]byte{0}, filter.AtPostrouting)
	}
	got := e.Tally()
	if malformed := got.Verdicts[filter.Deny][filter.Malformed][0]; malformed != n {
		t.Errorf("%d of %d were counted", malformed, n)
	}
	var timed uint64
	for _, b := range got.Latency.Buckets {
		timed += b
	}
	if timed != n/sampleInterval {
		t.Errorf("%d of %d were timed, want %d", timed, n, n/sampleInterval)
	}
	if allocs := testing.AllocsPerRun(2*sampleInterval, func() { e.Evaluate([]byte{0}, filter.AtPostrouting) }); allocs != 0 {
		t.Errorf("counting takes %v allocations", allocs)
	}
}
