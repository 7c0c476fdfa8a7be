package manifests

import (
	"os"
	"path/filepath"
	"testing"
)

// Line returns the line of a field or, if the object lacks the field, the line of the part that would
// contain it. It does so in all formats that a file may have.
func TestLines(t *testing.T) {
	const file = `# a comment

---
apiVersion: v1
kind: Namespace
metadata:
  name: a
---
# only a comment
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: p
  annotations:
    sluice/deny-with: reject
spec:
  podSelector: {}
  ingress:
  - from: &peers
    - podSelector: {}
    - namespaceSelector:
        matchLabels: {a: b}
  - from: *peers
--- # a list
kind: List
apiVersion: v1
items:
- apiVersion: v1
  kind: Pod
  metadata: {name: x}
- apiVersion: v1
  kind: Pod
  metadata:
    name: w
    labels:
      a: b
---
{"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "j1"}}
{"kind": "Namespace", "apiVersion": "v1",
 "metadata": {"name": "j2"}}
`
	path := filepath.Join(t.TempDir(), "all.yaml")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	o, problems, err := Read(path)
	if err != nil || len(problems) > 0 {
		t.Fatal(err, problems)
	}
	tests := []struct {
		object, field string
		want          int
	}{
		{"Namespace a", "", 4},
		{"Namespace a", "metadata.name", 7},
		{"NetworkPolicy default/p", "spec.podSelector", 18},
		{"NetworkPolicy default/p", `metadata.annotations["sluice/deny-with"]`, 16},
		{"NetworkPolicy default/p", "spec.ingress[0].from[1].namespaceSelector", 22},
		{"NetworkPolicy default/p", "spec.ingress[0].from[1].podSelector", 22}, // the item lacks the field
		{"NetworkPolicy default/p", "spec.ingress[1]", 24},
		{"NetworkPolicy default/p", "spec.ingress[1].from[1].namespaceSelector", 22}, // reached through the alias
		{"NetworkPolicy default/p", "spec.egress", 17},
		{"Pod default/w", "", 32},
		{"Pod default/w", "metadata.labels.a", 37},
		{"Pod default/w", "items[1].metadata.labels", 36},
		{"Namespace j1", "", 39},
		{"Namespace j2", "metadata.name", 41},
	}
	lines := o.Lines()
	for _, tt := range tests {
		at := o.Origins[tt.object]
		if got := lines.Line(at.File, at.Document, tt.object, tt.field); got != tt.want {
			t.Errorf("%s, %s is in line %d, want %d", tt.object, tt.field, got, tt.want)
		}
	}
	if got := lines.Line(path, 9, "", ""); got != 0 {
		t.Errorf("a document that does not exist is in line %d", got)
	}
	if got := lines.Line("other", 1, "", ""); got != 0 {
		t.Errorf("a file that was not read has line %d", got)
	}
}

// In a document that cannot be parsed, only the first line is known.
func TestLinesOfBrokenDocuments(t *testing.T) {
	path := filepath.Join(t.TempDir(), "all.yaml")
	text := "kind: Namespace\napiVersion: v1\nmetadata: {name: a}\n---\nkind: [\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	o, problems, err := Read(path)
	if err != nil || len(problems) != 1 {
		t.Fatal(err, problems)
	}
	if got := o.Lines().Line(path, problems[0].Document, "", ""); got != 4 {
		t.Errorf("line %d, want 4", got)
	}
}
