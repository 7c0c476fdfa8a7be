package reach_test

import (
	"testing"

	"sluice/filter/policy/reach"
)

// No name or text of an object is taken for formatting, not even in a cell of a table.
func TestMarkdown(t *testing.T) {
	if got, want := reach.Markdown("a|b `c` *d* _e_ ~f~ \\g <h>"), "a\\|b \\`c\\` \\*d\\* \\_e\\_ \\~f\\~ \\\\g &lt;h>"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
