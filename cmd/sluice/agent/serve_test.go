package agent

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"sluice/filter/policy"
	"sluice/filter/policy/netpol"
	"sluice/watch/manifests"
)

// What is wrong in a policy of a manifest is told once, with its file.
func TestProblemsAreToldOnce(t *testing.T) {
	const head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: default, name: bad}\nspec: "
	for name, spec := range map[string]string{
		"a value":             `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.01/8}}]}]}`,
		"an unreadable rule":  `{podSelector: {}, ingress: [{fromm: []}]}`,
		"several in one spec": `{podSelector: {}, ingress: [{ports: [{port: 99999}]}], egress: [{ports: [{port: 0}]}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(head+spec), 0o600); err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			w := policy.NewStore()
			var told []manifests.Problem
			source := manifests.Source{Dirs: []string{dir}, OnProblems: func(p []manifests.Problem) { told = p }}
			if err := source.Run(ctx, func(apply func(*policy.Store)) { apply(w); stop() }); err != nil {
				t.Fatal(err)
			}
			found := w.Problems()
			if len(told) == 0 || len(found) == 0 {
				t.Fatalf("the manifests have problems %v, and the policies %v", told, found)
			}
			kept := slices.Clone(found)
			if again := beyondManifests(found, told); len(again) > 0 {
				t.Errorf("%v is told again beside %v", again, told)
			}
			if !slices.Equal(found, kept) {
				t.Errorf("the shared list has changed: %v", found)
			}
			if all := beyondManifests(found, nil); len(all) != len(found) {
				t.Errorf("without manifests %v is left of %v", all, found)
			}
			large := policy.Problem{Policy: netpol.Ref("default", "bad"), Field: "spec", Detail: "too much", TooLarge: true}
			if other := beyondManifests([]policy.Problem{large}, told); len(other) != 1 {
				t.Error("a problem that no manifest tells is passed over")
			}
		})
	}
}
