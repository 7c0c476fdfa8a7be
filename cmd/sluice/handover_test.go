package main

import (
	"context"
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
