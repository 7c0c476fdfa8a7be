// Package stats evaluates small sets of measurements: the median, the spread, and whether
// two sets differ by more than chance.
//
// It assumes no distribution. Times on a shared machine have a long tail on one side, so
// means and standard deviations would describe the machine's other load instead of the
// subject of the measurement.
package stats

import (
	"cmp"
	"math"
	"slices"

	moremath "github.com/aclements/go-moremath/stats"
)

// Quantile returns the q-quantile of the values, for q from 0 (the smallest value) to 1 (the
// largest). Between two neighbors in the sorted order, it interpolates linearly. It returns
// NaN if there are no values. The values need not be sorted.
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

// Ratios divides the values pairwise, up to the shorter length. The two values of a pair come
// from one round: they were measured within a minute, while the machine had the same other
// load. So the ratios of pairs vary less than the ratio of two medians. Ratios leaves out
// pairs that cannot be divided.
func Ratios(values, by []float64) []float64 {
	var r []float64
	for i := range min(len(values), len(by)) {
		if q := values[i] / by[i]; !math.IsNaN(q) && !math.IsInf(q, 0) {
			r = append(r, q)
		}
	}
	return r
}

// MannWhitney returns the p-value of the two-sided rank test of Mann and Whitney: the
// probability that two sets of values differ at least as much as a and b, if both sets come
// from one distribution. If both sides have fewer than 4 values, the p-value is never below
// 0.05. The p-value is exact for up to 50 values on each side (up to 25 if some values are
// equal), and approximate for more. Benchstat uses the same test.
func MannWhitney(a, b []float64) float64 {
	result, err := moremath.MannWhitneyUTest(a, b, moremath.LocationDiffers)
	if err != nil {
		return 1 // the error means that one side is empty, or that all values are equal
	}
	return min(1, result.P)
}

// Discoveries reports for each p-value whether it counts as a real difference. It uses the
// method of Benjamini and Hochberg (1995): on average, at most the given share of the counted
// differences is due to chance. A fixed threshold has no such bound. With a threshold of 0.05,
// a comparison of 1,000 figures without any real difference would report about 50 differences.
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
