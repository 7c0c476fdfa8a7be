package matrix

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"sluice/filter"
)

// textWidth bounds the width of a table. In a wider table, columns are headed by numbers.
const textWidth = 140

// legend explains the cells of tables.
const legend = "A cell lists the open ports, TCP unless it names a protocol. all: every port; -: none; =: only ports that the containers declare"

// table is a part of the matrix that is shown as one table: all of it, or the flows in one direction.
type table struct {
	title         string // empty if the table is the whole matrix
	rows, columns []*Party
}

// tables returns the matrix as one table. If the matrix is restricted to namespaces, it returns one
// table for the flows into them, and one for the flows out of them.
func (m *Matrix) tables() []table {
	if len(m.options.Namespaces) == 0 {
		return []table{{"", m.From, m.To}}
	}
	in := func(p *Party) bool { return slices.Contains(m.options.Namespaces, p.Namespace) }
	out := func(p *Party) bool { return !in(p) }
	names := strings.Join(m.options.Namespaces, ", ")
	all := []table{
		{"Into " + names, m.From, which(m.To, in)},
		{"Out of " + names, which(m.From, in), which(m.To, out)},
	}
	return slices.DeleteFunc(all, func(t table) bool { return len(t.rows) == 0 || len(t.columns) == 0 })
}

func which(parties []*Party, f func(*Party) bool) (some []*Party) {
	for _, p := range parties {
		if f(p) {
			some = append(some, p)
		}
	}
	return some
}

// cells returns the texts of the table, including the heads of rows and columns.
func (m *Matrix) cells(t table) [][]string {
	rows := [][]string{{"FROM \\ TO"}}
	for _, to := range t.columns {
		rows[0] = append(rows[0], to.Name)
	}
	for _, from := range t.rows {
		row := []string{from.Name}
		for _, to := range t.columns {
			row = append(row, m.at[[2]*Party{from, to}].text())
		}
		rows = append(rows, row)
	}
	return rows
}

