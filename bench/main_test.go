package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/bench/result"
	"sluice/bench/testbed/lab"
)

// TestMain lets the test binary act as the program that the harness starts in pods.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && slices.Contains([]string{"orders", "server", "accept"}, os.Args[1]) {
		main()
	}
	dir, err := os.MkdirTemp("", "sluice-bench-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	sluice = filepath.Join(dir, "sluice")
	status := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(status)
}

// sluice is the path of the agent, which is built once for all tests; see TestMain.
var sluice string

var buildSluice = sync.OnceValue(func() error {
	if out, err := exec.Command("go", "build", "-o", sluice, "sluice/cmd/sluice").CombinedOutput(); err != nil {
		return fmt.Errorf("build sluice: %w\n%s", err, out)
	}
	return nil
})

// testEnv returns an env for a command in a test. watch is called with each write to the
// command's standard error.
func testEnv(t *testing.T, watch func(string)) (e env, stdout *bytes.Buffer) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	stdout = new(bytes.Buffer)
	return env{stdin: strings.NewReader(""), stdout: stdout, stderr: watcher(watch), self: self, terminal: true}, stdout
}

type watcher func(string)

func (w watcher) Write(b []byte) (int, error) { w(string(b)); return len(b), nil }

// needLab builds the agent, and checks at the end of the test that no file and no process is
// left. It skips the test if a lab is not possible.
func needLab(t *testing.T) {
	t.Helper()
	lab.Require(t)
	if err := buildSluice(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Cleanup(func() {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left in the temporary directory: %v %v", left, err)
		}
		if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err == nil {
			t.Errorf("there is a child left (%d)", pid)
		}
	})
}

