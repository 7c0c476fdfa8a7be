package lint

import (
	_ "embed" // for page
	"strings"
)

// page is the Markdown page that describes all checks, with an example of each.
//
//go:embed README.md
var page string

// Help returns the section of the page about this check, as Markdown: its meaning, an example of the
// mistake, and the example corrected.
func (a About) Help() string {
	_, text, _ := strings.Cut(page, "\n## "+a.ID+"\n")
	text, _, _ = strings.Cut(text, "\n## ")
	return strings.TrimSpace(text)
}

// Meaning returns the first paragraph of Help, as one line of plain text.
func (a About) Meaning() string {
	text, _, _ := strings.Cut(a.Help(), "\n\n")
	_, text, _ = strings.Cut(text, "** ") // skip the severity
	return strings.Join(strings.Fields(strings.ReplaceAll(text, "`", "")), " ")
}
