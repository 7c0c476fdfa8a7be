package main

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"sluice/bench/worst"
)

// memoryLimit of the DaemonSet, in KiB.
const daemonSetLimit = 512 << 10

// An agent goes on under the memory limit of the DaemonSet with the worst policies
// that an API server keeps, all at once and with the pods that they are worst for;
// other tenants' policies are in force, and the policies that are refused are named.
func TestWorstPoliciesOnPackets(t *testing.T) {
	s := newSite(t)
	const guarded = "default/asks: {podSelector: {matchLabels: {role: db}}, ingress: [{from: [{podSelector: {matchLabels: {role: frontend}}}]}]}"
	s.write("policies.yaml", policies(guarded))
	s.start()
	r := worst.Recipe{Identities: 3000}
	var pods strings.Builder
	for _, p := range r.Pods() {
		p.APIVersion, p.Kind = "v1", "Pod"
		pods.WriteString(manifest(t, p))
	}
	s.save("attacker-pods.yaml", pods.String())
	for _, k := range worst.Known() {
		p := k.OfSize(k.Name, worst.Largest)
		p.APIVersion, p.Kind = "networking.k8s.io/v1", "NetworkPolicy"
		s.save(k.Name+".yaml", manifest(t, p))
		t.Logf("with %s: at most %d MiB", k.Name, peakMemory(t, s.agent.PID())>>10)
	}
	s.check(t, []string{"default/web default/db tcp 6379"}, []string{"default/other default/db tcp 6379"})
	if peak := peakMemory(t, s.agent.PID()); peak > daemonSetLimit {
		t.Errorf("the agent took %d MiB", peak>>10)
	}
	_, told, _ := sluice(t, "status", "--socket", s.socket)
	if !strings.Contains(told, worst.Namespace+"/") || !strings.Contains(told, "--policies-memory") {
		t.Errorf("the status names no policy that is refused:\n%s", told)
	}
}

func manifest(t *testing.T, o any) string {
	t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("---\n%s\n", text)
}

// peakMemory is the most that a process has had in memory, in KiB.
func peakMemory(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	if found == nil {
		t.Fatalf("no VmHWM in\n%s", status)
	}
	n, err := strconv.Atoi(string(found[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
