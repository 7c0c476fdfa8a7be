//go:build linux

package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sluice/bench/testbed/agenttest"
	"sluice/filter/event"
)

// Faults in the directory of manifests allow no traffic: the pods stay isolated. The agent
// reports the faults, still applies other changes, and can be stopped. The faults are a policy
// behind an invalid separator, a pipe, and a policy of an unknown API group.
func TestManifestsThatCannotBeReadOpenNothing(t *testing.T) {
	s := newTestbed(t)
	s.write("shut.yaml", flowStyleNamespace+policies("default/shut: {podSelector: {matchLabels: {role: db}}}"))
	more := t.TempDir()
	if err := agenttest.WriteFile(more, "more.yaml", policies("bare/shut: {podSelector: {}}")); err != nil {
		t.Fatal(err)
	}
	s.start("--manifests", more)
	closed := []string{"default/web default/db tcp 6379", "default/web bare/odd tcp 80"}
	s.check(t, []string{"default/db default/web tcp 80"}, closed)

	mark := s.agent.Mark()
	broken := func(file string) {
		t.Helper()
		s.await(mark, "a broken manifest", func(l agenttest.Line) bool {
			return l.Is(event.ManifestBroken) && strings.Contains(fmt.Sprint(l), file)
		})
	}
	s.write("shut.yaml", flowStyleNamespace+"-"+policies("default/shut: {podSelector: {matchLabels: {role: db}}}"))
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
	for _, want := range []string{"shut.yaml, document 1: line 2: the text after the end", "pipe.yaml: it is not a regular file, but a named pipe", "1 GlobalNetworkPolicy of projectcalico.org"} {
		if status == 0 || !strings.Contains(stdout, want) {
			t.Errorf("status %d, and %q is not in\n%s", status, want, stdout)
		}
	}
	s.stop()
}

// flowStyleNamespace is a document on a single line.
const flowStyleNamespace = "{apiVersion: v1, kind: Namespace, metadata: {name: spare}}\n"

// If a pod of another node claims the address of a pod of this node, this node's pod keeps its
// address and policies, and the agent reports the conflict.
func TestAPodElsewhereTakesNoPoliciesAway(t *testing.T) {
	s := newTestbed(t)
	s.write("cluster.yaml", testbedNamespaces+strings.ReplaceAll(s.pods(), "spec: {", "spec: {nodeName: here, "))
	s.write("shut.yaml", policies("default/shut: {podSelector: {matchLabels: {role: db}}}"))
	db := s.host("default/db")
	s.start("--node-name", "here", "--pod-cidrs", fmt.Sprintf("%s/32,%s/128", db.IPv4, db.IPv6))
	closed := []string{"default/web default/db tcp 6379"}
	s.check(t, nil, closed)

	thief := s.pod("default/thief", "role: open", 1, db.Addrs()...)
	thief = strings.Replace(thief, "spec: {", "spec: {nodeName: there, ", 1)
	thief = strings.Replace(thief, "metadata: {", `metadata: {creationTimestamp: "2031-01-01T00:00:00Z", `, 1)
	s.save("thief.yaml", thief)
	s.check(t, nil, closed)
	status, stdout, _ := sluice(t, "status", "--socket", s.socket)
	for _, addr := range db.Addrs() {
		want := fmt.Sprintf("address %s: the live pods default/db, default/thief claim it; default/db gets it", addr)
		if status == 0 || !strings.Contains(stdout, want) {
			t.Errorf("status %d, and %q is not in\n%s", status, want, stdout)
		}
	}
	if _, metrics := s.scrape(t, "/metrics"); !strings.Contains(metrics, `sluice_problems{kind="address"} 2`) {
		t.Error("the metric of problems does not count the addresses")
	}
}
