package lint

import (
	_ "embed" // for the page
	"strings"
)

// page describes all checks, with an example of each.
//
//go:embed README.md
var page string

// Help returns what the page of the checks says about this one, as Markdown: its meaning, an
// example, and the example as it is right.
func (a About) Help() string {
	_, text, _ := strings.Cut(page, "\n## "+a.ID+"\n")
	text, _, _ = strings.Cut(text, "\n## ")
	return strings.TrimSpace(text)
}

// Meaning returns the first paragraph of Help, as one line of plain text.
func (a About) Meaning() string {
	text, _, _ := strings.Cut(a.Help(), "\n\n")
	_, text, _ = strings.Cut(text, "** ") // the severity
	return strings.Join(strings.Fields(strings.ReplaceAll(text, "`", "")), " ")
}
