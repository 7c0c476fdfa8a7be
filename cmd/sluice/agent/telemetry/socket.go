package telemetry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultSocket is where an agent answers sluice status.
const DefaultSocket = "/run/sluice/sluice.sock"

// listenSocket listens on a unix socket that none but its owner can reach.
//
// The socket is made in a folder of its own, which nobody else can enter, and
// moved to its place when its mode is right: so it is never there with a wider
// one, and takes the place of another in the same step. What is no socket is left
// alone, and so is one on which somebody answers, unless it is for us to displace.
func listenSocket(path string, displace bool) (*socket, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the folder of the status socket: %w", err)
	}
	if err := vacant(path, displace); err != nil {
		return nil, err
	}
	private, err := os.MkdirTemp(dir, ".sluice-")
	if err != nil {
		return nil, fmt.Errorf("make the status socket: %w", err)
	}
	defer os.RemoveAll(private)
	made := filepath.Join(private, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make the status socket: %w", err)
	}
	l.SetUnlinkOnClose(false) // it would look for it where it was made
	err = os.Chmod(made, 0o600)
	var info os.FileInfo
	if err == nil {
		info, err = os.Lstat(made)
	}
	if err == nil {
		err = os.Rename(made, path)
	}
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("put the status socket in its place: %w", err)
	}
	return &socket{l, path, info}, nil
}

// vacant says what keeps a socket from being put at a path.
func vacant(path string, displace bool) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look for a stale status socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is there and no socket: move it away, or give another path with --socket", path)
	case displace:
		return nil
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = conn.Close()
		return fmt.Errorf("another agent answers on %s: end it, or give another path with --socket", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("ask whether somebody answers on %s: %w", path, err)
	}
	return nil // nobody listens any more
}

// socket is a listener that takes its file away when it closes, unless another
// has its place by then.
type socket struct {
	net.Listener
	path string
	made os.FileInfo
}

// inPlace says whether it can be reached.
func (s *socket) inPlace() bool {
	now, err := os.Lstat(s.path)
	return err == nil && os.SameFile(now, s.made)
}

func (s *socket) Close() error {
	if s.inPlace() {
		_ = os.Remove(s.path) // a stale one does no harm
	}
	return s.Listener.Close()
}

// ErrNoAgent says that there is no agent behind a socket.
var ErrNoAgent = errors.New("no agent answers")

// askTimeout bounds the wait for an agent's status.
const askTimeout = 5 * time.Second

// Ask asks the agent behind a socket for its status.
func Ask(ctx context.Context, path string) (*Status, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, askTimeout, fmt.Errorf("it took longer than %v to answer", askTimeout))
	defer cancel()
	process := 0
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if err == nil {
			process = listenerOf(conn)
		}
		return conn, err
	}}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/status", nil)
	if err != nil {
		return nil, fmt.Errorf("ask the agent: %w", err)
	}
	response, err := transport.RoundTrip(request)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w on %s: start sluice run on this node, or name its socket with --socket", ErrNoAgent, path)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("the agent's socket %s is its owner's alone: ask as root", path)
	case ctx.Err() != nil:
		return nil, fmt.Errorf("ask the agent on %s: %w", path, context.Cause(ctx))
	case err != nil:
		return nil, fmt.Errorf("ask the agent on %s: %w", path, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 200)) // as much as there is
		return nil, fmt.Errorf("the agent on %s answers %s: %s", path, response.Status, text)
	}
	var s Status
	if err := json.NewDecoder(response.Body).Decode(&s); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("read the answer of the agent on %s: %w", path, err)
	}
	s.Process = process
	return &s, nil
}

// listenerOf returns the number in our PID namespace of the process that listens. The
// kernel has 0 for one that is not in it (unix(7), SO_PEERCRED).
func listenerOf(conn net.Conn) int {
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0
	}
	var peer *unix.Ucred
	if ctl := raw.Control(func(fd uintptr) {
		peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); ctl != nil || err != nil {
		return 0
	}
	return int(peer.Pid)
}
