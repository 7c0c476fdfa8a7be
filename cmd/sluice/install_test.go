//go:build linux

package main

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// make install installs the program, the plugin of kubectl, and completions; make uninstall
// removes them.
func TestMakeInstall(t *testing.T) {
	root, program := t.TempDir(), filepath.Join(t.TempDir(), "sluice")
	run := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = "../.."
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	run("go", "build", "-buildvcs=false", "-o", program, "./cmd/sluice") // faster than make build
	makeArgs := []string{"--no-print-directory", "--old-file=build", "PROGRAM=" + program, "DESTDIR=" + root, "PREFIX=/usr"}
	run("make", append(makeArgs, "install")...)
	want := []string{
		"usr/bin/kubectl-sluice", "usr/bin/kubectl_complete-sluice", "usr/bin/sluice", "usr/share/bash-completion/completions/sluice",
		"usr/share/fish/vendor_completions.d/sluice.fish", "usr/share/zsh/site-functions/_sluice",
	}
	if got := filesBelow(t, root); !slices.Equal(got, want) {
		t.Errorf("installed %q, want %q", got, want)
	}
	bin := filepath.Join(root, "usr/bin")
	if out := run(filepath.Join(bin, "kubectl-sluice"), "--help"); !strings.Contains(out, "\n  kubectl sluice [command]\n") {
		t.Errorf("the plugin prints %s", out)
	}
	t.Setenv("PATH", bin+string(filepath.ListSeparator)+os.Getenv("PATH"))
	if out := run(filepath.Join(bin, "kubectl_complete-sluice"), "explain", "-o", ""); !strings.HasPrefix(out, "text\njson\n:4\n") {
		t.Errorf("the completion of the plugin prints %s", out)
	}
	run("make", append(makeArgs, "uninstall")...)
	if got := filesBelow(t, root); len(got) > 0 {
		t.Errorf("make uninstall leaves %q", got)
	}
}

// filesBelow returns the paths of all files below a directory, sorted.
func filesBelow(t *testing.T, root string) (files []string) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(root), ".", func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
