//go:build linux

package main

import (
	"strings"
	"testing"
)

func TestStartupTaintFlag(t *testing.T) {
	for _, tt := range []struct{ text, message string }{
		{"", ""},
		{"sluice.dev/agent-not-ready", ""},
		{"agent-not-ready", ""},
		{"sluice.dev/agent-not-ready:NoSchedule", "give only the key"},
		{"sluice.dev/agent-not-ready=true:NoSchedule", "give only the key"},
		{"a/b/c", "not the key of a taint"},
		{"sluice.dev/", "not the key of a taint"},
		{"not a key", "not the key of a taint"},
	} {
		t.Run(tt.text, func(t *testing.T) {
			var f taintFlag
			err := f.Set(tt.text)
			switch {
			case tt.message == "" && (err != nil || f.String() != tt.text):
				t.Errorf("error %v; the flag is %q", err, &f)
			case tt.message != "" && (err == nil || !strings.Contains(err.Error(), tt.message)):
				t.Errorf("%v, want %q", err, tt.message)
			}
		})
	}
}

func TestStartupTaintNeedsACluster(t *testing.T) {
	status, _, stderr := sluice(t, "run", "--manifests", t.TempDir(), "--startup-taint", "sluice.dev/agent-not-ready")
	if status != exitFailed || !strings.Contains(stderr, "--startup-taint") || !strings.Contains(stderr, "leave it out") {
		t.Errorf("status %d, %s", status, stderr)
	}
}
