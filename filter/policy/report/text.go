package report

import (
	"strings"
	"unicode/utf8"
)

// maxColumn bounds the width of a column in text. Longer cells are wrapped.
const maxColumn = 40

// Text returns the report for a terminal.
func (r *Report) Text() string {
	d := r.document()
	var b strings.Builder
	b.WriteString(d.Title + "\n" + strings.Repeat("=", utf8.RuneCountInString(d.Title)) + "\n\n")
	width := 0
	for _, f := range d.Facts {
		width = max(width, len(f[0]))
	}
	for _, f := range d.Facts {
		b.WriteString(padded(f[0]+":", width+2) + f[1] + "\n")
	}
	if len(d.Missing) > 0 {
		b.WriteString("\nNOT COMPLETE\n")
		for _, m := range d.Missing {
			writeItem(&b, m)
		}
	}
	b.WriteString("\nSummary\n-------\n")
	for _, s := range d.Summary {
		writeSentence(&b, s, "- ")
	}
	for _, p := range d.Parts {
		b.WriteString("\n" + p.Heading + "\n" + strings.Repeat("-", utf8.RuneCountInString(p.Heading)) + "\n")
		for _, s := range p.Text {
			writeSentence(&b, s, "")
		}
		for i, t := range p.Tables {
			if t.Heading != "" && (i > 0 || len(p.Text) > 0) {
				b.WriteString("\n")
			}
			writeTextTable(&b, t)
		}
	}
	return b.String()
}

// lineWidth bounds the width of lines outside of tables.
const lineWidth = 100

func writeSentence(b *strings.Builder, s sentence, bullet string) {
	if s.Warn {
		s.Text = "WARNING: " + s.Text
	}
	writeWrapped(b, bullet, s.Text)
}

func writeItem(b *strings.Builder, text string) { writeWrapped(b, "- ", text) }

// writeWrapped writes a text wrapped into lines. The first line begins with the bullet.
func writeWrapped(b *strings.Builder, bullet, text string) {
	for i, line := range wrapped(strings.Fields(text), lineWidth-len(bullet)) {
		if i > 0 {
			bullet = strings.Repeat(" ", len(bullet))
		}
		b.WriteString(bullet + line + "\n")
	}
}

// wrapped joins words into lines of at most the given width. A longer word is a line of its own.
func wrapped(words []string, width int) (lines []string) {
	line := ""
	for _, w := range words {
		switch {
		case line == "":
			line = w
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(w) <= width:
			line += " " + w
		default:
			lines = append(lines, line)
			line = w
		}
	}
	return append(lines, line)
}

func writeTextTable(b *strings.Builder, t table) {
	if t.Heading != "" {
		writeWrapped(b, "", t.Heading)
	}
	rows := [][][]string{nil}
	for _, h := range t.Head {
		rows[0] = append(rows[0], []string{strings.ToUpper(h)})
	}
	for _, row := range t.Rows {
		var cells [][]string
		for _, c := range row {
			cells = append(cells, c.lines())
		}
		rows = append(rows, cells)
	}
	widths := make([]int, len(t.Head))
	for _, row := range rows {
		for j, lines := range row {
			for _, line := range lines {
				widths[j] = max(widths[j], utf8.RuneCountInString(line))
			}
		}
	}
	for _, row := range rows {
		writeTextRow(b, row, widths)
	}
}

func writeTextRow(b *strings.Builder, row [][]string, widths []int) {
	height := 1
	for _, lines := range row {
		height = max(height, len(lines))
	}
	for i := range height {
		line := " "
		for j, lines := range row {
			text := ""
			if i < len(lines) {
				text = lines[i]
			}
			line += " " + padded(text, widths[j]+1)
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
}

// lines returns the wrapped lines of a cell.
func (c cell) lines() (lines []string) {
	if !c.Lines {
		var words []string
		for i, item := range c.Items {
			if i < len(c.Items)-1 {
				item += ","
			}
			if utf8.RuneCountInString(item) <= maxColumn {
				words = append(words, item)
				continue
			}
			words = append(words, strings.Fields(item)...)
		}
		return wrapped(words, maxColumn)
	}
	for i, item := range c.Items {
		if c.warns(i) {
			item = "! " + item
		}
		lines = append(lines, wrapped(strings.Fields(item), maxColumn)...)
	}
	return lines
}

func padded(text string, width int) string {
	return text + strings.Repeat(" ", max(0, width-utf8.RuneCountInString(text)))
}
