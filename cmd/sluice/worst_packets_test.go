//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/bench/testbed/worstcase"
)

// daemonSetLimit is the memory limit of the DaemonSet in KiB.
const daemonSetLimit = 512 << 10

// An agent stays within the memory limit of the DaemonSet even with the most expensive policies
// that an API server accepts, and with the pods that make them most expensive. Other tenants'
// policies stay in force, and the status names the policies that are rejected.
func TestWorstPoliciesOnPackets(t *testing.T) {
	s := newTestbed(t)
	// Build without the race detector, which takes several times the memory.
	s.program = filepath.Join(t.TempDir(), "sluice")
	if out, err := exec.Command("go", "build", "-o", s.program, "sluice/cmd/sluice").CombinedOutput(); err != nil {
		t.Fatalf("build sluice: %v\n%s", err, out)
	}
	const guarded = "default/asks: {podSelector: {matchLabels: {role: db}}, ingress: [{from: [{podSelector: {matchLabels: {role: frontend}}}]}]}"
	s.write("policies.yaml", policies(guarded))
	s.start()
	r := worstcase.Recipe{Identities: 3000}
	var pods strings.Builder
	for _, p := range r.Pods() {
		p.APIVersion, p.Kind = "v1", "Pod"
		pods.WriteString(manifest(t, p))
	}
	s.save("attacker-pods.yaml", pods.String())
	for _, k := range worstcase.Known() {
		p := k.OfSize(k.Name, worstcase.Largest)
		p.APIVersion, p.Kind = "networking.k8s.io/v1", "NetworkPolicy"
		s.save(k.Name+".yaml", manifest(t, p))
		t.Logf("with %s: at most %d MiB", k.Name, peakMemory(t, s.agent.PID())>>10)
	}
	s.check(t, []string{"default/web default/db tcp 6379"}, []string{"default/other default/db tcp 6379"})
	if peak := peakMemory(t, s.agent.PID()); peak > daemonSetLimit {
		t.Errorf("the agent took %d MiB", peak>>10)
	}
	_, status, _ := sluice(t, "status", "--socket", s.socket)
	if !strings.Contains(status, worstcase.Namespace+"/") || !strings.Contains(status, "--policies-memory") {
		t.Errorf("the status names no policy that is refused:\n%s", status)
	}
}

// The flags set the limits: a policy over a limit allows nothing, the status names it, and
// other policies stay in force.
func TestPolicyLimitFlagsOnPackets(t *testing.T) {
	for _, flag := range []string{"--policy-memory", "--policies-memory"} {
		t.Run(flag, func(t *testing.T) {
			s := newTestbed(t)
			s.write("policies.yaml", policies(demo1))
			p := worstcase.Known()[0].OfSize("large", 200<<10)
			p.Namespace, p.APIVersion, p.Kind = "mine", "networking.k8s.io/v1", "NetworkPolicy"
			p.Spec.PodSelector = metav1.LabelSelector{}
			p.Spec.PolicyTypes, p.Spec.Ingress = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}, append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{})
			s.write("large.yaml", manifest(t, p))
			s.start(flag, "1")
			s.check(t, []string{webToDB}, []string{otherToDB, "default/web mine/cart tcp 80"})
			_, status, _ := sluice(t, "status", "--socket", s.socket)
			if !strings.Contains(status, "mine/large") || !strings.Contains(status, flag) {
				t.Errorf("the status does not report that mine/large exceeds %s:\n%s", flag, status)
			}
			s.agent.Kill()
			s.start(flag, "0")
			s.check(t, []string{webToDB, "default/web mine/cart tcp 80"}, []string{otherToDB})
		})
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

// peakMemory returns the peak resident memory of a process in KiB.
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
