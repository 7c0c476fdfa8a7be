package policy_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"sluice/bench/testbed/worstcase"
	"sluice/filter/policy"
	"sluice/filter/policy/netpol"
)

// Bounds of the memory that compiling one policy may take. The worst policy that
// TestWorstPolicies has found takes about half of this memory.
const (
	keptPerByte      = 60        // bytes kept for each byte of the policy in etcd
	allocatedPerByte = 200       // bytes allocated for each byte of the policy in etcd
	extraBytes       = 256 << 10 // bytes in addition, for a policy of any size
)

// mutate changes one random field of a recipe, or two that belong together.
func mutate(m worstcase.Recipe, r *rand.Rand) worstcase.Recipe {
	few := func() int { return []int{0, 1, 2, 4, 8, 12, 16, 32, 100, 300}[r.IntN(10)] }
	switch r.IntN(15) {
	case 0:
		m.Layout = r.IntN(worstcase.Layouts)
	case 1, 2:
		m.Ports = few()
	case 3:
		m.Names = few()
	case 4, 5:
		m.Blocks = few()
	case 6:
		m.Excepts = few()
	case 7:
		m.V6 = !m.V6
	case 8:
		m.In, m.NotIn = few(), r.IntN(2)*few()
	case 9:
		m.Exists, m.Absent = few(), r.IntN(2)*few()
	case 10:
		m.Values = few()
	case 11:
		m.Namespaces = few()
	case 12:
		m.Reuse = few()
	case 13:
		m.Both = few()
	case 14:
		m.Requirements = few()
	}
	return m
}

// TestWorstPolicies searches for policies that take the most memory for their size, by hill
// climbing: it starts from random recipes, mutates them at random, and keeps a mutation if
// the policy does not take less memory. Every recipe that it tries must be within the bounds.
func TestWorstPolicies(t *testing.T) {
	size, starts, steps := 48<<10, 6, 40
	if testing.Short() || raceEnabled {
		starts, steps = 2, 10
	}
	most, recipe := 0.0, worstcase.Recipe{}
	for start := range starts {
		r := rand.New(rand.NewPCG(uint64(start), 7))
		at := worstcase.Recipe{Ports: 1, Blocks: 1, Identities: 3}
		for range 6 {
			at = mutate(at, r)
		}
		best := 0.0
		for range steps {
			next := mutate(at, r)
			cost, err := costOf(next, size)
			if err != nil {
				t.Fatal(err)
			}
			if cost >= best {
				best, at = cost, next
			}
		}
		if best > most {
			most, recipe = best, at
		}
	}
	t.Logf("worst: %.0f bytes kept for each byte of the policy: %v", most, recipe)
	if most < keptPerByte/6 {
		t.Error("the search finds no expensive policies any more")
	}
}

// costOf makes a policy of the given size by a recipe, and compiles it. It returns the ratio of
// the memory that the compiled policy keeps to the size of the policy in etcd. It returns an
// error if the memory exceeds a bound (keptPerByte, allocatedPerByte) or the estimate of
// policy.CostOf.
func costOf(m worstcase.Recipe, size int) (float64, error) {
	p := m.OfSize("worst", size)
	took, w, s := measure(m.Pods(), p)
	runtime.KeepAlive(w)
	runtime.KeepAlive(s)
	stored := uint64(p.Size())
	if raceEnabled {
		// With -race the bound does not hold: sync.Pool drops items at random, so regexp
		// allocates for each port name.
		took.allocated = 0
	}
	if took.kept > keptPerByte*stored+extraBytes || took.allocated > allocatedPerByte*stored+extraBytes {
		return 0, fmt.Errorf("a policy of %d bytes keeps %d and allocates %d: %v", stored, took.kept, took.allocated, m)
	}
	if estimate := uint64(policy.CostOf(netpol.Read(p))); took.kept > estimate+extraBytes {
		return 0, fmt.Errorf("a policy of %d bytes keeps %d and was estimated at %d: %v", stored, took.kept, estimate, m)
	}
	return float64(took.kept) / float64(stored), nil
}
