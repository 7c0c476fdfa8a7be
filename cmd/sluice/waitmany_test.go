//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/cmd/sluice/agent/status"
	"sluice/cmd/sluice/agent/telemetry"
)

// manyPolicies is the number of policies that wait must be able to wait for.
const manyPolicies = 10_000

// longName returns a name of the greatest length that Kubernetes allows.
func longName(i int) string { return fmt.Sprintf("p%0252d", i) }

// wait waits for 10,000 policies with the longest names. The server is that of an agent, with its bounds
// for requests.
func TestWaitForManyPoliciesOnThisNode(t *testing.T) {
	dir := t.TempDir()
	var requests atomic.Int64
	socket := filepath.Join(dir, "s")
	late := longName(manyPolicies - 1)
	versions := func(w http.ResponseWriter, r *http.Request) {
		of, err := status.ReadVersionsRequest(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		n := requests.Add(1)
		v := status.Versions{Enforcing: true}
		for _, ref := range of {
			if ref.Name != late || n > 12 {
				v.Policies = append(v.Policies, status.PolicyInForce{Kind: ref.Kind, Namespace: ref.Namespace, Name: ref.Name})
			}
		}
		_ = json.NewEncoder(w).Encode(v)
	}
	go telemetry.Serve(t.Context(), telemetry.Options{Socket: socket, Versions: versions, Logger: slog.New(slog.DiscardHandler)}, func() *telemetry.State { return new(telemetry.State) })
	for _, err := os.Stat(socket); err != nil; _, err = os.Stat(socket) {
		time.Sleep(time.Millisecond)
	}
	var names strings.Builder
	for i := range manyPolicies {
		fmt.Fprintf(&names, "networkpolicy/%063d/%s\n", 1, longName(i))
	}
	var stdout, stderr bytes.Buffer
	e := env{stdin: strings.NewReader(names.String() + "\nnot a name"), stdout: &stdout, stderr: &stderr, getenv: func(string) string { return "" }}
	if exit := run(t.Context(), e, []string{"wait", "--socket", socket, "--for", "-", "--timeout", "1h"}); exit != 0 || strings.Count(stdout.String(), " is in force\n") != manyPolicies {
		t.Fatalf("exit %d, %.500s%.500s", exit, stdout.String(), stderr.String())
	}
	// The first answer takes 10 requests, each later one is about the one policy, and the last about all.
	if n := requests.Load(); n < 12+10 || n > 12+11 {
		t.Errorf("%d requests", n)
	}
	requests.Store(0)
	exit, _, errs := sluice(t, "wait", "--socket", socket, "--for", "a/b", "--for", "c/"+late, "--timeout", "0")
	if exit != exitFindings || requests.Load() != 1 || errs != "sluice: c/"+late+" is not in force\n" {
		t.Errorf("--timeout 0: exit %d after %d requests, %s", exit, requests.Load(), errs)
	}
}

// With many policies, wait asks the API server for lists, and sends the names to the nodes without bounds
// of command lines. The names of 1,500 policies take 500 KB, which is more than any of these bounds.
func TestWaitForManyPoliciesOnAllNodes(t *testing.T) {
	const manyPolicies = 1500
	f := newTestFleet(t, "n1")
	dir := t.TempDir()
	var manifests strings.Builder
	for i := range manyPolicies {
		namespace := fmt.Sprintf("team-%d", i%3)
		o := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: longName(i)}}
		f.api.Set(o)
		fmt.Fprintf(&manifests, "---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: %s, name: %s}, spec: {podSelector: {}}}\n", namespace, o.Name)
		version := f.api.Get(o).GetResourceVersion()
		if i == 0 {
			version = "0"
		}
		f.agent("n1").versions.Policies = append(f.agent("n1").versions.Policies, status.PolicyInForce{Kind: "NetworkPolicy", Namespace: namespace, Name: o.Name, Version: version})
	}
	if err := os.WriteFile(filepath.Join(dir, "all.yaml"), []byte(manifests.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	// No part of this test is about time: 1,500 policies take long on a busy machine.
	wait := func(timeout string) (exit int, stdout, stderr string) {
		var out, errs bytes.Buffer
		e := env{stdout: &out, stderr: &errs, getenv: func(string) string { return "" }, checkTimeout: time.Hour}
		exit = run(t.Context(), e, []string{"wait", "-f", dir, "--timeout", timeout, "--kubeconfig", f.kubeconfig})
		return exit, out.String(), errs.String()
	}
	exit, stdout, stderr := wait("0")
	if want := "n1: team-0/" + longName(0) + ": version 0 is in force, and not "; exit != exitFindings || !strings.HasPrefix(stdout, want) || !strings.Contains(stderr, "sluice: not in force on 1 of 1 node\n") {
		t.Errorf("exit %d, %.500q, %.500q", exit, stdout, stderr)
	}
	f.agent("n1").versions.Policies[0].Version = fmt.Sprint(1 << 60)
	if exit, stdout, stderr := wait("1h"); exit != 0 || strings.Count(stdout, " is in force on 1 node\n") != manyPolicies {
		t.Errorf("exit %d, %.500q, %.500q", exit, stdout, stderr)
	}
	for _, run := range f.runs {
		if len(run) > 200 {
			t.Errorf("a command line of %d bytes", len(run))
		}
	}
	f.agent("n1").versions.Policies = nil
	if exit, stdout, _ := wait("0"); exit != exitFindings || !strings.HasSuffix(stdout, fmt.Sprintf("; and %d more policies\n", manyPolicies-maxReasons)) || len(stdout) > 4000 {
		t.Errorf("exit %d, %q", exit, stdout)
	}
}

// --timeout also bounds the requests to the API server.
func TestWaitIsBounded(t *testing.T) {
	for _, part := range []string{"/networkpolicies/web", "/pods", "/nodes"} {
		f := newTestFleet(t, "n1")
		f.agent("n1").set("web@" + f.setPolicy("web"))
		ended := make(chan struct{})
		defer close(ended)
		f.refuse = func(r *http.Request) *metav1.Status {
			if strings.HasSuffix(r.URL.Path, part) {
				select {
				case <-r.Context().Done():
				case <-ended:
				}
			}
			return nil
		}
		began := time.Now()
		exit, _, stderr := f.command("wait", "--for", "default/web", "--timeout", "300ms")
		if exit != exitFindings || !strings.Contains(stderr, "after 300ms: the API server has not ") || time.Since(began) > 10*time.Second {
			t.Errorf("%s: exit %d after %v, %s", part, exit, time.Since(began), stderr)
		}
	}
}

// wait does not say that policies are in force if packets bypass them. If the agent only reports this, wait
// says so as well.
func TestWaitWhilePacketsBypass(t *testing.T) {
	f := newTestFleet(t, "n1")
	version := f.setPolicy("web")
	a := f.agent("n1")
	a.set("web@" + version)
	const why = "packets between pods bypass iptables: net.bridge.bridge-nf-call-iptables: it is 0"
	a.versions.Unready = why
	for _, args := range [][]string{{"--kubeconfig", f.kubeconfig}, {"--socket", a.socket}} {
		exit, stdout, stderr := sluice(t, append([]string{"wait", "--for", "default/web", "--timeout", "0"}, args...)...)
		if exit != exitFindings || !strings.Contains(stdout+stderr, "the agent is not ready: "+why) || strings.Contains(stdout, "is in force") {
			t.Errorf("%v: exit %d, %s%s", args, exit, stdout, stderr)
		}
	}
	a.versions.Unready, a.versions.Bypass = "", why
	exit, stdout, stderr := f.command("wait", "--for", "default/web", "--timeout", "1m")
	if exit != 0 || !strings.Contains(stdout, "is in force on 1 node\n") || stderr != "sluice: n1: "+why+"\n" {
		t.Errorf("exit %d, %s%s", exit, stdout, stderr)
	}
}
