package policy_test

import (
	"testing"

	"sluice/filter"
	"sluice/filter/policy"
)

// between returns flows between the ends of f, with every kind of port that random policies
// distinguish: the ports that policies name, the ports next to these, and no port.
func between(f flow) (all []flow) {
	for _, p := range []filter.Protocol{filter.TCP, filter.UDP, filter.SCTP} {
		f.Protocol, f.Transport = p, filter.Ported
		for _, n := range portNumbers {
			for _, port := range []uint16{uint16(n) - 1, uint16(n), uint16(n) + 1} {
				f.Port = port
				all = append(all, f)
			}
		}
		f.Port, f.Transport = 0, filter.Opaque
		all = append(all, f)
	}
	f.Protocol, f.Transport = filter.ICMP, filter.Portless
	return append(all, f)
}

// If Decide returns a verdict with Pair set, the oracle returns the same action for every flow
// between the two addresses. If the Effect of the source for egress or of the destination for
// ingress is Closed, the oracle denies all of these flows, unless policies do not apply to them
// at all (see exempt).
func TestPairs(t *testing.T) {
	const clusters, flows = 250, 20
	asPair := map[filter.Action]int{} // verdicts with Pair set
	// These count verdicts without Pair. mixed: the flows between the two addresses have different
	// verdicts. missed and ordered: all these flows have the same verdict; ordered is for clusters
	// with ClusterNetworkPolicies.
	mixed, missed, ordered := 0, 0, 0
	closed := 0 // flows with a closed end
	for seed := range uint64(clusters) {
		r := newChance(seed + 7000)
		c := r.cluster()
		c.shape = int(seed % policy.Shapes)
		s, _ := c.newStore().Commit()
		for range flows {
			f := r.flow(c)
			want := map[filter.Action]int{}
			all := between(f)
			for _, other := range all {
				want[c.judge(other).Action]++
			}
			v, judged := s.Decide(f.key()), c.judge(f)
			if v.Pair && want[v.Action] != len(all) {
				t.Fatalf("seed %d: %v is %v for the pair, but other packets are not\n%s", seed, f, v.Action, c)
			}
			if pair := s.Decide(f.key().Pair()); (pair.Action == filter.Allow) != (want[filter.Allow] == len(all)) && (pair.Action == filter.Allow || len(c.Cluster) == 0) {
				t.Fatalf("seed %d: the pair of %v is %v, but %d of %d flows are allowed\n%s", seed, f, pair.Action, want[filter.Allow], len(all), c)
			}
			switch {
			case v.Pair:
				asPair[v.Action]++
			case len(want) == 1 && len(c.Cluster) > 0:
				ordered++
			case len(want) == 1:
				missed++
			default:
				mixed++
			}
			src, dst := s.Endpoint(f.Src), s.Endpoint(f.Dst)
			if !judged.exempt() && !judged.ToNode && (src.Effect(filter.Egress) == policy.Closed || dst.Effect(filter.Ingress) == policy.Closed) {
				closed++
				if want[filter.Deny] != len(all) || !v.Pair {
					t.Fatalf("seed %d: %v: one end is closed, but only %d of %d flows are denied, or Pair (%t) is not set\n%s", seed, f, want[filter.Deny], len(all), v.Pair, c)
				}
			}
		}
	}
	t.Logf("Pair set: %d allowed, %d denied; not set: %d with differing verdicts, %d with equal ones, %d with ordered rules; one end closed: %d", asPair[filter.Allow], asPair[filter.Deny], mixed, missed, ordered, closed)
	if asPair[filter.Allow] < 500 || asPair[filter.Deny] < 500 || mixed < 300 || closed < 100 {
		t.Error("too few flows of some kind: the test covers too little")
	}
	if missed*5 > mixed || ordered > mixed {
		t.Error("Pair is not set for too many pairs whose flows all have one verdict")
	}
}
