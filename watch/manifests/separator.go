package manifests

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
)

// separatorReach bounds the distance in lines between a mistyped separator and the line of
// the parser's error. The error may be before or after the separator.
const separatorReach = 5

var (
	errorLine  = regexp.MustCompile(`\bline (\d+): `)
	objectKey  = regexp.MustCompile(`\bline \d+: key "(apiVersion|kind)" already set`)
	almostLine = regexp.MustCompile(`^[ \t]*[-–—][ \t]*[-–—][-–— \t]*(#.*)?$`)
)

// isTemplate reports whether the document contains "{{", as Go templates do.
func (d document) isTemplate() bool { return bytes.Contains(d.text, []byte("{{")) }

// syntaxHint returns a hint for a document that is not valid YAML. Often it contains two
// objects with a mistyped separator: to the parser, "----" is text.
func (p *parser) syntaxHint(d document, message string) string {
	const hint = "correct the YAML"
	if d.isTemplate() {
		return "this is a template: " + p.renderHint("helm template CHART")
	}
	m := errorLine.FindStringSubmatch(message)
	if m == nil {
		return hint
	}
	at, err := strconv.Atoi(m[1])
	if err != nil {
		return hint // the number is out of range
	}
	if line, text := separatorNear(d, at); line > 0 {
		return fmt.Sprintf("%s; separate documents with a line ---, without anything before it (line %d is %q)", hint, line, text)
	}
	if objectKey.MatchString(message) {
		return hint + "; if another object begins there, separate documents with a line ---"
	}
	return hint
}

// separatorNear returns the number and the text of the line that looks like a mistyped
// separator and is nearest to the line with the given number. It returns 0 if there is no such
// line within separatorReach.
func separatorNear(d document, at int) (line int, text string) {
	n, least := d.line, separatorReach+1
	for raw := range bytes.Lines(d.text) {
		n++
		distance := max(n-at, at-n)
		if raw = bytes.TrimSuffix(raw, []byte("\n")); distance < least && almostLine.Match(raw) {
			line, text, least = n, string(raw), distance
		}
	}
	return line, text
}
