// Package prometheus builds the real prometheus and promtool for tests and pictures.
package prometheus

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
)

const (
	// Version is the version of Prometheus whose programs are built.
	Version = "v0.316.0"
	module  = "github.com/prometheus/prometheus"

	// Enable is the environment variable that enables the tests with these programs.
	Enable = "SLUICE_TEST_ALERTS"
)

// Server returns the path of the program prometheus. See build.
func Server(ctx context.Context, log io.Writer) (string, error) { return built(ctx, "prometheus", log) }

// Promtool returns the path of the program promtool. See build.
func Promtool(ctx context.Context, log io.Writer) (string, error) { return built(ctx, "promtool", log) }

func built(ctx context.Context, name string, log io.Writer) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("build %s: find a place for it: %w", name, err)
	}
	dir := filepath.Join(cache, "sluice", "prometheus-"+Version)
	if err := build(ctx, dir, name, log); err != nil {
		return "", fmt.Errorf("build %s in %s: %w", name, dir, err)
	}
	return filepath.Join(dir, name), nil
}

// build builds a program from its Go module into dir, unless it is already there. The first time, this
// takes two minutes of CPU time, and build writes a line about it to log. If two processes call build at
// the same time, one waits for the other.
func build(ctx context.Context, dir, name string, log io.Writer) error {
	work, made := filepath.Join(dir, "module"), filepath.Join(dir, name)
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
	if _, err := os.Stat(made); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	fmt.Fprintf(log, "building %s %s: minutes, the first time\n", name, Version)
	text := "module prometheus.invalid\n\ngo 1.26.0\n\nrequire " + module + " " + Version + "\n"
	if err := os.WriteFile(filepath.Join(work, "go.mod"), []byte(text), 0o644); err != nil {
		return err
	}
	// Build under a temporary name, so that an incomplete program is not used.
	if err := goBuild(ctx, work, made+".part", module+"/cmd/"+name); err != nil {
		return err
	}
	return os.Rename(made+".part", made)
}

// goBuild builds a program at a low priority, without the caller's module settings. The build tag leaves
// out all optional service discovery, which takes most of the time to build and is not needed.
func goBuild(ctx context.Context, dir, out, path string) error {
	cmd := exec.CommandContext(ctx, "nice", "-n", "10", "go", "build", "-mod=mod", "-tags=remove_all_sd", "-trimpath", "-ldflags=-s -w", "-o", out, path)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOWORK=off", "GOFLAGS=", "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		text := strings.TrimSpace(stderr.String())
		return fmt.Errorf("go build %s: %w: %s", path, err, text[max(0, len(text)-2000):])
	}
	return nil
}
