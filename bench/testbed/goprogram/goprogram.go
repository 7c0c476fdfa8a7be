// Package goprogram builds programs of other projects from their Go modules, for tests with the real
// ones.
package goprogram

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Module is a version of a module, with what its programs need to be built.
type Module struct {
	// Name names the module in messages, and the directory of its programs.
	Name, Version string
	// Path is the path of the module.
	Path string
	// Flags are further flags of go build.
	Flags []string
	// Prepare writes the file go.mod of the module in dir, in which the programs are built. If it is nil,
	// go.mod only requires the module.
	Prepare func(ctx context.Context, dir string) error
}

// Build builds programs into a directory in the user's cache directory, unless they are already there,
// and returns the directory. programs maps the names of the programs to the paths of their packages. The
// first time, this takes minutes of CPU time, and Build writes a line about it to log. If two processes
// call Build for the same module at the same time, one waits for the other.
func (m *Module) Build(ctx context.Context, log io.Writer, programs map[string]string) (dir string, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("build %s: find a place for it: %w", m.Name, err)
	}
	dir = filepath.Join(cache, "sluice", m.Name+"-"+m.Version)
	if err := m.build(ctx, dir, log, programs); err != nil {
		return "", fmt.Errorf("build %s in %s: %w", m.Name, dir, err)
	}
	return dir, nil
}

func (m *Module) build(ctx context.Context, dir string, log io.Writer, programs map[string]string) error {
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
	prepared := false
	for name, path := range programs {
		made := filepath.Join(dir, name)
		if _, err := os.Stat(made); !errors.Is(err, os.ErrNotExist) {
			continue
		}
		fmt.Fprintf(log, "building %s of %s %s: minutes, the first time\n", name, m.Name, m.Version)
		began := time.Now()
		if !prepared {
			if err := m.prepare(ctx, work); err != nil {
				return err
			}
			prepared = true
		}
		// Build under a temporary name, so that an incomplete program is not used.
		flags := append([]string{"build", "-mod=mod", "-trimpath"}, m.Flags...)
		if _, err := Go(ctx, work, append(flags, "-o", made+".part", path)...); err != nil {
			return err
		}
		if err := os.Rename(made+".part", made); err != nil {
			return err
		}
		fmt.Fprintf(log, "built in %v\n", time.Since(began).Round(time.Second))
	}
	return nil
}

func (m *Module) prepare(ctx context.Context, dir string) error {
	if m.Prepare != nil {
		return m.Prepare(ctx, dir)
	}
	text := "module " + m.Name + ".invalid\n\ngo 1.26.0\n\nrequire " + m.Path + " " + m.Version + "\n"
	return os.WriteFile(filepath.Join(dir, "go.mod"), []byte(text), 0o644)
}

// Go runs the go command in a directory, at a low priority and without the caller's module settings, and
// returns its standard output. An error has the end of its standard error.
func Go(ctx context.Context, dir string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "nice", append([]string{"-n", "10", "go"}, args...)...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOWORK=off", "GOFLAGS=", "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		text := stderr.Bytes()
		return nil, fmt.Errorf("go %s: %w: %s", args[0], err, bytes.TrimSpace(text[max(0, len(text)-2000):]))
	}
	return out, nil
}
