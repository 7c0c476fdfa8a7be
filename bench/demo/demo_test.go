package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/bench/testbed/lab"
)

// TestMain lets the test binary act as a fake agent: with the arguments of `sluice run`, it
// logs the events of an agent but enforces nothing.
func TestMain(m *testing.M) {
	if i := slices.Index(os.Args, "--manifests"); i > 0 && os.Args[1] == "run" {
		fakeAgent(os.Args[i+1])
		return
	}
	dir, err := os.MkdirTemp("", "sluice-demo-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	sluice = filepath.Join(dir, "sluice")
	status := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(status)
}

func fakeAgent(dir string) {
	ended, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	var last []byte
	for number := 1; ended.Err() == nil; time.Sleep(time.Millisecond) {
		text, err := os.ReadFile(filepath.Join(dir, "policies.yaml"))
		if number > 1 && (err != nil || bytes.Equal(text, last)) {
			continue
		}
		fmt.Fprintf(os.Stderr, "{\"event\":\"ready\"}\n{\"event\":\"published\",\"changed_by\":%q,\"policies\":%d}\n",
			"manifests "+dir, bytes.Count(text, []byte("kind: NetworkPolicy")))
		last, number = text, number+1
	}
}

// sluice is the path of the real agent, which is built once for all tests; see TestMain.
var sluice string

var buildSluice = sync.OnceValue(func() error {
	if out, err := exec.Command("go", "build", "-o", sluice, "sluice/cmd/sluice").CombinedOutput(); err != nil {
		return fmt.Errorf("build sluice: %w\n%s", err, out)
	}
	return nil
})

// needSluice builds the agent. It skips the test if a lab is not possible.
func needSluice(t *testing.T) {
	t.Helper()
	lab.Require(t)
	if err := buildSluice(); err != nil {
		t.Fatal(err)
	}
}

// checkTempDir gives the test a directory for temporary files, and checks at the end that
// the demo has left no files in it.
func checkTempDir(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Cleanup(func() {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v %v", left, err)
		}
	})
}

func TestAllStepsAreAsExpected(t *testing.T) {
	needSluice(t)
	checkTempDir(t)
	var stdout, stderr bytes.Buffer
	if status := run(t.Context(), env{stdout: &stdout, stderr: &stderr}, []string{"--sluice", sluice, "--verbose"}); status != 0 {
		t.Fatalf("exit status %d: %s\n%s", status, stderr.String(), stdout.String())
	}
	for _, want := range []string{
		"All as expected: 8 steps, 2176 attempts, none wrong",
		"kind: NetworkPolicy",
		"default/web  yes     yes     yes     TCP a   no a    yes     yes     yes     yes\n",
		"a  ingress-denied: no rule of default/access-demo1 or default/access-demo2 allows it\n",
		"a  egress-denied: no rule of default/to-partner allows it\n",
		" INFO  verdict event=verdict verdict=deny reason=ingress-denied src=", // a line that --verbose adds
	} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("%q is not in the output", want)
		}
	}
	for line := range strings.Lines(shownInReadme(t)) {
		if line != "...\n" && !strings.Contains(stdout.String(), line) {
			t.Errorf("README.md shows a line that is not in the output: %s", line)
		}
	}
	if strings.Contains(stdout.String(), "\x1b") {
		t.Error("there are colors without a terminal")
	}
	if stderr.Len() > 0 {
		t.Errorf("on standard error: %s", stderr.String())
	}
}

// shownInReadme returns the part of the demo's output that README.md shows: one step.
func shownInReadme(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, step, found := strings.Cut(string(text), "```\n── ")
	step, _, ended := strings.Cut(step, "```\n")
	if !found || !ended {
		t.Fatal("no step was found in README.md")
	}
	return "── " + step
}

// With an agent that enforces nothing, the demo reports each probe whose result is wrong.
func TestWrongProbesAreReported(t *testing.T) {
	lab.Require(t)
	tests := []struct {
		name   string
		args   []string
		status int
		want   []string
	}{
		{"stops at the first", nil, exitWrong, []string{
			"NOT as expected: 46 of 544 attempts are wrong, in 2 of 8 steps shown. Show the others with --keep-going.",
			"default/api  yes     yes     yes     yes !   yes !",
			"  no   * -> default/db:*                             0 of  46 attempts were denied: WRONG",
			"WRONG: default/web -> default/db:6379/UDP over IPv6 got through, which is not as expected (* -> default/db:*)",
		}},
		{"goes on", []string{"--keep-going"}, exitWrong, []string{"in 8 of 8 steps shown.\n"}},
		{"one step", []string{"--step", "deny-all"}, exitWrong, []string{"── 1/1  deny all", "168 of 272 attempts are wrong"}},
		{"the one step that needs no agent", []string{"--step", "no-policy"}, 0, []string{"All as expected: 1 step"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			checkTempDir(t)
			var stdout, stderr bytes.Buffer
			status := run(t.Context(), env{stdout: &stdout, stderr: &stderr}, append([]string{"--sluice", os.Args[0]}, tt.args...))
			if status != tt.status || stderr.Len() > 0 {
				t.Errorf("exit status %d, want %d: %s", status, tt.status, stderr.String())
			}
			for _, want := range tt.want {
				if !strings.Contains(stdout.String(), want) {
					t.Errorf("%q is not in the output:\n%s", want, stdout.String())
				}
			}
		})
	}
}

