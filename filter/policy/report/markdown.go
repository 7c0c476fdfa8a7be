package report

import (
	"fmt"
	"strings"

	"sluice/filter/policy/reach"
)

// Markdown returns the report in Markdown.
func (r *Report) Markdown() string {
	d := r.document()
	var b strings.Builder
	b.WriteString("# " + reach.Markdown(d.Title) + "\n\n")
	for _, f := range d.Facts {
		fmt.Fprintf(&b, "- %s: %s\n", f[0], reach.Markdown(f[1]))
	}
	if len(d.Missing) > 0 {
		b.WriteString("\n> **Not complete:**\n>\n")
		for _, m := range d.Missing {
			b.WriteString("> - " + reach.Markdown(m) + "\n")
		}
	}
	b.WriteString("\n## Summary\n\n")
	for _, s := range d.Summary {
		b.WriteString("- " + s.markdown() + "\n")
	}
	for _, p := range d.Parts {
		b.WriteString("\n## " + reach.Markdown(p.Heading) + "\n")
		for _, s := range p.Text {
			b.WriteString("\n" + s.markdown() + "\n")
		}
		for _, t := range p.Tables {
			if t.Heading != "" {
				b.WriteString("\n### " + reach.Markdown(t.Heading) + "\n")
			}
			b.WriteString("\n| " + strings.Join(t.Head, " | ") + " |\n" + strings.Repeat("| --- ", len(t.Head)) + "|\n")
			for _, row := range t.Rows {
				for _, c := range row {
					b.WriteString("| " + c.markdown() + " ")
				}
				b.WriteString("|\n")
			}
		}
	}
	return b.String()
}

func (s sentence) markdown() string {
	if s.Warn {
		return "**" + reach.Markdown(s.Text) + "**"
	}
	return reach.Markdown(s.Text)
}

func (c cell) markdown() string {
	var items []string
	for i, item := range c.Items {
		switch {
		case c.Code:
			item = "`" + item + "`"
		case c.warns(i):
			item = "**" + reach.Markdown(item) + "**"
		default:
			item = reach.Markdown(item)
		}
		items = append(items, item)
	}
	if c.Lines {
		return strings.Join(items, "<br>")
	}
	return strings.Join(items, ", ")
}
