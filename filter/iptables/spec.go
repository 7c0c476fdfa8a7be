package iptables

import (
	"fmt"
	"regexp"
	"strings"
)

// leadsTo reports whether a rule, as iptables prints it, has a jump or goto to a chain for
// which match() returns true.
func leadsTo(rule string, match func(chain string) bool) bool {
	words := splitRule(rule)
	for i := 1; i < len(words); i++ {
		if (words[i-1] == "-j" || words[i-1] == "-g") && match(words[i]) {
			return true
		}
	}
	return false
}

// splitRule returns the words of a rule. iptables puts text with blanks, such as comments, in
// double quotes, and escapes quotes in it with a backslash. If splitRule ignored quotes, a comment
// that mentions a jump would count as a jump.
func splitRule(rule string) []string {
	var words []string
	var word strings.Builder
	inWord, inQuotes, escaped := false, false, false
	for _, r := range rule {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\':
			inWord, escaped = true, true
		case r == '"':
			inWord, inQuotes = true, !inQuotes
		case !inQuotes && (r == ' ' || r == '\t' || r == '\n'):
			if inWord {
				words = append(words, word.String())
				word.Reset()
			}
			inWord = false
		default:
			word.WriteRune(r)
			inWord = true
		}
	}
	if inWord {
		words = append(words, word.String())
	}
	return words
}

// handleSign precedes a handle in the text of a rule.
const handleSign = "@"

// handleOf parses a line of a transaction. If the line deletes a rule by its handle, handleOf
// returns the rule's chain, the handle and true.
func handleOf(line string) (chain string, handle uint64, is bool) {
	words := strings.Fields(line)
	if len(words) < 3 || words[0] != "-D" {
		return "", 0, false
	}
	n, err := fmt.Sscanf(words[2], handleSign+"%d", &handle)
	return words[1], handle, n == 1 && err == nil
}

var handleInRule = regexp.MustCompile(` ` + handleSign + `\d+`)

// withoutHandle removes the handle from a rule's text, for comparisons: a rule that is written
// again gets a new handle.
func withoutHandle(rule string) string { return handleInRule.ReplaceAllString(rule, "") }