// interrupter is a writer. It calls stop() when the output contains the text interrupter.at.
type interrupter struct {
	at   string
	stop func()
	seen bytes.Buffer
}

func (i *interrupter) Write(b []byte) (int, error) {
	i.seen.Write(b)
	if strings.Contains(i.seen.String(), i.at) {
		i.stop()
	}
	return len(b), nil
}

func TestInterrupted(t *testing.T) {
	needSluice(t)
	for _, at := range []string{"Sluice follows", "1/8", "2/8", "3/8"} {
		t.Run(at, func(t *testing.T) {
			checkTempDir(t)
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			var stderr bytes.Buffer
			status := run(ctx, env{stdout: &interrupter{at: at, stop: stop}, stderr: &stderr}, []string{"--sluice", sluice})
			if status != exitInterrupted || !strings.Contains(stderr.String(), "cleaned up") {
				t.Errorf("exit status %d: %s", status, stderr.String())
			}
			children, err := os.ReadFile("/proc/thread-self/children")
			if err == nil && len(children) > 0 {
				t.Errorf("children: %s", children)
			}
		})
	}
}

// With the flag keep, the lab of one step stays until the interrupt. The commands that the demo prints
// work in it, also if pods have only IPv6 addresses.
func TestKept(t *testing.T) {
	needSluice(t)
	checkTempDir(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	shown := &interrupter{at: "sluice observe"}
	shown.stop = func() {
		defer stop()
		text := shown.seen.String()
		connect := regexp.MustCompile(`(?m)^  (nsenter .* && echo reached)$`).FindStringSubmatch(text)
		explain := regexp.MustCompile(`(?m)^  (\S*sluice explain .*)$`).FindStringSubmatch(text)
		denied := regexp.MustCompile(`(?m)^  (\S*sluice denied.*)$`).FindStringSubmatch(text)
		if connect == nil || explain == nil || denied == nil {
			t.Errorf("there are no commands in\n%s", text)
			return
		}
		for command, want := range map[string]string{connect[1]: "reached", explain[1]: "allow (rule): default/web (fd", denied[1]: "LAST "} {
			if out, err := exec.Command("bash", "-c", command).CombinedOutput(); err != nil || !strings.HasPrefix(string(out), want) {
				t.Errorf("%s: %v\n%s", command, err, out)
			}
		}
	}
	var stderr bytes.Buffer
	status := run(ctx, env{stdout: shown, stderr: &stderr}, []string{"--sluice", sluice, "--step", "both", "--family", "ipv6", "--keep"})
	if text := shown.seen.String(); status != 0 || strings.Contains(text, "over IPv4") || !strings.Contains(text, "All as expected: 1 step, 136 attempts") {
		t.Errorf("exit status %d: %s%s", status, text, stderr.String())
	}
}

func TestAgentThatCannotStart(t *testing.T) {
	lab.Require(t)
	checkTempDir(t)
	broken := filepath.Join(t.TempDir(), "sluice")
	if err := os.WriteFile(broken, []byte("#!/bin/sh\necho no queue for you >&2\nexit 7\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{broken: "no queue for you", "/no/such/sluice": "go build -o bin/sluice"} {
		var stderr bytes.Buffer
		if status := run(t.Context(), env{stdout: io.Discard, stderr: &stderr}, []string{"--sluice", path}); status != exitFailed || !strings.Contains(stderr.String(), want) {
			t.Errorf("exit status %d, want %q in: %s", status, want, stderr.String())
		}
	}
}

func TestFlags(t *testing.T) {
	for args, want := range map[string]string{
		"--stop":       "flag provided but not defined: -stop (see --help)",
		"--step nope":  "give one of no-policy, access-demo1,",
		"--family v6":  "give ipv4, ipv6 or both",
		"access-demo1": "give only flags",
	} {
		var stdout, stderr bytes.Buffer
		if status := run(t.Context(), env{stdout: &stdout, stderr: &stderr}, strings.Fields(args)); status != exitFailed || !strings.Contains(stderr.String(), want) {
			t.Errorf("%s: exit status %d, want %q in: %s", args, status, want, stderr.String())
		}
	}
	var stdout, stderr bytes.Buffer
	if status := run(t.Context(), env{stdout: &stdout, stderr: &stderr}, []string{"--help"}); status != 0 || !strings.Contains(stdout.String(), "-keep-going") {
		t.Errorf("--help: exit status %d: %s%s", status, stdout.String(), stderr.String())
	}
}
