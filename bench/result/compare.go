package result

import (
	"fmt"
	"io"
	"math"
	"slices"

	"sluice/bench/stats"
)

// Change is the difference of a figure between two results.
type Change struct {
	Key
	Old, New float64 // medians of the figure's values; if Ratio is set, medians of their ratios
	Ratio    bool    // the values were divided by those of the reference row
	P        float64 // p-value of the rank test
	// Real reports that the change is beyond the noise.
	Real bool
}

// Thresholds for Change.Real; see [Compare].
const (
	falseDiscoveryRate = 0.05 // share of the changes with Real set that may be due to chance
	minChange          = 0.02 // smallest change for which Real is set, relative to the old value
)

// Compare compares two results figure by figure. It ignores figures that only one of the
// results has, and figures for which neither more nor less is better.
//
// If a row has a reference row, Compare compares ratios, so that the speed of the machine
// on that day cancels out. With absolute, it compares the figures themselves. The values of
// the rounds are tested with the two-sided rank test of Mann and Whitney, which assumes no
// distribution. Because many figures are tested at once, Compare controls the false discovery
// rate (Benjamini and Hochberg), separately for each size of cluster: of the changes for which
// it sets Real, at most about one in twenty is due to chance. It sets Real only for changes of
// 2% or more.
func Compare(old, fresh *Result, absolute bool) []Change {
	var changes []Change
	for _, s := range fresh.Series {
		before := Series{s.Key, old.Values(s.Key)}
		if s.Better == "" || len(before.Values) == 0 {
			continue
		}
		a, b, ratio := before.Values, s.Values, false
		if x, y := old.Ratios(before), fresh.Ratios(s); !absolute && len(x) > 0 && len(y) > 0 {
			a, b, ratio = x, y, true
		}
		c := Change{Key: s.Key, Old: stats.Median(a), New: stats.Median(b), Ratio: ratio, P: stats.MannWhitney(a, b)}
		changes = append(changes, c)
	}
	// Control the false discovery rate separately for each size of cluster. With 7 rounds on
	// each side, the smallest possible p-value is 1/1716. If the roughly 1,000 figures of all
	// sizes were tested together, a single real change would need a p-value of 0.05/1000, and
	// could never be detected.
	for _, of := range fresh.Scenarios() {
		markReal(changes, of)
	}
	return changes
}

// markReal sets Real in those changes of one size of cluster that pass both thresholds.
func markReal(changes []Change, of Scenario) {
	var p []float64
	var its []*Change
	for i := range changes {
		if changes[i].Scenario == of {
			p, its = append(p, changes[i].P), append(its, &changes[i])
		}
	}
	for i, found := range stats.Discoveries(p, falseDiscoveryRate) {
		c := its[i]
		c.Real = found && math.Abs(c.New-c.Old) >= minChange*math.Abs(c.Old) && c.New != c.Old
	}
}

// Worse reports whether the change is for the worse.
func (c Change) Worse() bool { return (c.New < c.Old) == (c.Better == More) && c.New != c.Old }

// WriteChanges prints the changes beyond the noise, and the number of compared figures. It
// returns the number of figures that got worse.
func WriteChanges(w io.Writer, old, fresh *Result, changes []Change) (worse int, err error) {
	fmt.Fprintf(w, "old: %s\nnew: %s\n", old.place(), fresh.place())
	if old.Machine.Kernel != fresh.Machine.Kernel || old.Machine.CPU != fresh.Machine.CPU || old.Machine.Cores != fresh.Machine.Cores {
		fmt.Fprintln(w, "These are two machines, or two kernels: only ratios can be compared.")
	}
	t := Table{Head: []string{"", "load", "figure", "old", "new", "change", "p", ""}}
	for _, c := range changes {
		if !c.Real {
			continue
		}
		word := "better"
		if c.Worse() {
			word, worse = "WORSE", worse+1
		}
		name := c.Name
		if c.Ratio {
			name += ", ratio"
		}
		change := "–"
		if c.Old != 0 {
			change = fmt.Sprintf("%+.1f%%", 100*(c.New-c.Old)/math.Abs(c.Old))
		}
		t.Rows = append(t.Rows, []string{c.Scenario.String(), c.Row + " " + c.Load, name, number(c.Old), number(c.New), change, fmt.Sprintf("%.2g", c.P), word})
	}
	t.Title = fmt.Sprintf("%d figures compared, %d changed beyond the noise, %d for the worse", len(changes), len(t.Rows), worse)
	if len(t.Rows) > 0 {
		t.Head[1] = "row and load"
		err = t.Text(w)
	} else {
		fmt.Fprintf(w, "\n%s\n", t.Title)
	}
	if n := max(fewest(old), fewest(fresh)); n < 4 {
		fmt.Fprintf(w, "\nSome figures have %d values only: below 4 on both sides no difference can be told from chance. Measure with more --rounds.\n", n)
	}
	return worse, err
}

// fewest returns the smallest number of values that a figure of the result has.
func fewest(r *Result) int {
	n := math.MaxInt
	for _, s := range r.Series {
		n = min(n, len(s.Values))
	}
	return n
}

// Sort orders changes: first the changes for the worse, then all others. In both parts, the
// largest relative change comes first.
func Sort(changes []Change) {
	weight := func(c Change) float64 {
		w := math.Abs(c.New-c.Old) / max(1e-9, math.Abs(c.Old))
		if c.Worse() {
			w += 1e12
		}
		return -w
	}
	slices.SortStableFunc(changes, func(a, b Change) int {
		switch x, y := weight(a), weight(b); {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	})
}
