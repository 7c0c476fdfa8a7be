//go:build linux

package main

import (
	"context"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"sluice/bench/testbed/agenttest"
)

// If an agent cannot take over because the old agent hangs, the error names this reason and
// has a hint.
func TestTakeOverFromAHungAgent(t *testing.T) {
	s := newTestbed(t)
	s.start("--on-exit", "keep")
	if err := syscall.Kill(s.agent.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	program, err := exec.LookPath("sluice")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*waitTimeout)
	defer cancel()
	a, err := agenttest.Start(ctx, agenttest.Options{Sluice: program, Node: s.Nodes[0], Dir: s.dir, Args: []string{"--socket", s.socket}})
	if err == nil {
		a.Kill()
		t.Fatal("the new agent took over from an agent that does not answer")
	}
	if text := err.Error(); !strings.Contains(text, s.socket) || !strings.Contains(text, "hangs") || strings.Contains(text, "context canceled") {
		t.Errorf("the error is: %s", text)
	}
}
