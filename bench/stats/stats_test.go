package stats_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"sluice/bench/stats"
)

func TestQuantile(t *testing.T) {
	values := []float64{9, 1, 5, 3}
	for q, want := range map[float64]float64{0: 1, 0.5: 4, 0.75: 6, 1: 9} {
		if got := stats.Quantile(values, q); got != want {
			t.Errorf("quantile %v of %v: %v, want %v", q, values, got, want)
		}
	}
	if values[0] != 9 {
		t.Error("the values were sorted in place")
	}
	if got := stats.Median([]float64{7}); got != 7 {
		t.Errorf("median of one value: %v", got)
	}
	if !math.IsNaN(stats.Median(nil)) {
		t.Error("no values have a median")
	}
}

func TestRatios(t *testing.T) {
	if got := stats.Ratios([]float64{1, 6, 0, 9}, []float64{2, 3, 0}); !slices.Equal(got, []float64{0.5, 2}) {
		t.Errorf("%v, want [0.5 2]", got)
	}
}

// TestMannWhitney compares the exact test with published tables, and with counts of all
// permutations.
func TestMannWhitney(t *testing.T) {
	for _, tt := range []struct {
		a, b []float64
		want float64
	}{
		{[]float64{1, 2, 3}, []float64{4, 5, 6}, 0.1},            // 2 of the 20 ways to split the values are as extreme
		{[]float64{1, 2, 3, 4}, []float64{5, 6, 7, 8}, 2.0 / 70}, // 2 of the 70 ways to split the values are as extreme
		{[]float64{5, 6, 7, 8}, []float64{1, 2, 3, 4}, 2.0 / 70}, // the same with the two sides exchanged
		{[]float64{1, 2, 3, 5}, []float64{4, 6, 7, 8}, 4.0 / 70}, // U = 1
		{[]float64{1, 4}, []float64{2, 3}, 1},                    // U is in the middle of its range
		{[]float64{1, 2, 3, 4, 5, 6, 7}, []float64{8, 9, 10, 11, 12, 13, 14}, 2.0 / 3432},
		{[]float64{5, 5, 5, 5}, []float64{5, 5, 5, 5}, 1},
		{nil, []float64{1}, 1},
	} {
		if got := stats.MannWhitney(tt.a, tt.b); math.Abs(got-tt.want) > 1e-12 {
			t.Errorf("%v against %v: %v, want %v", tt.a, tt.b, got, tt.want)
		}
	}
}

// TestMannWhitneyTies first checks samples with ties, for which MannWhitney uses another
// formula: with one tie, the p-value must be within 0.05 of the p-value without the tie.
// Then it compares samples of one distribution, without ties: at most 130 of 2000
// comparisons may find a difference (p < 0.05).
func TestMannWhitneyTies(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	draw := func(n int, shift float64) (v []float64) {
		for range n {
			v = append(v, random.NormFloat64()+shift)
		}
		return v
	}
	for range 50 {
		a, b := draw(15, 0), draw(15, 0.7)
		tied, also := slices.Clone(a), slices.Clone(b)
		tied[0], also[0] = 99, 99
		untied, other := slices.Clone(a), slices.Clone(b)
		untied[0], other[0] = 99, 99.5
		x, y := stats.MannWhitney(tied, also), stats.MannWhitney(untied, other)
		if math.Abs(x-y) > 0.05 {
			t.Errorf("with one tie %v, without %v", x, y)
		}
	}
	false1 := 0
	for range 2000 {
		if stats.MannWhitney(draw(7, 0), draw(7, 0)) < 0.05 {
			false1++
		}
	}
	if false1 == 0 || false1 > 130 {
		t.Errorf("%d of 2000 tests of the same find a difference, want at most 5%%", false1)
	}
}

func TestDiscoveries(t *testing.T) {
	got := stats.Discoveries([]float64{0.04, 0.001, 0.012, 0.9, 0.02}, 0.05)
	// The five p-values in ascending order are compared with 0.01, 0.02, 0.03, 0.04 and 0.05.
	// The four lowest, 0.001, 0.012, 0.02 and 0.04, are within these bounds: discoveries.
	if !slices.Equal(got, []bool{true, true, true, false, true}) {
		t.Errorf("%v", got)
	}
	if got := stats.Discoveries([]float64{0.04, 0.9, 0.8}, 0.05); slices.Contains(got, true) {
		t.Errorf("%v: one of three at 0.04 must not be a discovery", got)
	}
	if got := stats.Discoveries(nil, 0.05); len(got) != 0 {
		t.Errorf("%v", got)
	}
}
