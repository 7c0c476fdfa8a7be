package telemetry

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// occupant is the kind of process that may already listen on the socket's path.
type occupant uint8

const (
	stranger    occupant = iota // any other process: this agent must not take the path while it listens
	predecessor                 // the agent that has yielded to this agent, which may take the path at once
)

// occupant returns predecessor if this agent has taken over from another, otherwise stranger.
func (o Options) occupant() occupant {
	if o.TookOver() {
		return predecessor
	}
	return stranger
}

// listenSocket listens on a unix socket that only its owner can open.
//
// It makes the socket in a directory that only its owner can enter, sets the mode, and then
// renames the socket to its path. So other users can never open the socket, and it replaces an
// older one atomically. If path exists and is not a socket, or if a stranger listens on it,
// listenSocket changes nothing and returns an error.
func listenSocket(path string, by occupant) (*socket, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of the status socket: %w", err)
	}
	if err := checkFree(path, by); err != nil {
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
	l.SetUnlinkOnClose(false) // Close would unlink the original path, not the path after the rename
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

// checkFree returns an error if no socket may be moved to path.
func checkFree(path string, by occupant) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("check for a stale status socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s exists and is not a socket", path)
	case by == predecessor:
		return nil
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = conn.Close()
		return fmt.Errorf("another agent listens on %s", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("check whether an agent listens on %s: %w", path, err)
	}
	return nil // the socket is stale
}

// socket is a listener that removes its file when it closes, unless another socket has
// replaced it.
type socket struct {
	net.Listener
	path string
	made os.FileInfo
}

// inPlace reports whether the file at the path is this socket, so that clients reach it.
func (s *socket) inPlace() bool {
	now, err := os.Lstat(s.path)
	return err == nil && os.SameFile(now, s.made)
}

func (s *socket) Close() error {
	if s.inPlace() {
		_ = os.Remove(s.path) // a stale socket does no harm
	}
	return s.Listener.Close()
}