// TestRun runs every load on every row once, briefly, and checks the results that do not
// depend on the machine.
func TestRun(t *testing.T) {
	needLab(t)
	file := filepath.Join(t.TempDir(), "r.json")
	var log strings.Builder
	e, stdout := testEnv(t, func(s string) { log.WriteString(s) })
	status := run(t.Context(), e, []string{
		"run", "--sluice", sluice, "--sizes", "40/4/2", "--rounds", "1", "--for", "60ms", "--churn", "300ms",
		"--out", file, "--html", file + ".html", "--page", file + ".md",
	})
	if status != 0 {
		t.Fatalf("exit status %d:\n%s", status, log.String())
	}
	r, err := result.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := result.Scenario{Pods: 40, Policies: 4, Namespaces: 2}
	one := func(row, load string, m result.Metric) float64 {
		t.Helper()
		values := r.Values(result.Key{Scenario: s, Row: row, Load: load, Metric: m})
		if len(values) != 1 {
			t.Fatalf("%s, %s, %s: %v, want one value", row, load, m.Name, values)
		}
		return values[0]
	}
	for _, of := range r.Rows {
		for _, l := range []string{"tcp-1", "tcp-16", "tcp-64"} {
			// The number of connections that end in time depends on the machine, and may be 0.
			if one(of.Name, l, connections) < 0 || one(of.Name, l, p50) <= 0 || one(of.Name, l, machineCPU) < 0 {
				t.Errorf("%s, %s: no connections", of.Name, l)
			}
		}
		i := slices.IndexFunc(rows, func(r row) bool { return r.Name == of.Name })
		if rows[i].ends != fewPods {
			continue
		}
		if one(of.Name, "udp-16", p50) <= 0 {
			t.Errorf("%s: no requests", of.Name)
		}
		if !rows[i].fresh && one(of.Name, "stream", throughput) <= 0 {
			t.Errorf("%s: no stream", of.Name)
		}
	}
	// The number of queued packets per connection shows whether a row enforces as it claims.
	for row, want := range map[string]float64{"accept": 1, "fresh": 1, "user": 1, "kernel": 0, "observed": 0, "reject": 0} {
		if !slices.ContainsFunc(r.Rows, func(r result.Row) bool { return r.Name == row }) {
			continue
		}
		if got := one(row, "tcp-1", queued); got < want-0.1 || got > want+0.5 {
			t.Errorf("%s: %v packets of each connection are queued, want about %v", row, got, want)
		}
		if one(row, "tcp-1", agentCPU) < 0 {
			t.Errorf("%s: the agent's CPU time has decreased", row)
		}
	}
	// The ends of these rows have never talked before, and the kernel answers all the same.
	for _, row := range newEnds() {
		for _, load := range []string{"tcp-1", "tcp-16", "tcp-64"} {
			if !slices.ContainsFunc(r.Rows, func(r result.Row) bool { return r.Name == row }) {
				continue
			}
			if n, bad := one(row, load, queuedPackets), one(row, load, failed); n != 0 || bad != 0 {
				t.Errorf("%s, %s: %v packets were queued, %v connections failed", row, load, n, bad)
			}
		}
	}
	// The observer has printed each connection, or counted it as left out.
	for _, load := range []string{"tcp-1", "tcp-16", "tcp-64"} {
		if all := one("observed", load, observed) + one("observed", load, leftOut); all < 0.999 || one("observed", load, unobserved) != 0 || one("observed", load, observerCPU) <= 0 {
			t.Errorf("%s: %v of the connections are observed or counted as left out", load, all)
		}
	}
	if one("observed", "udp-16", observed) <= 0 {
		t.Error("no requests are observed")
	}
	last := "" // the extra "start" measures a restart of this row's agent
	for _, of := range rows {
		if of.kind == isSluice && of.hasExtras() && !of.observed && slices.Contains(r.Rows, of.Row) {
			last = of.Name
		}
	}
	if one(last, "start", toReady) <= 0 || one("user", "churn", quietRate) <= 0 || one("none", "flood", floodSent) <= 0 {
		t.Error("the extras have no figures")
	}
	// On a very busy machine, a policy may take effect only after the probe, which takes a
	// second. In that case, the result has a note instead of values.
	if v := r.Values(result.Key{Scenario: s, Row: "user", Load: "effect", Metric: denyNew}); len(v) != 1 &&
		!slices.ContainsFunc(r.Notes, func(n string) bool { return strings.Contains(n, "no effect within") }) {
		t.Errorf("effects: %v; notes: %q", v, r.Notes)
	}
	if len(r.Aims) == 0 {
		t.Error("no figure was compared with an aim")
	}
	for name, want := range map[string]string{".html": "<svg", ".md": "## 40 pods, 4 policies, 2 namespaces"} {
		text, err := os.ReadFile(file + name)
		if err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s lacks %q: %v", name, want, err)
		}
	}
	if !strings.Contains(stdout.String(), "New TCP connections, 64 clients at once") || !strings.Contains(log.String(), "left: 40/4/2: no agent: tcp-1") {
		t.Errorf("printed:\n%s\n%s", stdout.String(), log.String())
	}
	// The comparison of a result with itself finds no change.
	stdout.Reset()
	if status := run(t.Context(), e, []string{"compare", file, file}); status != 0 || !strings.Contains(stdout.String(), ", 0 changed beyond the noise") {
		t.Errorf("compared with itself: exit status %d\n%s", status, stdout.String())
	}
}

