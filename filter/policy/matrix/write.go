package matrix

import (
	"encoding/csv"
	"fmt"
	"io"
	"strings"
	"time"

	"sluice/filter/policy/reach"
)

// WriteCSV writes a line for each pair and answer.
func (m *Matrix) WriteCSV(out io.Writer) error {
	w := csv.NewWriter(out)
	lines := [][]string{{"from", "to", "state", "own node", "verdict", "ports", "why"}}
	if m.Seen != nil {
		lines[0] = append(lines[0], seenColumns...)
	}
	add := func(c *Cell, own string, answers []Answer) {
		for i, a := range answers {
			line := []string{c.From, c.To, string(c.State), own, a.Verdict, strings.Join(a.Ports, ", "), a.Why}
			if m.Seen != nil {
				line = append(line, c.seenFields(&answers[i], own != "")...)
			}
			lines = append(lines, line)
		}
	}
	for _, c := range m.Flows {
		add(c, "", c.Answers)
		add(c, "yes", c.OwnNode)
	}
	return w.WriteAll(lines)
}

// WriteMarkdown writes tables, with the date and the digest of the inputs.
func (m *Matrix) WriteMarkdown(out io.Writer) error {
	var b strings.Builder
	b.WriteString("## Who can reach whom\n\n")
	if m.options.OnlyOpen {
		m.listMarkdown(&b)
	} else {
		for _, t := range m.tables() {
			if t.title != "" {
				b.WriteString("### " + reach.Markdown(t.title) + "\n\n")
			}
			writeMarkdownTable(&b, m.cells(t))
			b.WriteString("\n")
		}
	}
	fmt.Fprintf(&b, "%s%s.\n%s\nPairs: %s.\n", legend, reach.Markdown(m.marks()), m.ownNodes(), m.sumText())
	m.seenMarkdown(&b)
	if lines := m.outside(); len(lines) > 0 {
		b.WriteString("\nReached from outside:\n\n")
		for _, line := range lines {
			fmt.Fprintf(&b, "- %s\n", reach.Markdown(line))
		}
	}
	if len(m.LeftOut) > 0 {
		b.WriteString("\nLeft out:\n\n")
		for _, l := range m.LeftOut {
			fmt.Fprintf(&b, "- %s: %s\n", reach.Markdown(l.Pod), reach.Markdown(l.Why))
		}
	}
	if len(m.NotRead) > 0 {
		fmt.Fprintf(&b, "\nNot read: %s\n", reach.Markdown(textOf(m.NotRead)))
	}
	if text := m.stamp(); text != "" {
		b.WriteString("\n" + text + "\n")
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// stamp returns the date and the digest of the inputs, if they are known.
func (m *Matrix) stamp() string {
	var parts []string
	if !m.Date.IsZero() {
		parts = append(parts, m.Date.UTC().Format(time.RFC3339))
	}
	if m.Inputs != "" {
		parts = append(parts, "inputs "+m.Inputs)
	}
	return strings.Join(parts, ", ")
}

func (m *Matrix) listMarkdown(b *strings.Builder) {
	rows := [][]string{{"from", "to", "open ports"}}
	if m.Seen != nil {
		rows[0] = append(rows[0], "seen")
	}
	for _, c := range m.Flows {
		row := []string{c.From, c.To, c.text()}
		if m.Seen != nil {
			row = append(row, m.Seen.cellText(c))
		}
		rows = append(rows, row)
	}
	writeMarkdownTable(b, rows)
	b.WriteString("\n")
}

func writeMarkdownTable(b *strings.Builder, rows [][]string) {
	for i, row := range rows {
		for _, cell := range row {
			b.WriteString("| " + reach.Markdown(cell) + " ")
		}
		b.WriteString("|\n")
		if i == 0 {
			b.WriteString(strings.Repeat("| --- ", len(row)) + "|\n")
		}
	}
}

// WriteDot writes a graph in the language of Graphviz. It has an edge for each pair for which any port
// is open, with these ports. With flows, those that were never used are dashed, and closed ones that were
// tried are dotted.
func (m *Matrix) WriteDot(out io.Writer) error {
	var b strings.Builder
	b.WriteString("digraph matrix {\n  rankdir=LR\n  node [shape=box]\n")
	if text := m.dotLabel(); text != "" {
		fmt.Fprintf(&b, "  label=%s\n", quoted(text))
	}
	edge := func(c *Cell) bool { return c.State.Open() || c.Seen != nil && c.Seen.tried() }
	seen := make(map[string]bool)
	for _, c := range m.Flows {
		if edge(c) {
			seen[c.From], seen[c.To] = true, true
		}
	}
	namespace := ""
	for _, p := range m.union() {
		if p.Namespace != namespace && namespace != "" {
			b.WriteString("  }\n")
		}
		if p.Namespace != namespace && p.Namespace != "" {
			fmt.Fprintf(&b, "  subgraph %s {\n    label=%s\n", quoted("cluster_"+p.Namespace), quoted(p.Namespace))
		}
		namespace = p.Namespace
		switch {
		case namespace != "":
			fmt.Fprintf(&b, "    %s\n", quoted(p.Name))
		case seen[p.Name]:
			fmt.Fprintf(&b, "  %s [shape=ellipse]\n", quoted(p.Name))
		}
	}
	if namespace != "" {
		b.WriteString("  }\n")
	}
	for _, c := range m.Flows {
		switch {
		case c.State.Open():
			fmt.Fprintf(&b, "  %s -> %s [label=%s, color=%s%s]\n", quoted(c.From), quoted(c.To), quoted(c.text()), colorOf[c.State], c.seenStyle())
		case edge(c):
			fmt.Fprintf(&b, "  %s -> %s [label=%s, color=gray, style=dotted]\n", quoted(c.From), quoted(c.To), quoted(c.triedLabel()))
		}
	}
	b.WriteString("}\n")
	_, err := io.WriteString(out, b.String())
	return err
}

// dotLabel returns what a graph is named by: what is missing in it, and where its flows are from.
func (m *Matrix) dotLabel() string {
	var parts []string
	if len(m.NotRead) > 0 {
		parts = append(parts, "not read: "+textOf(m.NotRead))
	}
	if m.Seen != nil {
		parts = append(parts, "dashed: open and never used; dotted: closed and tried. "+m.Seen.sourceText())
	}
	return strings.Join(parts, "; ")
}

// colorOf has the colors of edges by state.
var colorOf = map[State]string{Open: "red", Declared: "green", Part: "orange"}

// quoted returns a text as an identifier of Graphviz.
func quoted(text string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(text) + `"`
}

// union returns the parties of rows and columns, each once, sorted by namespace.
func (m *Matrix) union() (all []*Party) {
	seen := make(map[*Party]bool)
	for _, list := range [][]*Party{m.From, m.To} {
		for _, p := range list {
			if !seen[p] {
				seen[p] = true
				all = append(all, p)
			}
		}
	}
	byNamespace(all)
	return all
}

// textOf joins the names of objects that were not read.
func textOf(list []fmt.Stringer) string {
	texts := make([]string, len(list))
	for i, n := range list {
		texts[i] = n.String()
	}
	return strings.Join(texts, ", ")
}
