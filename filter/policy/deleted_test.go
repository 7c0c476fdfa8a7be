package policy_test

import (
	"slices"
	"testing"

	"sluice/filter/policy"
)

// A snapshot names the policies that were deleted since the previous one, and not those that were
// set again.
func TestDeletedPolicies(t *testing.T) {
	w := unknownBed(t)
	one, two := readAny(t, netPolicy+"ingress: []}"), readAny(t, adminPolicy+"subject: {namespaces: {}}}")
	check := func(want ...string) {
		t.Helper()
		if s, _ := w.Commit(); !slices.Equal(s.Deleted(), want) {
			t.Errorf("deleted: %q, want %q", s.Deleted(), want)
		}
	}
	for _, drafts := range []bool{false, true} {
		if drafts {
			w.UseDrafts()
			w.SetLarge(0)
		}
		w.SetPolicy(one)
		w.SetPolicy(two)
		check()
		w.DeletePolicy(one.Ref)
		w.DeletePolicy(two.Ref)
		w.DeletePolicy(policy.Ref{Kind: "NetworkPolicy", Namespace: "known", Name: "unknown"})
		if !drafts {
			w.SetPolicy(two)
			check("known/p")
			w.DeletePolicy(two.Ref)
			check("p")
		}
	}
}