// TestSilentObserver checks that the run fails if an observer prints no records or unknown ones, or ends.
func TestSilentObserver(t *testing.T) {
	needLab(t)
	for _, tt := range []struct{ observe, want string }{
		{"exec sleep 1000", "has printed none of"},
		{"echo there is no agent >&2; exit 2", "sluice observe has ended: there is no agent"},
		{"exec yes", "unknown event"},
	} {
		wrapper := filepath.Join(t.TempDir(), "sluice")
		text := fmt.Sprintf("#!/bin/sh\nif [ \"$1\" = observe ]; then %s; fi\nexec %s \"$@\"\n", tt.observe, sluice)
		if err := os.WriteFile(wrapper, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
		var log strings.Builder
		e, _ := testEnv(t, func(s string) { log.WriteString(s) })
		status := run(t.Context(), e, []string{"run", "--sluice", wrapper, "--sizes", "10/1", "--rows", "observed", "--loads", "tcp-1", "--rounds", "1", "--for", "20ms"})
		if status != exitFailed || !strings.Contains(log.String(), tt.want) {
			t.Errorf("%s: exit status %d, want %q in\n%s", tt.observe, status, tt.want, log.String())
		}
	}
}

// TestInterrupted checks that an interrupt in the middle of a load leaves nothing behind.
func TestInterrupted(t *testing.T) {
	needLab(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var log strings.Builder
	e, _ := testEnv(t, func(s string) {
		log.WriteString(s)
		if strings.Contains(s, "tcp-16, round 1") {
			// Cancel a moment later, while the client runs for an hour.
			time.AfterFunc(20*time.Millisecond, cancel)
		}
	})
	status := run(ctx, e, []string{"run", "--sluice", sluice, "--sizes", "10/1", "--rows", "user", "--loads", "tcp-16", "--for", "1h"})
	if status != exitInterrupted || !strings.Contains(log.String(), "everything is cleaned up") {
		t.Errorf("exit status %d:\n%s", status, log.String())
	}
}

func TestMistakes(t *testing.T) {
	lab.Require(t)
	bad := filepath.Join(t.TempDir(), "bad.json")
	if err := os.WriteFile(bad, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"run", "--sizes", "9/1"}, `size "9/1"`},
		{[]string{"run", "--sizes", "10/x"}, `size "10/x"`},
		{[]string{"run", "--loads", "dance"}, "tcp-64, udp-16, stream, start, effect, churn, flood"},
		{[]string{"run", "--sluice", "/no/such/file"}, "--sluice"},
		{[]string{"run", "--rounds", "0"}, "--rounds"},
		{[]string{"run", "--vary", "queues"}, "queues=1,2,4"},
		{[]string{"run", "more"}, "more"},
		{[]string{"compare", bad, bad}, "format 0"},
		{[]string{"report", "/no/such/file"}, "/no/such/file"},
		{[]string{"server", "--tcp", "x"}, `ports "x"`},
		{[]string{"client", "127.0.0.1", "--ports", "1,2"}, "--ports"},
		{[]string{"client", "127.0.0.1", "--from", "x"}, "--from"},
	} {
		var log strings.Builder
		e, _ := testEnv(t, func(s string) { log.WriteString(s) })
		if status := run(t.Context(), e, tt.args); status != exitFailed || !strings.Contains(log.String(), tt.want) {
			t.Errorf("%v: exit status %d, %q; want %q in it", tt.args, status, log.String(), tt.want)
		}
	}
}

// TestServerAndClient runs the commands server and client, on the loopback of a pod.
func TestServerAndClient(t *testing.T) {
	l := lab.ForTest(t, lab.Options{})
	pod, err := l.AddPod("pod")
	if err != nil {
		t.Fatal(err)
	}
	e, _ := testEnv(t, func(string) {})
	server, err := e.startReady(t.Context(), pod, "server", "--tcp", "8080,9000-9003", "--udp", "8080")
	if err != nil {
		t.Fatal(err)
	}
	defer server.end()
	for _, args := range [][]string{
		{"127.0.0.1", "--clients", "1,4"},
		{"::1", "--clients", "2", "--from", "::1"},
	} {
		var out bytes.Buffer
		err := pod.Do(func() error {
			e.stdout = &out
			cmd := clientCommand(e)
			cmd.SetArgs(append(args, "--for", "30ms", "--rounds", "1"))
			cmd.SilenceErrors, cmd.SilenceUsage = true, true
			return cmd.ExecuteContext(t.Context())
		})
		if err != nil || !strings.Contains(out.String(), "udp") || !strings.Contains(out.String(), "Gbit/s") {
			t.Errorf("%v: %v\n%s", args, err, out.String())
		}
	}
	if _, err := e.startReady(t.Context(), pod, "server", "--tcp", "8080"); err == nil || !strings.Contains(err.Error(), "8080") {
		t.Errorf("a second server on the port: %v", err)
	}
}
