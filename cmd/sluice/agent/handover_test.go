package agent

import (
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sluice/cmd/sluice/agent/status"
)

// If the agent that reads the queues has a different --socket, the new agent reaches only
// itself over its own socket. The error names the path and explains this.
func TestTakeOverNamesOtherSockets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc((&agent{}).handOver)}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close(); <-ended })
	_, err = requestYield(t.Context(), path, time.Minute)
	if !errors.Is(err, errNotEnforcing) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "agent with another --socket") {
		t.Errorf("error %v, want one that names %s and an agent with another --socket", err, path)
	}
}

// hung returns the path of a socket whose agent never answers.
func hung(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return path
}

// Errors about an agent that hangs name its socket, the timeout and, for a takeover, what to
// do. They do not contain the text of the context's error.
func TestHungAgentIsNamed(t *testing.T) {
	path := hung(t)
	const timeout = 50 * time.Millisecond
	_, takeover := requestYield(t.Context(), path, timeout)
	ctx, cancel := within(t.Context(), timeout, "to answer")
	defer cancel()
	_, status := status.Ask(ctx, path)
	for what, tt := range map[string]struct {
		err  error
		want []string
	}{
		"take over": {takeover, []string{path, timeout.String(), "hangs", "end its process"}},
		"status":    {status, []string{path, timeout.String()}},
	} {
		if tt.err == nil {
			t.Errorf("%s: no error", what)
			continue
		}
		for _, text := range tt.want {
			if !strings.Contains(tt.err.Error(), text) {
				t.Errorf("%s: %q lacks %q", what, tt.err, text)
			}
		}
		if strings.Contains(tt.err.Error(), "context ") {
			t.Errorf("%s: %q mentions a context", what, tt.err)
		}
	}
}
