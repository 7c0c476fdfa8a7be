//go:build linux

package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"sluice/bench/testbed/lab"
	"sluice/cmd/sluice/agent/status"
	"sluice/cmd/sluice/agent/telemetry"
)

// scrape gets a page of the agent from its node.
func (s *testbed) scrape(t *testing.T, path string) (status int, text string) {
	t.Helper()
	return s.scrapeFrom(t, "node-1", netip.MustParseAddrPort(telemetry.DefaultAddress), path)
}

// scrapeFrom gets a page of the agent from a host.
func (s *testbed) scrapeFrom(t *testing.T, from string, at netip.AddrPort, path string) (status int, text string) {
	t.Helper()
	client := http.Client{Timeout: waitTimeout, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return s.host(from).DialTCP(ctx, netip.MustParseAddrPort(address))
		},
	}}
	response, err := client.Get("http://" + at.String() + path)
	if err != nil {
		t.Fatalf("%s from %s: %v", path, from, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

// The agent's status and metrics match what it has done to real packets.
func TestStatusAndMetricsOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(demo1))
	s.start("--on-exit", "keep")
	db := netip.AddrPortFrom(s.host("default/db").IPv4, 6379)
	for pod, want := range map[string]lab.Outcome{"default/web": lab.Reached, "default/other": lab.TimedOut} {
		if r := s.host(pod).Connect(t.Context(), "tcp", db, probeTimeout); r.Outcome != want {
			t.Fatalf("%s: %v, want %v", pod, r.Outcome, want)
		}
	}
	ask := func(wantStatus int) *status.Status {
		t.Helper()
		exit, stdout, stderr := sluice(t, "status", "--socket", s.socket, "-o", "json")
		if exit != wantStatus {
			t.Fatalf("status %d, want %d: %s%s", exit, wantStatus, stdout, stderr)
		}
		var got status.Status
		if err := json.Unmarshal([]byte(stdout), &got); err != nil {
			t.Fatal(err)
		}
		return &got
	}
	got := ask(0)
	if got.Enforcing.Policies != 1 || got.Enforcing.Pods != len(testbedPods) || got.Packets.Allowed == 0 || got.Packets.Denied == 0 ||
		got.Packets.Reasons["ingress-denied"] != got.Packets.Denied || got.OnExit != "keep" || !got.Ready {
		t.Errorf("%+v", got)
	}
	if !got.Started.Before(got.Enforcing.Since) || time.Since(got.Started) > time.Hour {
		t.Errorf("started %v, ready %v", got.Started, got.Enforcing.Since)
	}
	if status, stdout, stderr := sluice(t, "status", "--socket", s.socket, "--self"); status != 0 || stdout != "ready\n" {
		t.Errorf("--self: status %d, %s%s", status, stdout, stderr)
	}
	// The option --self fails if the command runs in another PID namespace than the agent, as in
	// another container.
	program, err := exec.LookPath("sluice")
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := exec.Command(program, "status", "--socket", s.socket, "--self")
	elsewhere.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	if out, err := elsewhere.CombinedOutput(); elsewhere.ProcessState.ExitCode() != exitFindings || !strings.Contains(string(out), "another agent answers") {
		t.Errorf("--self in another container: %v, %s", err, out)
	}

	for path, want := range map[string]string{
		"/healthz": "ok", "/readyz": "ok", "/debug/endpoint?pod=default/db": "default/access-demo1", "/debug/": "pprof",
		"/metrics": `sluice_verdicts_total{direction="ingress",reason="ingress-denied",verdict="deny"} `,
	} {
		if status, text := s.scrape(t, path); status != http.StatusOK || !strings.Contains(text, want) {
			t.Errorf("%s: %d, want %q:\n%s", path, status, want, text)
		}
	}

	// A broken manifest is a problem until it is corrected.
	s.write("broken.yaml", "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy")
	await := func(problems int) {
		t.Helper()
		for end := time.Now().Add(waitTimeout); ; time.Sleep(time.Millisecond) {
			status, stdout, _ := sluice(t, "status", "--socket", s.socket)
			if strings.Count(stdout, "\n  manifest ") == problems && (status == exitFindings) == (problems > 0) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("status %d, want %d problems:\n%s", status, problems, stdout)
			}
		}
	}
	await(1)
	s.save("broken.yaml", "")
	await(0)
}

func TestStatusWithoutAnAgent(t *testing.T) {
	status, stdout, stderr := sluice(t, "status", "--socket", t.TempDir()+"/none")
	if status != exitFailed || stdout != "" || !strings.Contains(stderr, "no agent answers") || !strings.Contains(stderr, "--socket") {
		t.Errorf("status %d, %q, %q", status, stdout, stderr)
	}
}

func TestHTTPAddressIsChecked(t *testing.T) {
	if status, _, stderr := sluice(t, "run", "--manifests", ".", "--http-address", "9000"); status != exitFailed || !strings.Contains(stderr, telemetry.DefaultAddress) {
		t.Errorf("status %d, %q", status, stderr)
	}
}