// WriteText writes tables with a row for each source and a column for each destination. With OnlyOpen,
// it writes a line for each pair instead.
func (m *Matrix) WriteText(out io.Writer) error {
	var b strings.Builder
	if m.options.OnlyOpen {
		m.writeList(&b)
	} else {
		for _, t := range m.tables() {
			if t.title != "" {
				b.WriteString(t.title + ":\n\n")
			}
			writeTable(&b, m.cells(t))
			b.WriteString("\n")
		}
	}
	b.WriteString(legend + m.marks() + ".\n" + m.ownNodes() + "Pairs: " + m.sumText() + ".\n")
	for _, line := range m.seenLines() {
		b.WriteString(line + "\n")
	}
	for _, line := range m.outside() {
		b.WriteString(line + "\n")
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// writeList writes one line for each pair.
func (m *Matrix) writeList(b *strings.Builder) {
	if m.Seen != nil && len(m.Flows) > 0 {
		m.writeSeenList(b)
		return
	}
	for _, c := range m.Flows {
		fmt.Fprintf(b, "%s → %s: %s\n", c.From, c.To, c.text())
	}
	if len(m.Flows) == 0 {
		b.WriteString("nothing is open\n")
	}
	b.WriteString("\n")
}

// ownNodes returns a sentence about flows between pods and their own nodes, if such flows exist that
// the cells do not show.
func (m *Matrix) ownNodes() string {
	if !slices.ContainsFunc(m.Flows, func(c *Cell) bool { return len(c.OwnNode) > 0 }) {
		return ""
	}
	return "Nodes are those that a pod does not run on: its own node always reaches it (JSON, CSV and HTML have both).\n"
}

// marks explains those marks of ports that occur in the matrix.
func (m *Matrix) marks() (text string) {
	used := make(map[string]bool)
	for _, c := range m.Flows {
		for _, s := range c.spans {
			used[s.verdict] = true
		}
	}
	for _, mark := range []struct{ verdict, text string }{
		{mixed, "; *: only for IPv4 or only for IPv6"},
		{depends, "; ?: depends on addresses that are not known"},
		{some, "; ~: only for some pairs"},
	} {
		if used[mark.verdict] {
			text += mark.text
		}
	}
	if m.Seen != nil {
		text += "; +: used in the flows; !: closed ports were tried"
	}
	return text
}

// writeTable writes a table. If the table is too wide, writeTable breaks the heads of columns between
// words. If it is still too wide, it replaces them by numbers, with a list of what each number stands
// for.
func writeTable(b *strings.Builder, rows [][]string) {
	if width(rows) > textWidth {
		rows = broken(rows)
	}
	if width(rows) > textWidth {
		rows = numbered(b, rows)
	}
	widths := columnWidths(rows)
	for _, row := range rows {
		var line strings.Builder
		for j, cell := range row {
			line.WriteString(cell + strings.Repeat(" ", widths[j]-utf8.RuneCountInString(cell)+2))
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
}

// broken returns the rows with heads of columns that are broken into several lines.
func broken(rows [][]string) [][]string {
	lines := [][]string{make([]string, len(rows[0]))}
	for j, name := range rows[0] {
		if j == 0 {
			lines[0][0] = name
			continue
		}
		for i, word := range strings.Fields(name) {
			if i == len(lines) {
				lines = append(lines, make([]string, len(rows[0])))
			}
			lines[i][j] = word
		}
	}
	return append(lines, rows[1:]...)
}

// numbered returns the rows with numbers as heads of columns. If the rows and the columns are the same
// parties, the heads of the rows get the numbers too; otherwise, numbered writes a list of the numbers
// and names.
func numbered(b *strings.Builder, rows [][]string) [][]string {
	heads := 0
	for heads < len(rows) && (heads == 0 || rows[heads][0] == "") {
		heads++
	}
	names := []string{}
	for j := 1; j < len(rows[0]); j++ {
		var words []string
		for _, line := range rows[:heads] {
			words = append(words, line[j])
		}
		names = append(names, strings.TrimSpace(strings.Join(words, " ")))
	}
	rows = rows[heads-1:]
	same := len(rows)-1 == len(names)
	for i, row := range rows[1:] {
		same = same && row[0] == names[i]
	}
	rows[0] = []string{"FROM \\ TO"}
	for i, name := range names {
		rows[0] = append(rows[0], fmt.Sprint(i+1))
		if same {
			rows[i+1][0] = fmt.Sprint(i+1, " ", name)
			continue
		}
		fmt.Fprintf(b, "%d %s\n", i+1, name)
	}
	if !same {
		b.WriteString("\n")
	}
	return rows
}

func columnWidths(rows [][]string) []int {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for j, cell := range row {
			widths[j] = max(widths[j], utf8.RuneCountInString(cell))
		}
	}
	return widths
}

func width(rows [][]string) int {
	sum := 0
	for _, w := range columnWidths(rows) {
		sum += w + 2
	}
	return sum
}

// markOf has the marks of ports that are open in part only, by verdict.
var markOf = map[string]string{mixed: "*", depends: "?", some: "~"}

// text lists the open ports, or the closed ones if these are fewer. It returns "" if policies do not
// decide about the cell.
func (c *Cell) text() string {
	text := c.openText()
	if c != nil && c.Seen != nil && c.Seen.tried() {
		text += " !"
	}
	return text
}

// bareText returns what text returns, without the marks about flows that were seen. The page adds these
// marks by itself, so that equal cells share a text.
func (c *Cell) bareText() string {
	bare := *c
	bare.Seen = nil
	return bare.openText()
}

// usedMark returns the mark "+" if at least one of the open ports that the function used selects was used.
// Otherwise it returns "".
func (c *Cell) usedMark(used func(SeenPort) bool) string {
	if c.Seen != nil && slices.ContainsFunc(c.Seen.Ports, func(p SeenPort) bool { return p.used() && used(p) }) {
		return "+"
	}
	return ""
}

// openText returns what text returns, without the mark "!" of closed ports that were tried.
func (c *Cell) openText() string {
	anyPort := func(SeenPort) bool { return true }
	switch {
	case c == nil:
		return ""
	case c.State == Self:
		return "self"
	case c.State == Closed:
		return "-"
	case c.State == Open && c.all():
		return "all" + c.usedMark(anyPort)
	}
	var open, shut []string
	marks := make(map[string]bool)
	for _, s := range runs(c.spans) {
		if s.verdict == denied {
			shut = append(shut, s.text())
			continue
		}
		open = append(open, s.text()+markOf[s.verdict]+c.usedMark(func(p SeenPort) bool { return s.ports().Contains(p.proto, p.number) }))
		marks[markOf[s.verdict]] = true
	}
	switch {
	case c.State == Declared:
		return "=" + strings.Join(open, ",")
	case c.all() && len(shut) == 0 && (len(marks) == 1 || marks["~"]):
		return "all" + mostDoubtful(marks) + c.usedMark(anyPort)
	case c.all() && len(shut) < len(open) && len(marks) == 1 && marks[""]:
		return "all" + c.usedMark(anyPort) + " but " + strings.Join(shut, ",")
	}
	return strings.Join(open, ",")
}

// mostDoubtful returns the strongest of the given marks, for a cell that has room for one.
func mostDoubtful(marks map[string]bool) string {
	for _, mark := range []string{"~", "?", "*"} {
		if marks[mark] {
			return mark
		}
	}
	return ""
}

// all reports whether the cell is about all ports, rather than about asked ones.
func (c *Cell) all() bool {
	return slices.ContainsFunc(c.spans, func(s span) bool { return s.proto == filter.ICMP })
}

// runs joins adjacent spans with the same verdict. If any span is open for some pairs only, runs also
// joins adjacent open spans with different verdicts, as open for some.
func runs(spans []span) (all []span) {
	any := slices.ContainsFunc(spans, func(s span) bool { return s.verdict == some })
	for _, s := range spans {
		n := len(all)
		if n == 0 || all[n-1].proto != s.proto || all[n-1].high+1 != s.low {
			all = append(all, s)
			continue
		}
		last := &all[n-1]
		switch {
		case last.verdict == s.verdict:
		case any && last.verdict != denied && s.verdict != denied:
			last.verdict = some
		default:
			all = append(all, s)
			continue
		}
		last.high = s.high
	}
	return all
}

// text returns the ports in a short form: "80", "8000-8100", "1-100/UDP", "SCTP".
func (s span) text() string {
	proto, ports, has := strings.Cut(s.ports().String(), " ")
	switch {
	case !has:
		return proto
	case s.proto == filter.TCP:
		return ports
	}
	return ports + "/" + proto
}
