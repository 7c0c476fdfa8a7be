package policy_test

import (
	"testing"

	"sluice/filter"
	"sluice/filter/policy"
)

// between are flows between the ends of f that tell apart what policies can.
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

// What a verdict says of all packets between two addresses, the oracle says of each
// of them. A closed endpoint reaches, or is reached by, nobody.
func TestPairs(t *testing.T) {
	const clusters, flows = 400, 20
	said := map[filter.Action]int{}
	narrow, needless, closed := 0, 0, 0
	for seed := range uint64(clusters) {
		r := newChance(seed + 7000)
		c := r.cluster()
		c.shape = int(seed % policy.Shapes)
		s, _ := c.world().Commit()
		for range flows {
			f := r.flow(c)
			of := map[filter.Action]int{}
			all := between(f)
			for _, other := range all {
				of[c.judge(other).Action]++
			}
			v, judged := s.Decide(f.key()), c.judge(f)
			if v.Pair && of[v.Action] != len(all) {
				t.Fatalf("seed %d: %v is %v for the pair, but other packets are not\n%s", seed, f, v.Action, c)
			}
			if pair := s.Decide(f.key().Pair()); (pair.Action == filter.Allow) != (of[filter.Allow] == len(all)) {
				t.Fatalf("seed %d: %v, any packet, is %v; of %d, %d are allowed\n%s", seed, f, pair.Action, len(all), of[filter.Allow], c)
			}
			switch {
			case v.Pair:
				said[v.Action]++
			case len(of) == 1:
				needless++
			default:
				narrow++
			}
			src, dst := s.Endpoint(f.Src), s.Endpoint(f.Dst)
			if !judged.exempt() && (src.Effect(filter.Egress) == policy.Closed || dst.Effect(filter.Ingress) == policy.Closed) {
				closed++
				if of[filter.Deny] != len(all) || !v.Pair {
					t.Fatalf("seed %d: %v: one end is closed, and %d of %d are denied\n%s", seed, f, of[filter.Deny], len(all), c)
				}
			}
		}
	}
	t.Logf("allowed as pairs %d, denied %d; not as pairs %d, of which %d could have been; %d closed", said[filter.Allow], said[filter.Deny], narrow+needless, needless, closed)
	if said[filter.Allow] < 500 || said[filter.Deny] < 500 || narrow < 500 || closed < 100 {
		t.Error("the test has become blunt")
	}
	if needless*5 > narrow {
		t.Error("too many pairs are not seen to be all the same")
	}
}
