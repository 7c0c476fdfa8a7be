package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// An agent that has yielded and fails breaks off the request of the one that took
// over. That one is still there, and its rules must stay.
func TestNoStepInAtTheEnd(t *testing.T) {
	ended, end := context.WithCancel(t.Context())
	end()
	a := &agent{phase: yielded, serving: ended} // without anything to step in with
	if err := a.stepIn(); err != nil {
		t.Error(err)
	}
	if was := a.end(); was != yielded {
		t.Errorf("phase %d: it would take the other one's rules away", was)
	}
}

// An agent that has its own socket finds itself there, and not the agent that reads the
// queues: the error tells where to look.
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
	_, err = takeOver(t.Context(), path, patience)
	if !errors.Is(err, errNotNow) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "agent with another --socket") {
		t.Errorf("%v", err)
	}
}
