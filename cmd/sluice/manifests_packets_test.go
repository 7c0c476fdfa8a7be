package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sluice/bench/running"
)

// A policy that is lost behind something that is no separator, a pipe in the folder, and
// a policy of another group: the pods stay as closed as they were, other changes go on,
// and the agent says so and ends.
func TestManifestsThatCannotBeReadOpenNothing(t *testing.T) {
	s := newSite(t)
	s.write("shut.yaml", siteFlow+policies("default/shut: {podSelector: {matchLabels: {role: db}}}"))
	more := t.TempDir()
	if err := running.WriteFile(more, "more.yaml", policies("bare/shut: {podSelector: {}}")); err != nil {
		t.Fatal(err)
	}
	s.start("--manifests", more)
	closed := []string{"default/web default/db tcp 6379", "default/web bare/odd tcp 80"}
	s.check(t, []string{"default/db default/web tcp 80"}, closed)

	mark := s.agent.Mark()
	broken := func(file string) {
		t.Helper()
		s.await(mark, "a broken manifest", func(l running.Line) bool {
			return l.Text("msg") == "broken manifest" && strings.Contains(fmt.Sprint(l), file)
		})
	}
	s.write("shut.yaml", siteFlow+"-"+policies("default/shut: {podSelector: {matchLabels: {role: db}}}"))
	broken("shut.yaml")
	for _, name := range []string{"pipe.yaml", "more.yaml"} {
		if err := syscall.Mkfifo(filepath.Join(s.dir, name), 0o600); err != nil {
			t.Fatal(err)
		}
		broken(name)
	}
	s.check(t, nil, closed)
	s.save("web.yaml", policies("default/web: {podSelector: {matchLabels: {role: frontend}}, policyTypes: [Ingress]}")+
		"---\n{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: a}}\n")
	s.check(t, nil, append(closed, "default/db default/web tcp 80"))

	status, stdout, _ := sluice(t, "status", "--socket", s.socket)
	for _, want := range []string{"shut.yaml, document 1: line 2: something follows", "pipe.yaml: it is not a regular file, but a named pipe", "1 GlobalNetworkPolicy of projectcalico.org"} {
		if status == 0 || !strings.Contains(stdout, want) {
			t.Errorf("status %d, and %q is not in\n%s", status, want, stdout)
		}
	}
	s.stop()
}

// siteFlow is an object whose document ends with its line.
const siteFlow = "{apiVersion: v1, kind: Namespace, metadata: {name: spare}}\n"
