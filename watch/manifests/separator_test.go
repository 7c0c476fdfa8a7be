package manifests

import (
	"fmt"
	"strings"
	"testing"
)

// The hint about a syntax error names a nearby line that looks like a separator.
func TestMistypedSeparatorIsNamed(t *testing.T) {
	const (
		name   = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n"
		braces = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n"
		list   = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: a\nspec:\n  podSelector: {}\n  policyTypes:\n  - Ingress\n"
	)
	for _, separator := range []string{"----", "--", " ---", "  ---", " --- ", "\t---", "-----------", "———", "---#c", "- - -", "----\n\n# c"} {
		for _, before := range []string{name, braces, list} {
			text := "# c\n---\n" + before + separator + "\n" + name
			_, problems := read(t, map[string]string{"a.yaml": text})
			line, _, _ := strings.Cut(separator, "\n")
			want := fmt.Sprintf("separate documents with a line ---, without anything before it (line %d is %q)", 3+strings.Count(before, "\n"), line)
			if len(problems) != 1 || !strings.Contains(problems[0].Hint, want) {
				t.Errorf("%q gives %q, want one with %q", text, problems, want)
			}
		}
	}
}

// If an object begins in the middle of another one, the hint suggests a separator.
func TestMissingSeparatorIsNamed(t *testing.T) {
	for _, separator := range []string{"", "---"} {
		_, problems := read(t, map[string]string{"a.yaml": strings.TrimSpace(shop) + "\n" + separator + strings.TrimSpace(closed)})
		if len(problems) != 1 || !strings.Contains(problems[0].Hint, "if another object begins there, separate documents with a line ---") {
			t.Errorf("%q between two objects gives %q", separator, problems)
		}
	}
}

// If no line near a syntax error looks like a separator, the hint does not mention separators.
func TestSyntaxHintsKeepToTheirPlace(t *testing.T) {
	far := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  text: |\n    ----\n" + strings.Repeat("    line\n", 9) + "  a: b: c\n"
	for _, text := range []string{far, "kind: {\n", "a: [1, 2\nb: c\n"} {
		_, problems := read(t, map[string]string{"a.yaml": text})
		if len(problems) != 1 || problems[0].Hint != "correct the YAML" {
			t.Errorf("%q gives %q", text, problems)
		}
	}
}
