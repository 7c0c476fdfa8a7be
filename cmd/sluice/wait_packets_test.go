//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/bench/testbed/controlplane"
	"sluice/bench/testbed/lab"
	"sluice/watch/kube"
)

// labFleet is a fleet with the agent of a lab and a real API server. It asks the server for the versions
// of policies. The lab has no kubelet, so it runs the commands for the agent's pod in this process.
type labFleet struct {
	*kube.Agents
	node, socket string
}

func (f labFleet) Pods(context.Context) ([]kube.AgentPod, error) {
	return []kube.AgentPod{{Namespace: "kube-system", Name: "sluice-1", Node: f.node, Container: "sluice", Running: true}}, nil
}

func (f labFleet) Run(ctx context.Context, _ kube.AgentPod, command kube.Command) error {
	var failed bytes.Buffer
	e := env{stdin: strings.NewReader(command.Input), stdout: command.Out, stderr: &failed, getenv: func(string) string { return "" }}
	if status := run(ctx, e, append(slices.Clone(command.Args[1:]), "--socket", f.socket)); status != 0 {
		return &kube.CommandError{Status: status, Text: failed.String()}
	}
	return nil
}

// When wait returns, the agent enforces the version of the policy that the API server has: it judges all
// later connections by this version.
func TestClusterWait(t *testing.T) {
	rounds := 200
	if testing.Short() {
		rounds = 20
	}
	s := newClusterTestbed(t)
	s.start()
	config, err := s.server.Config(controlplane.Admin)
	s.must(err)
	agents, err := kube.NewAgents(config, "kube-system", "app.kubernetes.io/name=sluice")
	s.must(err)
	f := labFleet{agents, s.Nodes[0].Name, s.socket}
	wait := func(what string, opts waitOptions) {
		t.Helper()
		var out, errs bytes.Buffer
		opts.timeout = waitTimeout
		wanted, err := opts.wantedPolicies(nil, false)
		s.must(err)
		ctx, stop := opts.bounded(t.Context())
		defer stop()
		if err := waitEverywhere(ctx, env{stdout: &out, stderr: &errs}, f, &opts, wanted); err != nil {
			t.Fatalf("%s: %v: %s%s", what, err, out.String(), errs.String())
		}
	}
	db := netip.AddrPortFrom(s.pods["db"].IPv4, 6379)
	client := s.admin.NetworkingV1().NetworkPolicies("default")
	s.create(isolate("guard", "frontend"))
	var slowest time.Duration
	for i := range rounds {
		p, want := isolate("guard", "frontend"), lab.Reached
		if i%2 == 0 {
			p, want = isolate("guard", "other"), lab.TimedOut
		}
		_, err := client.Update(t.Context(), p, metav1.UpdateOptions{})
		s.must(err)
		began := time.Now()
		wait(fmt.Sprintf("round %d", i), waitOptions{names: []string{"default/guard"}})
		slowest = max(slowest, time.Since(began))
		if r := s.pods["web"].Connect(t.Context(), "tcp", db, probeTimeout); r.Outcome != want {
			t.Fatalf("round %d: after wait: %v, want %v", i, r, want)
		}
	}
	t.Logf("%d times, the slowest in %v", rounds, slowest)
	s.remove("guard")
	wait("deleted", waitOptions{names: []string{"default/guard"}, deleted: true})
	if r := s.pods["other"].Connect(t.Context(), "tcp", db, probeTimeout); r.Outcome != lab.Reached {
		t.Errorf("after the policy was deleted: %v", r)
	}
}

// saveOnly replaces a file atomically, and does not wait until the agent has read it.
func saveOnly(t *testing.T, path, text string) {
	t.Helper()
	next := filepath.Join(t.TempDir(), "next")
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
}

// When wait returns on a node with manifests, the policy in the file is in force.
func TestWaitForManifestsOnPackets(t *testing.T) {
	rounds := 200
	if testing.Short() {
		rounds = 20
	}
	s := newTestbed(t)
	const allowed, denied = demo1, "default/access-demo1: {podSelector: {matchLabels: {role: db}}, ingress: []}"
	s.write("policies.yaml", policies(denied))
	s.start(kernelArgs()...)
	to := netip.AddrPortFrom(s.host("default/db").IPv4, 6379)
	for i := range rounds {
		spec, want := allowed, lab.Reached
		if i%2 == 1 {
			spec, want = denied, lab.TimedOut
		}
		saveOnly(t, filepath.Join(s.dir, "policies.yaml"), policies(spec))
		if exit, stdout, stderr := sluice(t, "wait", "--socket", s.socket, "-f", s.dir, "--timeout", waitTimeout.String()); exit != 0 || stdout != "default/access-demo1 is in force\n" {
			t.Fatalf("exit %d, %s%s", exit, stdout, stderr)
		}
		if r := s.host("default/web").Connect(t.Context(), "tcp", to, probeTimeout); r.Outcome != want {
			t.Fatalf("round %d: after wait: %v, want %v", i, r, want)
		}
	}
	if exit, _, stderr := sluice(t, "wait", "--socket", s.socket, "--for", "default/none", "--timeout", "10ms"); exit != exitFindings || stderr == "" {
		t.Errorf("a policy that does not exist: exit %d, %s", exit, stderr)
	}
}
