package telemetry

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

const patience = 10 * time.Second

// served runs Serve until the test ends, or until stop is called.
func served(t *testing.T, opts Options, s *State) (stop func()) {
	t.Helper()
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		Serve(ctx, opts, func() *State { return s })
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return stop
}

// answered asks until somebody answers.
func answered(t *testing.T, path string) *Status {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		s, err := Ask(t.Context(), path)
		if err == nil {
			return s
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

func TestAsk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "sluice.sock")
	state := busy(t)
	stop := served(t, Options{Socket: path}, state)
	if got, want := answered(t, path), state.Status(); !reflect.DeepEqual(got, want) {
		t.Errorf("asked %+v, want %+v", got, want)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v: others can ask", info.Mode())
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("%v beside the socket, %v", entries, err)
	}
	stop()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket stays when the agent is gone: %v", err)
	}
	if _, err := Ask(t.Context(), path); err == nil || !strings.Contains(err.Error(), "no agent answers") {
		t.Errorf("without an agent: %v", err)
	}
}

// stale leaves a socket behind as a process does that is killed.
func stale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sluice.sock")
	stale(t, path)
	if _, err := Ask(t.Context(), path); err == nil || !strings.Contains(err.Error(), "no agent answers") {
		t.Errorf("of a stale socket: %v", err)
	}
	served(t, Options{Socket: path}, busy(t))
	answered(t, path)
}

// What is not ours is left alone; and when it is gone, the socket is made.
func TestSocketInUseIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sluice.sock")
	stopFirst := served(t, Options{Socket: path}, &State{Settings: Settings{PID: 1}})
	answered(t, path)
	if _, err := listenSocket(path); err == nil || !strings.Contains(err.Error(), "another agent answers") {
		t.Errorf("a second agent: %v", err)
	}
	served(t, Options{Socket: path}, &State{Settings: Settings{PID: 2}})
	if s := answered(t, path); s.PID != 1 {
		t.Errorf("process %d answers, want the first", s.PID)
	}
	stopFirst()
	if s := answered(t, path); s.PID != 2 {
		t.Errorf("process %d answers, want the second", s.PID)
	}

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenSocket(file); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file at the socket's place: %v", err)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "precious" {
		t.Errorf("the file is %q, %v", text, err)
	}
}

// An agent that ends does not take away the socket of its successor.
func TestSuccessorKeepsItsSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sluice.sock")
	first, err := listenSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second, err := listenSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the successor's socket is gone: %v", err)
	}
}

// An address in use is said once, ends nothing, and is had when it is free.
func TestServeWaitsForItsAddress(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	said := &lines{first: make(chan struct{})}
	served(t, Options{Address: address, Logger: slog.New(slog.NewTextHandler(said, nil))}, busy(t))
	select {
	case <-said.first:
	case <-time.After(patience):
		t.Fatal("nothing is said about the address")
	}
	_ = l.Close()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		response, err := http.Get("http://" + address + "/readyz")
		if err == nil {
			text, _ := io.ReadAll(response.Body)
			_ = response.Body.Close()
			if string(text) != "ok\n" {
				t.Errorf("it answers %q", text)
			}
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	if n := strings.Count(said.String(), "cannot answer"); n != 1 {
		t.Errorf("it was said %d times:\n%s", n, said)
	}
}

// lines is a log that tells when its first line comes.
type lines struct {
	mu    sync.Mutex
	text  bytes.Buffer
	once  sync.Once
	first chan struct{}
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.once.Do(func() { close(l.first) })
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
