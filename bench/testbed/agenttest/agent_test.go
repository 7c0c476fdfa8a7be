package agenttest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sluice/bench/testbed/lab"
)

func TestReadable(t *testing.T) {
	for text, want := range map[string]string{
		`{"time":"2026-01-02T03:04:05.678901+01:00","level":"INFO","msg":"sluice is ready","pods":5,"fail":"open"}`: "03:04:05.678 INFO  sluice is ready pods=5 fail=open",
		`{"time":"then","level":"DEBUG","msg":"m","z":"a \"b\"","a":"","n":{"x":1.5},"b":true}`:                     `then DEBUG m z="a \"b\"" a="" n={"x":1.5} b=true`,
		`panic: no queue`: "panic: no queue",
		`{"time":"2026`:   `{"time":"2026`,
	} {
		if got := readable(text); got != want {
			t.Errorf("%s:\n got %s\nwant %s", text, got, want)
		}
	}
}

func TestAwaitShowsEachLineOnce(t *testing.T) {
	a := &Agent{done: make(chan struct{}), changed: make(chan struct{})}
	a.line(`{"msg":"before"}`)
	mark := a.Mark()
	a.line(`{"msg":"one"}`)
	var seen []string
	found, err := a.Await(t.Context(), mark, func(l Line) bool {
		seen = append(seen, l.Text("msg"))
		switch len(seen) {
		case 1: // write the remaining lines while Await waits
			go func() {
				a.line(`no line of the log`)
				a.line(`{"msg":"two"}`)
				a.line(`{"msg":"three","n":3}`)
			}()
		case 3:
			return true
		}
		return false
	})
	if got := strings.Join(seen, " "); err != nil || got != "one two three" || found.Number("n") != 3 {
		t.Errorf("seen %q, found %v: %v", got, found, err)
	}
}

// startScript calls Start with a script instead of sluice.
func startScript(t *testing.T, ctx context.Context, script string, opts Options) (*Agent, error) {
	t.Helper()
	lab.Require(t)
	l, err := lab.New(lab.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	opts.Node, opts.Dir = l.Nodes[0], t.TempDir()
	opts.Sluice = filepath.Join(opts.Dir, "sluice")
	if err := os.WriteFile(opts.Sluice, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return Start(ctx, opts)
}

// ready is the output of an agent that becomes ready.
const ready = `
echo '{"level":"INFO","msg":"up","event":"ready"}' >&2
echo '{"level":"INFO","msg":"new","event":"published"}' >&2
`

// checkNoChildren fails the test if a child process is left.
func checkNoChildren(t *testing.T) {
	t.Helper()
	if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); !errors.Is(err, syscall.ECHILD) {
		t.Errorf("there is a child left (%d, %v)", pid, err)
	}
}

func TestStopIsGraceful(t *testing.T) {
	a, err := startScript(t, t.Context(), `tail -f /dev/null 2>/dev/null & trap "kill $!; exit 0" TERM`+ready+"wait", Options{})
	if err != nil {
		t.Fatal(err)
	}
	if group, err := syscall.Getpgid(a.cmd.Process.Pid); err != nil || group != a.cmd.Process.Pid {
		t.Errorf("the agent is in process group %d, not in one of its own: %v", group, err)
	}
	if err := a.Stop(); err != nil {
		t.Error(err)
	}
	checkNoChildren(t)
}

func TestStopKillsAnUnresponsiveAgent(t *testing.T) {
	a, err := startScript(t, t.Context(), "trap '' TERM"+ready+"exec sleep 1000", Options{StopTimeout: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Stop(); err == nil || !strings.Contains(err.Error(), "was killed\n") {
		t.Errorf("%v, want that it was killed", err)
	}
	checkNoChildren(t)
}

func TestStopAfterTheAgentHasExited(t *testing.T) {
	a, err := startScript(t, t.Context(), ready+"echo farewell >&2", Options{})
	if err != nil {
		t.Fatal(err)
	}
	<-a.done
	if err := a.Stop(); err == nil || !strings.Contains(err.Error(), "by itself (exit status 0)") || !strings.Contains(err.Error(), "farewell") {
		t.Errorf("%v, want that it had ended by itself, and its last words", err)
	}
}

func TestStartOfAnAgentThatExits(t *testing.T) {
	_, err := startScript(t, t.Context(), "echo no queue for you >&2\nexit 7", Options{})
	if err == nil || !strings.Contains(err.Error(), "exit status 7") || !strings.Contains(err.Error(), "no queue for you") {
		t.Errorf("%v, want how it ended and its last words", err)
	}
	checkNoChildren(t)
}

// stopper is a log writer that calls a function for each line.
type stopper func()

func (s stopper) Write(b []byte) (int, error) { s(); return len(b), nil }

func TestStartIsCancelled(t *testing.T) {
	for _, tt := range []struct{ name, script, late string }{
		{"it ends", "", ""},
		{"it will not end", "trap '' TERM\n", "was killed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			opts := Options{Log: stopper(cancel)}
			if tt.late != "" {
				opts.StopTimeout = time.Millisecond
			}
			_, err := startScript(t, ctx, tt.script+"echo not yet >&2\nexec sleep 1000", opts)
			if err == nil || !strings.Contains(err.Error(), "context canceled") || !strings.Contains(err.Error(), tt.late) {
				t.Errorf("%v, want that it was cancelled, and %q", err, tt.late)
			}
			if errors.Is(err, context.Canceled) != (tt.late == "") {
				t.Errorf("%v: is it context.Canceled? It must be so only if the agent ended in order", err)
			}
			checkNoChildren(t)
		})
	}
}
