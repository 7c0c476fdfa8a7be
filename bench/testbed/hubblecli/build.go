// Package hubblecli builds the real hubble and hubble-relay for tests.
package hubblecli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
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

// Build builds the programs from their Go module into the user's cache directory, unless they are
// already there. The first time, this takes minutes, and Build writes a line about it to log. If two
// processes call Build at the same time, only one of them builds.
func Build(ctx context.Context, log io.Writer) (Programs, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return Programs{}, fmt.Errorf("build hubble: find a place for it: %w", err)
	}
	dir := filepath.Join(cache, "sluice", "hubble-"+Version)
	if err := build(ctx, dir, log); err != nil {
		return Programs{}, fmt.Errorf("build hubble in %s: %w", dir, err)
	}
	return Programs{Hubble: filepath.Join(dir, "hubble"), Relay: filepath.Join(dir, "hubble-relay")}, nil
}

func build(ctx context.Context, dir string, log io.Writer) error {
	work := filepath.Join(dir, "module")
	if err := os.MkdirAll(work, 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer lock.Close() // releases the lock
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("wait for another build: %w", err)
	}
	for _, name := range []string{"hubble", "hubble-relay"} {
		made := filepath.Join(dir, name)
		if _, err := os.Stat(made); !errors.Is(err, os.ErrNotExist) {
			continue
		}
		fmt.Fprintf(log, "building %s of Cilium %s: minutes, the first time\n", name, Version)
		text := "module hubble.invalid\n\ngo 1.26.0\n\nrequire " + module + " " + Version + "\n"
		if err := os.WriteFile(filepath.Join(work, "go.mod"), []byte(text), 0o644); err != nil {
			return err
		}
		// Build under a temporary name, so that an incomplete program is not used.
		if err := goBuild(ctx, work, made+".part", module+"/"+name); err != nil {
			return err
		}
		if err := os.Rename(made+".part", made); err != nil {
			return err
		}
	}
	return nil
}

// goBuild builds a program at a low priority, without the caller's module settings.
func goBuild(ctx context.Context, dir, out, path string) error {
	cmd := exec.CommandContext(ctx, "nice", "-n", "10", "go", "build", "-mod=mod", "-trimpath", "-ldflags=-s -w", "-o", out, path)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOWORK=off", "GOFLAGS=", "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		text := strings.TrimSpace(stderr.String())
		return fmt.Errorf("go build %s: %w: %s", path, err, text[max(0, len(text)-2000):])
	}
	return nil
}
