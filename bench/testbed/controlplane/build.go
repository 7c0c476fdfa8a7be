package controlplane

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"sluice/bench/testbed/goprogram"
)

// Version is the Kubernetes version to build: v1.X.Y if sluice requires client-go v0.X.Y. The
// version of etcd is the one that this version of Kubernetes requires.
const Version = "v1.37.2"

const module = "k8s.io/kubernetes"

// Programs are the paths of the built programs.
type Programs struct{ Etcd, APIServer string }

// Build builds etcd and kube-apiserver, unless they are already there. The first time, this takes five
// minutes on two cores, 5 GB of Go's build cache and 0.5 GB of its module cache. See
// goprogram.Module.Build.
func Build(ctx context.Context, log io.Writer) (Programs, error) {
	m := goprogram.Module{Name: "controlplane", Version: Version, Path: module, Flags: []string{"-ldflags=-s -w" + versionFlags()}, Prepare: writeModule}
	dir, err := m.Build(ctx, log, map[string]string{"etcd": "go.etcd.io/etcd/server/v3", "kube-apiserver": module + "/cmd/kube-apiserver"})
	return Programs{Etcd: filepath.Join(dir, "etcd"), APIServer: filepath.Join(dir, "kube-apiserver")}, err
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
	_, err := goprogram.Go(ctx, dir, edits...)
	return err
}

func goJSON(ctx context.Context, dir string, into any, args ...string) error {
	out, err := goprogram.Go(ctx, dir, args...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, into); err != nil {
		return fmt.Errorf("read what go %s printed: %w", strings.Join(args, " "), err)
	}
	return nil
}
