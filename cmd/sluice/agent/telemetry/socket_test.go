package telemetry

import (
	"bytes"
	"context"
	"fmt"
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
	"testing/synctest"
	"time"

	"sluice/cmd/sluice/agent/status"
	"sluice/filter/event"
)

// testTimeout bounds each wait for an agent.
const testTimeout = 2 * time.Minute

// served runs Serve until the test ends, or until stop() is called.
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

// answered calls Ask until an agent answers, and returns its status.
func answered(t *testing.T, path string) *status.Status {
	t.Helper()
	for end := time.Now().Add(testTimeout); ; time.Sleep(time.Millisecond) {
		s, err := status.Ask(t.Context(), path)
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
	state := busyState(t)
	stop := served(t, Options{Socket: path}, state)
	want := state.Status()
	want.Process = os.Getpid()
	if got := answered(t, path); !reflect.DeepEqual(got, want) {
		t.Errorf("Ask returned %+v, want %+v", got, want)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v: other users can open the socket", info.Mode())
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("the directory has the entries %v, %v; want only the socket", entries, err)
	}
	stop()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket still exists after the agent has ended: %v", err)
	}
	if _, err := status.Ask(t.Context(), path); err == nil || !strings.Contains(err.Error(), "no agent answers") {
		t.Errorf("Ask without an agent: %v", err)
	}
}

// stale leaves a socket file behind, as a killed process does.
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
	if _, err := status.Ask(t.Context(), path); err == nil || !strings.Contains(err.Error(), "no agent answers") {
		t.Errorf("Ask on a stale socket: %v", err)
	}
	served(t, Options{Socket: path}, busyState(t))
	answered(t, path)
}

// An agent does not replace the socket of another agent until that agent has ended. It never
// replaces a regular file.
func TestSocketInUseIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sluice.sock")
	stopFirst := served(t, Options{Socket: path}, &State{Settings: status.Settings{PID: 1}})
	answered(t, path)
	if _, err := listenSocket(path, stranger); err == nil || !strings.HasSuffix(err.Error(), "another agent listens on "+path) { // the problem has the hint
		t.Errorf("a second agent on the same path: %v", err)
	}
	served(t, Options{Socket: path}, &State{Settings: status.Settings{PID: 2}})
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
	if _, err := listenSocket(file, predecessor); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a file at the socket's path: %v", err)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "precious" {
		t.Errorf("the file has changed: %q, %v", text, err)
	}
}

// An agent that ends does not remove the socket of its successor.
func TestSuccessorKeepsItsSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sluice.sock")
	first, err := listenSocket(path, stranger)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second, err := listenSocket(path, stranger)
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

// An agent that takes over gets the socket while its predecessor still runs. If the successor
// dies, the predecessor gets the socket back.
func TestSocketGoesToTheSuccessor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sluice.sock")
	served(t, Options{Socket: path}, &State{Settings: status.Settings{PID: 1}})
	answered(t, path)
	displace := func() bool { return true }
	stop := served(t, Options{Socket: path, TookOver: displace}, &State{Settings: status.Settings{PID: 2}})
	awaitPID(t, path, 2)
	stop()
	awaitPID(t, path, 1)
	if err := os.Remove(path); err != nil { // as a program that cleans up /run may do
		t.Fatal(err)
	}
	awaitPID(t, path, 1)
}

// awaitPID calls Ask until the process with the wanted PID answers.
func awaitPID(t *testing.T, path string, want int) {
	t.Helper()
	for end := time.Now().Add(testTimeout); answered(t, path).PID != want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("process %d does not answer in time", want)
		}
	}
}

