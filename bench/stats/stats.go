// Package stats says what a handful of measurements is worth: the middle, the
// spread, and whether two handfuls differ by more than chance.
//
// Nothing here assumes a distribution. Times on a shared machine have a long tail
// on one side, so that means and their deviations would tell of the neighbours
// rather than of what was measured.
package stats

import (
	"cmp"
	"math"
	"slices"
)

// Quantile is the value below which a fraction q of the values lies, between two of
// them by proportion. It is NaN if there are none. The values need no order.
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

// Median is the middle value.
func Median(values []float64) float64 { return Quantile(values, 0.5) }

// Ratios divides pairwise, as far as both reach. What two contenders did in one
// round happened within a minute, on a machine in one mood: the ratios of pairs
// spread less than the ratio of two middles. Pairs that cannot be divided are left
// out.
func Ratios(values, by []float64) []float64 {
	var r []float64
	for i := range min(len(values), len(by)) {
		if q := values[i] / by[i]; !math.IsNaN(q) && !math.IsInf(q, 0) {
			r = append(r, q)
		}
	}
	return r
}

// MannWhitney is the probability, by the two-sided rank test of Mann and Whitney,
// that two sets of values from one source lie at least so far apart. It is exact
// up to 20 values a side without ties, and otherwise the normal approximation with
// correction for ties. With fewer than 4 a side it cannot get below 0.05.
func MannWhitney(a, b []float64) float64 {
	if len(a) == 0 || len(b) == 0 {
		return 1
	}
	u, ties := rankSum(a, b)
	if ties == 0 && len(a) <= 20 && len(b) <= 20 {
		return exact(u, len(a), len(b))
	}
	return normal(u, ties, float64(len(a)), float64(len(b)))
}

// rankSum returns U of the first set, and the sum of t³-t over groups of t equal
// values.
func rankSum(a, b []float64) (u, ties float64) {
	type ranked struct {
		value float64
		first bool
	}
	all := make([]ranked, 0, len(a)+len(b))
	for _, v := range a {
		all = append(all, ranked{v, true})
	}
	for _, v := range b {
		all = append(all, ranked{v, false})
	}
	slices.SortFunc(all, func(x, y ranked) int { return cmp.Compare(x.value, y.value) })
	sum := 0.0
	for i := 0; i < len(all); {
		end := i
		for end < len(all) && all[end].value == all[i].value {
			end++
		}
		t := float64(end - i)
		ties += t*t*t - t
		for ; i < end; i++ {
			if all[i].first {
				sum += float64(end) - (t-1)/2
			}
		}
	}
	n := float64(len(a))
	return sum - n*(n+1)/2, ties
}

// exact counts the orders of n and m values by their U.
func exact(u float64, n, m int) float64 {
	// ways[i][j][k]: orders of i and j values with U = k; by whether the largest
	// is one of the first set, which then beats all j of the others.
	ways := make([][][]float64, n+1)
	for i := range ways {
		ways[i] = make([][]float64, m+1)
		for j := range ways[i] {
			w := make([]float64, n*m+1)
			if i == 0 || j == 0 {
				w[0] = 1
			} else {
				for k := range w {
					w[k] = ways[i][j-1][k]
					if k >= j {
						w[k] += ways[i-1][j][k-j]
					}
				}
			}
			ways[i][j] = w
		}
	}
	total, tail := 0.0, 0.0
	low := min(u, float64(n*m)-u)
	for k, w := range ways[n][m] {
		total += w
		if float64(k) <= low {
			tail += w
		}
	}
	return min(1, 2*tail/total)
}

func normal(u, ties, n, m float64) float64 {
	all := n + m
	variance := n * m / 12 * (all + 1 - ties/(all*(all-1)))
	if variance <= 0 {
		return 1 // all are equal
	}
	z := max(0, math.Abs(u-n*m/2)-0.5) / math.Sqrt(variance)
	return math.Erfc(z / math.Sqrt2)
}

// Discoveries says which of many tests count when at most a share of those that
// count may be chance (Benjamini and Hochberg 1995). Whoever compares a thousand
// figures at 0.05 each finds fifty changes where there are none.
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
