package result

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"sluice/bench/stats"
)

// Table is a table of formatted figures, for any form of output.
type Table struct {
	Title string
	Head  []string
	Rows  [][]string
}

// Tables returns the tables of a scenario: one for the aims, and one for each load, with a row
// for each contender. If a contender has a reference row, the column of the load's first metric
// is followed by its ratio to the reference row's value, and by the lowest and highest ratio.
func (r *Result) Tables(of Scenario) (tables []Table) {
	if t := r.aims(of); len(t.Rows) > 0 {
		tables = append(tables, t)
	}
	for _, l := range r.Loads {
		if t := r.table(of, l); len(t.Rows) > 0 {
			tables = append(tables, t)
		}
	}
	return tables
}

// aims returns the table of aims.
func (r *Result) aims(of Scenario) Table {
	t := Table{Title: "Aims", Head: []string{"", "row", "load", "aim", "measured", "lowest–highest", ""}}
	for _, a := range r.Aims {
		if a.Scenario != of {
			continue
		}
		sign, word := map[string]string{More: "≥ ", Less: "≤ "}[a.Better], ""
		if a.Missed {
			word = "missed"
		}
		t.Rows = append(t.Rows, []string{a.Label, a.Row, a.Load, sign + number(a.Want), number(a.Got), number(a.Low) + "–" + number(a.High), word})
	}
	return t
}

func (r *Result) table(of Scenario, l Load) Table {
	t := Table{Title: l.Label, Head: []string{""}}
	metrics, none := r.metrics(of, l)
	if len(none) > 0 {
		t.Title += " (" + strings.Join(none, ", ") + ": none)"
	}
	ratio := r.hasRatio(of, l)
	for i, m := range metrics {
		t.Head = append(t.Head, strings.TrimSpace(m.Name+" "+m.Unit))
		if i == 0 && ratio {
			t.Head = append(t.Head, "ratio", "lowest–highest")
		}
	}
	for _, row := range r.Rows {
		cells, found := []string{row.Label}, false
		for i, m := range metrics {
			s := Series{Key: Key{of, row.Name, l.Name, m}}
			s.Values = r.Values(s.Key)
			found = found || len(s.Values) > 0
			cells = append(cells, cell(s.Values, i == 0 && ratio, !ratio))
			if i == 0 && ratio {
				cells = append(cells, ratioCells(r.Ratios(s))...)
			}
		}
		if found {
			t.Rows = append(t.Rows, cells)
		}
	}
	return t
}

// metrics returns the metrics that get a column in the table of a load, in the order of the row
// that has the most metrics. A count of errors that is 0 in all rows gets no column; metrics
// returns the names of such counts in none.
func (r *Result) metrics(of Scenario, l Load) (metrics []Metric, none []string) {
	rows := make(map[string][]Metric)
	happened := make(map[Metric]bool)
	for _, s := range r.Series {
		if s.Scenario == of && s.Load == l.Name {
			rows[s.Row] = append(rows[s.Row], s.Metric)
			happened[s.Metric] = happened[s.Metric] || slices.Max(s.Values) > 0
		}
	}
	for _, row := range r.Rows {
		if len(rows[row.Name]) > len(metrics) {
			metrics = slices.Clone(rows[row.Name])
		}
	}
	for _, row := range r.Rows {
		for _, m := range rows[row.Name] {
			if !slices.Contains(metrics, m) {
				metrics = append(metrics, m)
			}
		}
	}
	metrics = slices.DeleteFunc(metrics, func(m Metric) bool {
		if m.Unit != "" || m.Better != Less || happened[m] {
			return false
		}
		none = append(none, m.Name)
		return true
	})
	return metrics, none
}

// hasRatio reports whether any row of a load has a figure that the row's reference row has too.
func (r *Result) hasRatio(of Scenario, l Load) bool {
	for _, s := range r.Series {
		if s.Scenario == of && s.Load == l.Name && len(r.Ratios(s)) > 0 {
			return true
		}
	}
	return false
}

