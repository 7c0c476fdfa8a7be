package manifests

import (
	"fmt"
	"regexp"
	"strings"
)

var index = regexp.MustCompile(`\[\d+\]`)

// Condense formats notes. It combines notes that differ only in their objects, because a
// field of a newer API, for example, may be in every Pod.
func Condense(notes []Problem) []string {
	type same struct{ kind, field, detail string }
	at := make(map[same]int)
	var first []Problem
	var more []int
	for _, n := range notes {
		kind, _, _ := strings.Cut(n.Object, " ")
		key := same{kind, index.ReplaceAllString(n.Field, ""), n.What()}
		if i, known := at[key]; known {
			more[i]++
			continue
		}
		at[key] = len(first)
		first, more = append(first, n), append(more, 0)
	}
	texts := make([]string, len(first))
	for i, n := range first {
		texts[i] = n.Error()
		switch more[i] {
		case 0:
		case 1:
			texts[i] += " (once more)"
		default:
			texts[i] += fmt.Sprintf(" (the same %d times more)", more[i])
		}
	}
	return texts
}
