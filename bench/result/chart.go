package result

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"

	"sluice/bench/stats"
)

// chart is a drawing with one line of dots for each contender (see Row): a dot for the value of
// each round, and a stroke at the median. Unlike a bar, a line of dots shows every value.
type chart struct {
	title  string
	legend []string // names of the groups of dots, in order
	unit   string
	lines  []chartLine
	log    bool    // the scale is logarithmic
	mark   float64 // value to mark with a vertical line; 0 if there is none
}

// chartLine is a contender's line. Each group of dots has its own color.
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

// svg returns the chart as SVG. The colors are CSS classes, which the page defines for its
// light and dark modes.
func (c chart) svg() string {
	low, high := c.bounds()
	height := chartMargin*2 + lineHeight*len(c.lines)
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %d %d" role="img" aria-label="%s">`, chartWidth, height, html.EscapeString(c.title))
	fmt.Fprintf(&b, `<text class="title" x="0" y="16">%s</text>`, c.heading())
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

// heading returns the title, and the names of the groups in the colors of their dots.
func (c chart) heading() string {
	text := html.EscapeString(c.title)
	for i, name := range c.legend {
		sep := ", "
		if i == 0 {
			sep = ": "
		}
		text += fmt.Sprintf(`%s<tspan class="t%d">%s</tspan>`, sep, i, html.EscapeString(name))
	}
	if c.unit != "" {
		text += " in " + html.EscapeString(c.unit)
	}
	if c.log {
		text += " (logarithmic)"
	}
	return text
}

// bounds returns the ends of the scale. A linear scale includes 0.
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
		// The ends of the scale are powers of ten, so that the grid has at least two lines.
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

// charts returns the charts of a scenario.
func (r *Result) charts(of Scenario) (charts []chart) {
	for _, l := range r.Loads {
		metrics, _ := r.metrics(of, l)
		if len(metrics) == 0 {
			continue
		}
		if r.hasRatio(of, l) {
			charts = append(charts, r.shares(of, l, metrics[0]))
		}
		for _, unit := range []string{"µs", "ms", "µs/conn"} {
			charts = append(charts, r.figures(of, l, metrics, unit)...)
		}
	}
	return charts
}

// shares returns a chart of metric m of a load. The chart shows, for each row, the row's value in
// each round divided by the value of its reference row in the same round.
func (r *Result) shares(of Scenario, l Load, m Metric) chart {
	c := chart{title: l.Label + ": " + m.Name + " as a share of the row it is held against", mark: 1}
	low, high := 1.0, 1.0
	r.lines(&c, func(row Row) [][]float64 {
		s := Series{Key: Key{of, row.Name, l.Name, m}}
		s.Values = r.Values(s.Key)
		ratios := r.Ratios(s)
		if len(ratios) == 0 {
			return nil
		}
		low, high = min(low, slices.Min(ratios)), max(high, slices.Max(ratios))
		return [][]float64{ratios}
	})
	c.log = low > 0 && high/low > 10 // on a linear scale, ratios near 1 could not be distinguished
	return c
}

// figures returns one chart of a load, or none if it would be empty. The chart shows the
// metrics that have the given unit and for which less is better, each in its own color.
func (r *Result) figures(of Scenario, l Load, metrics []Metric, unit string) []chart {
	c := chart{title: l.Label, unit: unit, log: unit != "µs/conn"}
	var drawn []Metric
	for _, m := range metrics {
		if m.Unit == unit && m.Better == Less {
			drawn, c.legend = append(drawn, m), append(c.legend, m.Name)
		}
	}
	r.lines(&c, func(row Row) (groups [][]float64) {
		for _, m := range drawn {
			values := slices.Clone(r.Values(Key{of, row.Name, l.Name, m}))
			if c.log { // a logarithmic scale has no 0
				values = slices.DeleteFunc(values, func(v float64) bool { return v <= 0 })
			}
			groups = append(groups, values)
		}
		return groups
	})
	if len(c.lines) == 0 {
		return nil
	}
	return []chart{c}
}

// lines adds to c a line for each row that has values.
func (r *Result) lines(c *chart, of func(Row) [][]float64) {
	for _, row := range r.Rows {
		groups := of(row)
		if slices.ContainsFunc(groups, func(g []float64) bool { return len(g) > 0 }) {
			c.lines = append(c.lines, chartLine{row.Label, groups})
		}
	}
}
