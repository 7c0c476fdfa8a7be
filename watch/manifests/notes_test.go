package manifests

import "testing"

// Equal notes are combined into one, which tells how many there were.
func TestCondenseCounts(t *testing.T) {
	note := Problem{File: "a.yaml", Document: 1, Object: "Pod default/a", Field: "spec.x", Detail: "there is no such field", Hint: "remove it"}
	for n, want := range map[int]string{1: "", 2: " (once more)", 3: " (the same 2 times more)"} {
		notes := make([]Problem, n)
		for i := range notes {
			notes[i] = note
		}
		if got := Condense(notes); len(got) != 1 || got[0] != note.Error()+want {
			t.Errorf("%d notes give %q, want one that ends in %q", n, got, want)
		}
	}
}
