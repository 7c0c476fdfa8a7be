// Package stats evaluates small sets of measurements: the median, the spread, and whether
// two sets differ by more than chance.
//
// It assumes no distribution. Times on a shared machine have a long tail on one side, so
// means and standard deviations would describe the other load of the machine and not the
// subject of the measurement.
package stats

import (
	"cmp"
	"math"
	"slices"

	moremath "github.com/aclements/go-moremath/stats"
)

// Quantile returns the value below which a fraction q of the values lies, interpolated
// between two neighbors. It is NaN if there are no values. The values need no order.
func Quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(values))
	at := q * float64(len(s)-1)
	below := int(at)
	if below >= len(s)-1 {
		return s[len(s)-1]
	}
	return s[below] + (at-float64(below))*(s[below+1]-s[below])
}

// Median returns the median of the values.
func Median(values []float64) float64 { return Quantile(values, 0.5) }

// Ratios divides the values pairwise, up to the shorter length. The two values of a pair
// come from one round, within a minute and under the same other load of the machine, so the
// ratios of pairs spread less than the ratio of two medians. Pairs that cannot be divided
// are left out.
func Ratios(values, by []float64) []float64 {
	var r []float64
	for i := range min(len(values), len(by)) {
		if q := values[i] / by[i]; !math.IsNaN(q) && !math.IsInf(q, 0) {
			r = append(r, q)
		}
	}
	return r
}

// MannWhitney is the probability, by the two-sided rank test of Mann and Whitney, that two
// sets of values from one source are at least so far apart. With fewer than 4 values a side
// it cannot be below 0.05. The test is that of benchstat: it is exact for up to 50 values a
// side, or 25 with ties, and approximate beyond.
func MannWhitney(a, b []float64) float64 {
	result, err := moremath.MannWhitneyUTest(a, b, moremath.LocationDiffers)
	if err != nil {
		return 1 // one side is empty, or all values are equal
	}
	return min(1, result.P)
}

// Discoveries reports which of many tests count as a difference if at most the given share
// of these may be chance (Benjamini and Hochberg 1995). Without it, a comparison of a
// thousand figures at 0.05 each finds fifty changes where there are none.
func Discoveries(p []float64, share float64) []bool {
	order := make([]int, len(p))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int { return cmp.Compare(p[i], p[j]) })
	found := make([]bool, len(p))
	for rank := len(order); rank > 0; rank-- {
		if p[order[rank-1]] <= share*float64(rank)/float64(len(p)) {
			for _, i := range order[:rank] {
				found[i] = true
			}
			break
		}
	}
	return found
}
