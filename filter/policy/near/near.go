// Package near finds the known name that an unknown one was probably meant to be, for hints
// in messages.
package near

import (
	"fmt"
	"slices"
	"strings"
)

// Name returns the element of names that is most similar to name, ignoring case. It returns
// false if the distance to every element is more than 1 + len(name)/3.
func Name(name string, names []string) (best string, ok bool) {
	least := 1 + len(name)/3
	for _, n := range names {
		if len(n)-len(name) > least || len(name)-len(n) > least {
			continue // the lengths differ too much
		}
		if d := distance(strings.ToLower(name), strings.ToLower(n)); d <= least {
			best, ok, least = n, true, d-1
		}
	}
	return best, ok
}

// distance returns the restricted Damerau-Levenshtein distance: the least number of edits that
// turn a into b. An edit inserts, deletes or replaces a letter, or swaps two adjacent letters.
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

// List joins texts. If there are more than n texts, it joins the first n, and appends how many are left
// out.
func List(texts []string, n int, sep string) string {
	if len(texts) <= n {
		return strings.Join(texts, sep)
	}
	return fmt.Sprintf("%s and %d more", strings.Join(texts[:n], sep), len(texts)-n)
}

// Kind translates the JSON decoder's name for a kind of value into a word that authors of
// YAML understand.
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

// WriteString returns the hint for a value of the given kind where a string is expected. YAML
// reads text without quotes as a number or bool if it looks like one.
func WriteString(value string) string {
	if value == "bool" || strings.HasPrefix(value, "number") {
		return "write a string, in quotes"
	}
	return "write a string"
}
