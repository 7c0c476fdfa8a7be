// Package near finds the name that was probably meant where one is not known, for
// messages that say what would be right.
package near

import (
	"slices"
	"strings"
)

// Name returns the one of names that is most like name, in which about one letter
// of three may be wrong, and whether there is one. Case does not count.
func Name(name string, names []string) (best string, ok bool) {
	least := 1 + len(name)/3
	for _, n := range names {
		if len(n)-len(name) > least || len(name)-len(n) > least {
			continue // the lengths alone differ by more
		}
		if d := distance(strings.ToLower(name), strings.ToLower(n)); d <= least {
			best, ok, least = n, true, d-1
		}
	}
	return best, ok
}

// distance is the Damerau-Levenshtein distance (restricted): how many letters to
// insert, delete, replace or swap with the next.
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = slices.Min([]int{rows[i-1][j] + 1, rows[i][j-1] + 1, rows[i-1][j-1] + cost})
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}

// Kind puts in words what the JSON decoder calls the kind of a value, for people who
// write YAML.
func Kind(value string) string {
	switch value {
	case "array":
		return "a list"
	case "object":
		return "an object"
	case "bool":
		return "true or false (as YAML also reads yes, no, y and n)"
	}
	return "a " + value
}

// WriteString is the hint where a value of such a kind is and a string is wanted. YAML
// takes text without quotes for a number or a bool if it looks like one.
func WriteString(value string) string {
	if value == "bool" || strings.HasPrefix(value, "number") {
		return "write a string, in quotes"
	}
	return "write a string"
}
