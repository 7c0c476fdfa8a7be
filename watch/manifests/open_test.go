package manifests

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// irregular creates irregular files with names of manifests.
func irregular(t *testing.T, dir string) {
	t.Helper()
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo.yaml"), 0o644); err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", filepath.Join(dir, "socket.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	for link, to := range map[string]string{
		"null.yaml": "/dev/null", "zero.yml": "/dev/zero", "circle.json": "circle.json", "gone.yaml": "nowhere", "directory-gone": "nowhere",
	} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	hole, err := os.Create(filepath.Join(dir, "hole.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(hole.Truncate(maxFollowed), hole.Close()); err != nil {
		t.Fatal(err)
	}
	large := filepath.Join(dir, "large.yaml")
	put(t, large, "")
	if err := os.Truncate(large, 1<<40); err != nil {
		t.Logf("no file of a terabyte: %v", err)
		put(t, large, "\x00")
	}
}

var irregularNames = []string{"circle.json", "fifo.yaml", "directory-gone", "gone.yaml", "hole.yaml", "large.yaml", "null.yaml", "socket.yaml", "zero.yml"}

// Each irregular file is reported as a problem, and does not keep other files from being
// read.
func TestReadIrregularFiles(t *testing.T) {
	dir := write(t, map[string]string{"web.yaml": web, "sub/shop.yaml": shop})
	irregular(t, dir)
	objects, problems, err := Read(dir)
	if err != nil || names(objects) != "Namespace shop, Pod default/web" {
		t.Errorf("read %q, %v", names(objects), err)
	}
	reported := make(map[string]bool)
	for _, p := range problems {
		reported[filepath.Base(p.File)] = true
		if p.Detail == "" || p.Hint == "" {
			t.Errorf("incomplete: %+v", p)
		}
	}
	for _, name := range irregularNames {
		if !reported[name] {
			t.Errorf("no problem of %s: %v", name, problems)
		}
	}
}

// Irregular files may appear while the directory is followed. Follow still delivers
// updates, and ends with ctx.
func TestFollowBesideIrregularFiles(t *testing.T) {
	dir := write(t, map[string]string{"web.yaml": web})
	ctx, stop := context.WithCancel(t.Context())
	deltas, reports, done := make(chan Delta, 100), make(chan []Problem, 100), make(chan error, 1)
	source := Source{Dirs: []string{dir}, Logger: slog.New(slog.DiscardHandler), OnProblems: func(p []Problem) { reports <- p }}
	go func() { done <- source.follow(ctx, func(d Delta) { deltas <- d }) }()
	next(t, deltas)
	irregular(t, dir)
	for reported := 0; reported < len(irregularNames); {
		reported = len(next(t, reports))
	}
	put(t, filepath.Join(dir, "shop.yaml"), shop)
	if d := next(t, deltas); len(d.Set.Namespaces) != 1 {
		t.Errorf("beside irregular files, the delta of a namespace is %+v", d)
	}
	// A pipe replaces a file. The last good state of the file stays in force.
	pipe := filepath.Join(dir, "web.yaml")
	if err := errors.Join(os.Remove(pipe), syscall.Mkfifo(pipe, 0o644)); err != nil {
		t.Fatal(err)
	}
	for reported := 0; reported < len(irregularNames)+1; {
		reported = len(next(t, reports))
	}
	put(t, filepath.Join(dir, "closed.yaml"), closed)
	if d := next(t, deltas); len(d.Set.Policies) != 1 || len(d.Deleted) != 0 {
		t.Errorf("beside a pipe, the delta of a policy is %+v", d)
	}
	stop()
	if err := next(t, done); err != nil {
		t.Error(err)
	}
}

func next[T any](t *testing.T, from chan T) (got T) {
	t.Helper()
	select {
	case got = <-from:
	case <-time.After(waitTimeout):
		t.Fatal("timed out")
	}
	return got
}

// A named pipe can be read if it is an argument of Read: the shell passes one for
// <(command).
func TestReadPipe(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o644); err != nil {
		t.Fatal(err)
	}
	writer, err := os.OpenFile(pipe, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	reader := os.NewFile(mustOpen(t, pipe), pipe) // keeps the data in the pipe after the writer is closed
	defer reader.Close()
	if _, err := writer.WriteString(web + "---" + shop); err != nil {
		t.Fatal(err)
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	objects, problems, err := Read(pipe)
	if err != nil || len(problems) != 0 || names(objects) != "Namespace shop, Pod default/web" {
		t.Errorf("read %q, %v, %v", names(objects), problems, err)
	}
	if _, problems, _ := Read(pipe); len(problems) != 1 || !strings.Contains(problems[0].Detail, "empty") {
		t.Errorf("problems of an empty pipe: %v", problems)
	}
}

func mustOpen(t *testing.T, path string) uintptr {
	t.Helper()
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return uintptr(fd)
}

// The objects in an unreadable subdirectory stay in force, and other files are still
// followed.
func TestFollowUnreadableSubdirectory(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root can read every directory")
	}
	f := follow(t, write(t, map[string]string{"web.yaml": web, "sub/closed.yaml": closed}))
	sub := filepath.Join(f.dir, "sub")
	f.must(os.Chmod(sub, 0))
	t.Cleanup(func() { _ = os.Chmod(sub, 0o755) })
	f.put("shop.yaml", shop)
	f.until("Namespace shop, NetworkPolicy default/closed, Pod default/web")
	f.awaitLog("manifests unreadable")
}

// Several directories are followed as one. If one of them disappears, its objects stay in
// force, and the others are still followed.
func TestFollowSeveral(t *testing.T) {
	a := write(t, map[string]string{"in/web.yaml": web, "in/closed.yaml": closed})
	b := write(t, map[string]string{"shop.yaml": shop, "web.yaml": strings.Replace(web, "10.0.0.1", "10.0.0.2", 1)})
	ctx, stop := context.WithCancel(t.Context())
	deltas, reports, done := make(chan Delta, 100), make(chan []Problem, 100), make(chan error, 1)
	in := filepath.Join(a, "in")
	source := Source{Dirs: []string{in, b, filepath.Join(b, "shop.yaml")}, OnProblems: func(p []Problem) { reports <- p }}
	go func() { done <- source.follow(ctx, func(d Delta) { deltas <- d }) }()
	first := next(t, deltas)
	if names(first.Set) != "Namespace shop, NetworkPolicy default/closed, Pod default/web" || first.Set.Pods[0].Addrs[0].String() != "10.0.0.1" {
		t.Errorf("first %+v", first.Set)
	}
	if p := next(t, reports); len(p) != 1 || p[0].File != filepath.Join(b, "web.yaml") || !strings.Contains(p[0].Detail, in) {
		t.Errorf("problems of a pod that is in both: %v", p)
	}
	if err := os.Rename(in, in+"-away"); err != nil {
		t.Fatal(err)
	}
	if p := next(t, reports); len(p) != 2 || p[0].File != in {
		t.Errorf("problems of the missing directory: %v", p)
	}
	put(t, filepath.Join(b, "b.yaml"), strings.Replace(closed, "closed", "other", 1))
	if d := next(t, deltas); len(d.Set.Policies) != 1 || len(d.Deleted) != 0 {
		t.Errorf("delta while one directory is missing: %+v", d)
	}
	stop()
	if err := next(t, done); err != nil {
		t.Error(err)
	}
	if err := (Source{Dirs: []string{b, in}}).follow(t.Context(), nil); err == nil || !strings.Contains(err.Error(), in) {
		t.Errorf("start with a missing directory: %v", err)
	}
}

// Opening a file does not block if a pipe replaces the file between stat and open.
func TestOpenDoesNotWaitForPipe(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe.yaml")
	if err := syscall.Mkfifo(pipe, 0o644); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, _, err := opener{limit: maxFollowed}.try(pipe)
		done <- err
	}()
	if err := next(t, done); !errors.Is(err, errNotRegular) {
		t.Errorf("error %v, want %v", err, errNotRegular)
	}
}

// readAll returns an error as soon as it has read more bytes than the limit. So it returns even
// if the file is endless.
func TestFilesThatGrow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.yaml")
	put(t, path, web)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, err := opener{limit: int64(len(web))}.readAll(f, false)
	if err != nil || string(data) != web {
		t.Errorf("up to the limit: %q, %v", data, err)
	}
	put(t, path, web+"#")
	if _, err := f.Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := (opener{limit: int64(len(web))}).readAll(f, false); !errors.Is(err, errTooLarge) {
		t.Errorf("a byte beyond the limit: %v", err)
	}
}
