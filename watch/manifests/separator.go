package manifests

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
)

// separatorReach bounds how many lines a line that should separate documents may be away
// from the error of the parser, which notices it at the next text or at the one before.
const separatorReach = 5

var (
	errorLine  = regexp.MustCompile(`\bline (\d+): `)
	objectKey  = regexp.MustCompile(`\bline \d+: key "(apiVersion|kind)" already set`)
	almostLine = regexp.MustCompile(`^[ \t]*[-–—][ \t]*[-–—][-–— \t]*(#.*)?$`)
)

// syntaxHint returns what to do about a document that is not YAML. One that has two
// objects is often two whose separator was mistyped: to the parser, "----" is text.
func syntaxHint(d document, message string) string {
	const hint = "correct the YAML"
	m := errorLine.FindStringSubmatch(message)
	if m == nil {
		return hint
	}
	at, err := strconv.Atoi(m[1])
	if err != nil {
		return hint // a number that no file has lines for
	}
	if line, text := separatorNear(d, at); line > 0 {
		return fmt.Sprintf("%s; separate documents with a line ---, without anything before it (line %d is %q)", hint, line, text)
	}
	if objectKey.MatchString(message) {
		return hint + "; if another object begins there, separate documents with a line ---"
	}
	return hint
}

// separatorNear finds the line nearest to a given one of the file that looks like a
// separator of documents and is not one. It returns 0 if there is none.
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
