package status

import (
	"errors"
	"io/fs"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// listenerOf returns the PID of the listening process, in this process's PID namespace. It is
// 0 for a process outside of the namespace (unix(7), SO_PEERCRED), and after an error.
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

const noAgentHint = "start sluice run on this node, or name its socket with --socket"

// noListener reports whether the connection failed because no process listens on the socket.
func noListener(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}
