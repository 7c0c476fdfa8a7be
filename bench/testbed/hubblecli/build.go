// Package hubblecli builds the real hubble and hubble-relay for tests.
package hubblecli

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"sluice/bench/testbed/goprogram"
)

const (
	// Version is the version of Cilium whose programs are built. It is the version that go.mod requires.
	Version = "v1.20.2"
	module  = "github.com/cilium/cilium"

	// Enable is the environment variable that enables the tests with these programs.
	Enable = "SLUICE_TEST_HUBBLE"
)

// Programs are the paths of the built programs.
type Programs struct{ Hubble, Relay string }

// Require returns the programs, and skips the test unless Enable is set.
func Require(t *testing.T) Programs {
	t.Helper()
	if os.Getenv(Enable) == "" {
		t.Skip("needs the real hubble: make test-hubble")
	}
	p, err := Build(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Build builds the programs, unless they are already there. See goprogram.Module.Build.
func Build(ctx context.Context, log io.Writer) (Programs, error) {
	m := goprogram.Module{Name: "hubble", Version: Version, Path: module, Flags: []string{"-ldflags=-s -w"}}
	dir, err := m.Build(ctx, log, map[string]string{"hubble": module + "/hubble", "hubble-relay": module + "/hubble-relay"})
	return Programs{Hubble: filepath.Join(dir, "hubble"), Relay: filepath.Join(dir, "hubble-relay")}, err
}
