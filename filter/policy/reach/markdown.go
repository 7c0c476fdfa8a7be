package reach

import "strings"

// Markdown escapes the characters of names and texts that Markdown would read as formatting.
func Markdown(text string) string {
	return strings.NewReplacer(`\`, `\\`, "|", `\|`, "*", `\*`, "_", `\_`, "<", "&lt;", "~", `\~`, "`", "\\`").Replace(text)
}
