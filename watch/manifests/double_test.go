package manifests

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// writeServices writes a file with a policy and Services.
func writeServices(t *testing.T, file string, services int) {
	t.Helper()
	text := "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: {podSelector: {}}}\n"
	for i := range services {
		text += fmt.Sprintf("---\n{apiVersion: v1, kind: Service, metadata: {name: s%d}, spec: {ports: [{port: 80}]}}\n", i)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// If two files have a few objects in common, there is a problem for each object. If they have many in
// common, they are usually for two clusters, and there is one problem for both files.
func TestObjectsThatAreThereTwice(t *testing.T) {
	for services, want := range map[int][]string{
		1: {"b.yaml, document 1, NetworkPolicy default/p, metadata.name: the same object is in "},
		3: {"b.yaml: 4 of its objects are also in ", "a.yaml, which takes precedence: NetworkPolicy default/p, Service default/s0, Service default/s1 and 1 more: if the files are for two clusters"},
	} {
		dir := t.TempDir()
		writeServices(t, filepath.Join(dir, "a.yaml"), services)
		writeServices(t, filepath.Join(dir, "b.yaml"), services)
		objects, problems, err := Read(dir)
		if err != nil || len(problems) != 1 {
			t.Fatalf("%d Services: %v, %v", services, problems, err)
		}
		for _, part := range want {
			if !strings.Contains(problems[0].Error(), part) {
				t.Errorf("%d Services: %v; want %q", services, problems[0], part)
			}
		}
		if notes := len(objects.Notes); notes != map[int]int{1: 1, 3: 0}[services] {
			t.Errorf("%d Services: notes %v", services, objects.Notes)
		}
		if len(objects.Services) != services || len(objects.Policies) != 1 {
			t.Errorf("%d Services: %d are read, and %d policies", services, len(objects.Services), len(objects.Policies))
		}
	}
}
