package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Version is the Kubernetes version to build: v1.X.Y if sluice requires client-go v0.X.Y. The
// version of etcd is the one that this version of Kubernetes requires.
const Version = "v1.37.2"

const module = "k8s.io/kubernetes"

// Programs are the paths of the built programs.
type Programs struct{ Etcd, APIServer string }

// Build builds etcd and kube-apiserver from their Go modules into the user's cache
// directory, unless they are already there. The first time, this takes five minutes on two
// cores, 5 GB of Go's build cache and 0.5 GB of its module cache, and Build writes a line
// about it to log. If two processes call Build at the same time, only one of them builds.
func Build(ctx context.Context, log io.Writer) (Programs, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return Programs{}, fmt.Errorf("build the control plane: find a place for it: %w", err)
	}
	dir := filepath.Join(cache, "sluice", "controlplane-"+Version)
	if err := build(ctx, dir, log); err != nil {
		return Programs{}, fmt.Errorf("build the control plane in %s: %w", dir, err)
	}
	return Programs{Etcd: filepath.Join(dir, "etcd"), APIServer: filepath.Join(dir, "kube-apiserver")}, nil
}

func build(ctx context.Context, dir string, log io.Writer) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
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
	programs := map[string]string{"etcd": "go.etcd.io/etcd/server/v3", "kube-apiserver": module + "/cmd/kube-apiserver"}
	var missing []string
	for name := range programs {
		if _, err := os.Stat(filepath.Join(dir, name)); errors.Is(err, os.ErrNotExist) {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	fmt.Fprintf(log, "building %s of Kubernetes %s: minutes, the first time\n", strings.Join(missing, " and "), Version)
	began := time.Now()
	work := filepath.Join(dir, "module")
	if err := writeModule(ctx, work); err != nil {
		return err
	}
	for _, name := range missing {
		// Build under a temporary name, so that an incomplete program is not used.
		part := filepath.Join(dir, name+".part")
		if _, err := goCommand(ctx, work, "build", "-mod=mod", "-trimpath", "-ldflags=-s -w"+versionFlags(), "-o", part, programs[name]); err != nil {
			return err
		}
		if err := os.Rename(part, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	fmt.Fprintf(log, "built in %v\n", time.Since(began).Round(time.Second))
	return nil
}

// versionFlags returns linker flags that make the API server report its version.
func versionFlags() string {
	const of = " -X k8s.io/component-base/version."
	major, rest, _ := strings.Cut(strings.TrimPrefix(Version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	return of + "gitVersion=" + Version + of + "gitMajor=" + major + of + "gitMinor=" + minor
}

// writeModule writes a module in which programs of Kubernetes can be built. Kubernetes
// requires its own libraries as v0.0.0, and replaces them with directories of its tree. Go
// ignores these replacements in a module that requires Kubernetes, so writeModule replaces
// the libraries with their published versions: v0.X.Y for Kubernetes v1.X.Y.
func writeModule(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module controlplane.invalid\n"), 0o644); err != nil {
		return err
	}
	var downloaded struct{ GoMod string }
	if err := goJSON(ctx, dir, &downloaded, "mod", "download", "-json", module+"@"+Version); err != nil {
		return err
	}
	var mod struct {
		Go      string
		Require []struct{ Path, Version string }
	}
	if err := goJSON(ctx, dir, &mod, "mod", "edit", "-json", downloaded.GoMod); err != nil {
		return err
	}
	edits := []string{"mod", "edit", "-go=" + mod.Go, "-require=" + module + "@" + Version}
	for _, r := range mod.Require {
		if r.Version == "v0.0.0" {
			edits = append(edits, "-replace="+r.Path+"="+r.Path+"@v0."+strings.TrimPrefix(Version, "v1."))
		}
	}
	_, err := goCommand(ctx, dir, edits...)
	return err
}

func goJSON(ctx context.Context, dir string, into any, args ...string) error {
	out, err := goCommand(ctx, dir, args...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, into); err != nil {
		return fmt.Errorf("read what go %s printed: %w", strings.Join(args, " "), err)
	}
	return nil
}

// goCommand runs the go command at a low priority, without the caller's module settings.
func goCommand(ctx context.Context, dir string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "nice", append([]string{"-n", "10", "go"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=", "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		text := stderr.Bytes()
		return nil, fmt.Errorf("go %s: %w: %s", args[0], err, bytes.TrimSpace(text[max(0, len(text)-2000):]))
	}
	return out, nil
}