// cell formats the median. With spread, it adds half of the distance between the lowest and
// the highest value, in percent of the median. With bounds, it adds these two values.
func cell(values []float64, spread, bounds bool) string {
	if len(values) == 0 {
		return "–"
	}
	m, low, high := stats.Median(values), slices.Min(values), slices.Max(values)
	switch {
	case low == high || m == 0:
	case spread:
		return fmt.Sprintf("%s ±%.0f%%", number(m), 100*(high-low)/2/math.Abs(m))
	case bounds:
		return fmt.Sprintf("%s (%s–%s)", number(m), number(low), number(high))
	}
	return number(m)
}

func ratioCells(ratios []float64) []string {
	if len(ratios) == 0 {
		return []string{"1", ""}
	}
	return []string{
		fmt.Sprintf("%.3f", stats.Median(ratios)),
		fmt.Sprintf("%.3f–%.3f", slices.Min(ratios), slices.Max(ratios)),
	}
}

// number formats a figure with three significant digits, or a large figure in full.
func number(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v):
		return "–"
	case a >= 100, v == math.Trunc(v):
		return group(strconv.FormatFloat(v, 'f', 0, 64))
	case a >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case a >= 1:
		return strconv.FormatFloat(v, 'f', 2, 64)
	case a >= 0.1:
		return strconv.FormatFloat(v, 'f', 3, 64)
	}
	return strconv.FormatFloat(v, 'g', 2, 64)
}

// group puts commas between thousands.
func group(digits string) string {
	head, tail := digits, ""
	for len(head) > 3 && head[len(head)-4] != '-' {
		head, tail = head[:len(head)-3], ","+head[len(head)-3:]+tail
	}
	return head + tail
}

// Text writes all tables for a terminal.
func (r *Result) Text(w io.Writer) error {
	fmt.Fprintln(w, r.place())
	for _, s := range r.Scenarios() {
		fmt.Fprintf(w, "\n== %s\n", s)
		for _, t := range r.Tables(s) {
			if err := t.Text(w); err != nil {
				return err
			}
		}
	}
	for _, n := range r.Notes {
		fmt.Fprintf(w, "\nnote: %s\n", n)
	}
	return nil
}

// place returns a line that describes where and when the result was measured.
func (r *Result) place() string {
	m := r.Machine
	return fmt.Sprintf("%s; Linux %s, %s, %d cores; sluice %s; %s", r.Made.UTC().Format("2006-01-02 15:04 UTC"), m.Kernel, m.CPU, m.Cores, m.Sluice, m.Iptables)
}

// Text writes the table for a terminal.
func (t Table) Text(w io.Writer) error {
	fmt.Fprintf(w, "\n%s\n", t.Title)
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, row := range append([][]string{t.Head}, t.Rows...) {
		fmt.Fprintf(tw, "  %s\n", strings.Join(row, "\t"))
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("print a table: %w", err)
	}
	return nil
}

// markdown writes the table in Markdown.
func (t Table) markdown(w io.Writer) {
	fmt.Fprintf(w, "\n**%s**\n\n", t.Title)
	for i, row := range append([][]string{t.Head}, t.Rows...) {
		fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			fmt.Fprintf(w, "|---%s\n", strings.Repeat("|--:", len(row)-1)+"|")
		}
	}
}

// Page writes the result as a page in Markdown, with the command that repeats the
// measurement.
func (r *Result) Page(w io.Writer) error {
	fmt.Fprintf(w, `# The latest results

The harness wrote this page in %[2]s. To repeat the measurement:

    %[1]s --page bench/RESULTS.md

[README.md](README.md) explains it.

%[3]s
`, r.command(), minutes(r.Took), r.place())
	fmt.Fprint(w, "\nThe contenders:\n\n")
	for _, row := range r.Rows {
		fmt.Fprintf(w, "- **%s**: %s\n", row.Label, row.About)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(w, "\nNote: %s\n", n)
	}
	for _, s := range r.Scenarios() {
		fmt.Fprintf(w, "\n## %s\n", s)
		for _, t := range r.Tables(s) {
			t.markdown(w)
		}
	}
	return nil
}

// command returns the command that made the result.
func (r *Result) command() string {
	text := "bin/bench run"
	names := make([]string, 0, len(r.Options))
	for name := range r.Options {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		text += " --" + name + "=" + r.Options[name]
	}
	return text
}

func minutes(s Seconds) string {
	if s < 90 {
		return fmt.Sprintf("%.0f seconds", float64(s))
	}
	return fmt.Sprintf("%.0f minutes", float64(s)/60)
}