// A request to hand over stays open for as long as the successor lives, even if the socket is
// deleted.
func TestHandOverOutlivesTheSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sluice.sock")
	asked, ended := make(chan struct{}), make(chan struct{})
	served(t, Options{Socket: path, HandOver: func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		close(asked)
		<-r.Context().Done()
		close(ended)
	}}, busyState(t))
	answered(t, path)
	ctx, release := context.WithCancel(t.Context())
	defer release()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent/handover", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	<-asked
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	answered(t, path) // on the socket with which the agent has replaced the deleted one
	select {
	case <-ended:
		t.Error("the request ended with the socket")
	default:
	}
	release()
	select {
	case <-ended:
	case <-time.After(testTimeout):
		t.Error("the request stays open after the successor has died")
	}
}

// If the address is in use, Serve logs that once and does not end. It listens as soon as the
// address is free.
func TestServeWaitsForItsAddress(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	logged := &lines{first: make(chan struct{})}
	served(t, Options{Address: address, Logger: slog.New(slog.NewTextHandler(logged, nil))}, busyState(t))
	select {
	case <-logged.first:
	case <-time.After(testTimeout):
		t.Fatal("nothing was logged about the address")
	}
	_ = l.Close()
	for end := time.Now().Add(testTimeout); ; time.Sleep(time.Millisecond) {
		response, err := http.Get("http://" + address + "/readyz")
		if err == nil {
			text, _ := io.ReadAll(response.Body)
			_ = response.Body.Close()
			if string(text) != "ok\n" {
				t.Errorf("/readyz answers %q, want ok", text)
			}
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	if n := strings.Count(logged.String(), event.AddressInUse.Attr().String()); n != 1 {
		t.Errorf("the address in use was logged %d times, want once:\n%s", n, logged)
	}
}

// lines collects a log. With the first line of the log, it closes the channel "first".
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

// After an agent has failed to listen on an address for listenTimeout, it logs one warning and
// reports a problem, even if the reason changes meanwhile. The problem ends when the agent
// listens. Shorter failures cause neither. The further problems of a service are reported as well.
func TestBindingFailsForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logged := &lines{first: make(chan struct{})}
		p := &binding{name: "there", hint: "free it", log: slog.New(slog.NewTextHandler(logged, nil))}
		given := &State{Problems: make([]status.Problem, 1, 4)}
		read := withServers(func() *State { return given }, nil, p, &binding{name: "elsewhere"})
		check := func(warnings, problems int) {
			t.Helper()
			if n := strings.Count(logged.String(), "level=WARN"); n != warnings {
				t.Errorf("%d warnings, want %d:\n%s", n, warnings, logged)
			}
			if all := read().AllProblems(); len(all) != 1+problems {
				t.Errorf("problems %v, want %d in addition to the one of the state", all, problems)
			}
		}
		fail := func(times int) {
			for i := range times {
				p.report(t.Context(), fmt.Errorf("it is taken, %d", i%2))
				time.Sleep(listenInterval)
			}
		}
		for range 2 {
			fail(int(listenTimeout / listenInterval))
			check(0, 0)
			p.report(t.Context(), nil)
		}
		fail(3 * int(listenTimeout/listenInterval))
		check(1, 1)
		all := read().AllProblems()
		if got, want := all[len(all)-1].String(), "listen there: it is taken, 1: free it"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
		p.report(t.Context(), nil)
		check(1, 0)
		p.further = func() []status.Problem { return []status.Problem{{Kind: "hubble"}} }
		check(1, 1)
	})
}

// The agent reports a problem if another process uses its address for longer than
// listenTimeout.
func TestServeReportsAddressInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ctx, cancel := context.WithCancel(t.Context())
		p := &binding{name: l.Addr().String(), log: slog.New(slog.DiscardHandler)}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			p.serve(ctx, newServer(http.NotFoundHandler(), maxBody, p.log), listenTCP(newSlots(1, 1), newSlots(1, 1)))
		}()
		time.Sleep(2 * listenTimeout)
		if found := p.problems(); len(found) != 1 || !strings.Contains(found[0].Detail, "in use") {
			t.Errorf("problems %v, want one about the address in use", found)
		}
		cancel()
		<-ended
	})
}
