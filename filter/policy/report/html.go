package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"strings"
)

//go:embed report.html
var reportHTML string

// HTML returns the report as a page without scripts and external resources.
func (r *Report) HTML() (string, error) {
	t, err := template.New("report").Parse(reportHTML)
	if err != nil {
		return "", fmt.Errorf("parse the page: %w", err)
	}
	var b strings.Builder
	if err := t.Execute(&b, r.document()); err != nil {
		return "", fmt.Errorf("write the page: %w", err)
	}
	return b.String(), nil
}

// ID returns the HTML id of the part, for links.
func (p part) ID() string {
	word, _, _ := strings.Cut(strings.ToLower(p.Heading), ":")
	return strings.ReplaceAll(word, " ", "-")
}

// HTML returns the content of a cell.
func (c cell) HTML() template.HTML {
	var items []string
	for i, item := range c.Items {
		item = template.HTMLEscapeString(item)
		switch {
		case c.Code:
			item = "<code>" + item + "</code>"
		case c.warns(i):
			item = `<span class="warn">` + item + "</span>"
		}
		if c.Lines {
			item = "<p>" + item + "</p>"
		}
		items = append(items, item)
	}
	sep := ", "
	if c.Lines {
		sep = ""
	}
	return template.HTML(strings.Join(items, sep)) //nolint:gosec // the items are escaped
}
