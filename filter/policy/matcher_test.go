package policy

import (
	"math/rand/v2"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// The matcher of a selector with many requirements agrees with the Kubernetes library.
func TestMatcher(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	word := func(from string) string { return from[r.IntN(len(from)):][:1] }
	count := map[bool]int{} // number of selectors that match, and that do not
	for range 20_000 {
		var sel metav1.LabelSelector
		operators := []metav1.LabelSelectorOperator{metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist}
		for range mostAsked + 1 + r.IntN(4) {
			e := metav1.LabelSelectorRequirement{Key: word("abcd"), Operator: operators[r.IntN(4)]}
			switch e.Operator {
			case metav1.LabelSelectorOpIn:
				e.Values = []string{"x", "y", "z"}[:1+r.IntN(3)]
			case metav1.LabelSelectorOpNotIn:
				e.Values = []string{word("vw"), word("vwx")}
			case metav1.LabelSelectorOpDoesNotExist:
				e.Key = word("defgh")
			}
			sel.MatchExpressions = append(sel.MatchExpressions, e)
		}
		parsed, err := metav1.LabelSelectorAsSelector(&sel)
		if err != nil {
			t.Fatal(err)
		}
		set := labels.Set{}
		for _, key := range "abcdh" {
			if r.IntN(5) > 0 && (key != 'h' || r.IntN(4) == 0) {
				set[string(key)] = word("xxxyv")
			}
		}
		want := parsed.Matches(set)
		count[want]++
		if got := matcherOf(parsed).matches(set); got != want {
			t.Fatalf("%s matches %v: %t, want %t", parsed, set, got, want)
		}
	}
	if count[true] < 100 || count[false] < 1000 {
		t.Errorf("too few cases that match, or that do not: %v", count)
	}
}
