package result

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"

	"sluice/bench/stats"
)

// chart is a drawing with a line for each contender: a dot for each round's value,
// and a stroke at the middle. All values are seen, so that nobody has to believe in
// a bar.
type chart struct {
	title string
	lines []chartLine
	log   bool    // the scale is logarithmic
	mark  float64 // a value to hold the others against; 0 for none
}

// chartLine is a contender's line. Several groups of dots have several colours.
type chartLine struct {
	label  string
	groups [][]float64
}

// Sizes of a drawing, in pixels.
const (
	chartWidth  = 860
	labelWidth  = 290
	valueWidth  = 70
	lineHeight  = 26
	chartMargin = 28
)

// svg draws the chart. Colours are classes of the page's style, so that they fit
// light and dark.
func (c chart) svg() string {
	low, high := c.bounds()
	height := chartMargin*2 + lineHeight*len(c.lines)
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %d %d" role="img" aria-label="%s">`, chartWidth, height, html.EscapeString(c.title))
	fmt.Fprintf(&b, `<text class="title" x="0" y="16">%s</text>`, html.EscapeString(c.title))
	x := func(v float64) float64 {
		share := (v - low) / (high - low)
		if c.log {
			share = math.Log(v/low) / math.Log(high/low)
		}
		return labelWidth + share*(chartWidth-labelWidth-valueWidth)
	}
	for _, tick := range c.ticks(low, high) {
		fmt.Fprintf(&b, `<line class="grid" x1="%.1f" x2="%.1f" y1="%d" y2="%d"/>`, x(tick), x(tick), chartMargin, height-chartMargin)
		fmt.Fprintf(&b, `<text class="tick" x="%.1f" y="%d">%s</text>`, x(tick), height-10, html.EscapeString(number(tick)))
	}
	if c.mark != 0 {
		fmt.Fprintf(&b, `<line class="mark" x1="%.1f" x2="%.1f" y1="%d" y2="%d"/>`, x(c.mark), x(c.mark), chartMargin, height-chartMargin)
	}
	for i, l := range c.lines {
		y := chartMargin + lineHeight*i + lineHeight/2
		fmt.Fprintf(&b, `<text x="0" y="%d">%s</text>`, y+4, html.EscapeString(l.label))
		for g, values := range l.groups {
			for _, v := range values {
				fmt.Fprintf(&b, `<circle class="g%d" cx="%.1f" cy="%d" r="4"/>`, g, x(v), y)
			}
			if len(values) > 0 {
				m := stats.Median(values)
				fmt.Fprintf(&b, `<line class="g%d middle" x1="%.1f" x2="%.1f" y1="%d" y2="%d"/>`, g, x(m), x(m), y-9, y+9)
			}
		}
		if len(l.groups) == 1 && len(l.groups[0]) > 0 {
			fmt.Fprintf(&b, `<text class="value" x="%d" y="%d">%s</text>`, chartWidth, y+4, html.EscapeString(number(stats.Median(l.groups[0]))))
		}
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// bounds are what the scale begins and ends with: 0, unless it is logarithmic.
func (c chart) bounds() (low, high float64) {
	low, high = math.Inf(1), c.mark
	for _, l := range c.lines {
		for _, g := range l.groups {
			for _, v := range g {
				low, high = min(low, v), max(high, v)
			}
		}
	}
	if c.log {
		// To whole powers of ten, so that there are lines to read from.
		low = math.Pow(10, math.Floor(math.Log10(low)))
		return low, max(low*10, math.Pow(10, math.Ceil(math.Log10(high))))
	}
	if high <= 0 {
		high = 1
	}
	return min(0, low), high * 1.05
}

func (c chart) ticks(low, high float64) (ticks []float64) {
	if c.log {
		for t := low; t <= high*1.0001; t *= 10 {
			ticks = append(ticks, t)
		}
		return ticks
	}
	step := math.Pow(10, math.Floor(math.Log10(high-low)))
	for (high-low)/step < 4 {
		step /= 2
	}
	for t := 0.0; t <= high; t += step {
		ticks = append(ticks, t)
	}
	return ticks
}

// charts are the drawings of a size of cluster.
func (r *Result) charts(of Scenario) (charts []chart) {
	for _, l := range r.Loads {
		first, found := r.first(of, l)
		if !found {
			continue
		}
		if r.hasRatio(of, l) {
			c := chart{title: l.Label + ": " + first.Name + " as a share of the row it is held against", mark: 1}
			r.lines(&c, func(row Row) [][]float64 {
				s := Series{Key: Key{of, row.Name, l.Name, first}}
				s.Values = r.Values(s.Key)
				if ratios := r.Ratios(s); len(ratios) > 0 {
					return [][]float64{ratios}
				}
				return nil
			})
			charts = append(charts, c)
		}
		charts = append(charts, r.latencies(of, l)...)
	}
	return charts
}

// latencies draws the times of a load, its quantiles in several colours.
func (r *Result) latencies(of Scenario, l Load) []chart {
	var times []Metric
	for _, s := range r.Series {
		if s.Scenario == of && s.Load == l.Name && (s.Unit == "µs" || s.Unit == "ms") && s.Better == Less && !slices.Contains(times, s.Metric) {
			times = append(times, s.Metric)
		}
	}
	times = slices.DeleteFunc(times, func(m Metric) bool { return m.Unit != times[0].Unit })
	if len(times) == 0 {
		return nil
	}
	var names []string
	for _, m := range times {
		names = append(names, m.Name)
	}
	c := chart{title: l.Label + ": " + strings.Join(names, ", ") + " in " + times[0].Unit + " (logarithmic)", log: true}
	r.lines(&c, func(row Row) (groups [][]float64) {
		for _, m := range times {
			values := slices.Clone(r.Values(Key{of, row.Name, l.Name, m}))
			groups = append(groups, slices.DeleteFunc(values, func(v float64) bool { return v <= 0 })) // a logarithm has no place for 0
		}
		return groups
	})
	if len(c.lines) == 0 {
		return nil
	}
	return []chart{c}
}

// first is the first figure of a load.
func (r *Result) first(of Scenario, l Load) (Metric, bool) {
	metrics, _ := r.metrics(of, l)
	if len(metrics) == 0 {
		return Metric{}, false
	}
	return metrics[0], true
}

// lines adds a line for each row that has something to show.
func (r *Result) lines(c *chart, of func(Row) [][]float64) {
	for _, row := range r.Rows {
		groups := of(row)
		if slices.ContainsFunc(groups, func(g []float64) bool { return len(g) > 0 }) {
			c.lines = append(c.lines, chartLine{row.Label, groups})
		}
	}
}
