package load

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// ServerOptions are the ports that a server serves.
type ServerOptions struct {
	TCP []Ports // accept and close connections
	UDP []Ports // echo datagrams
	// Stream is a TCP port that discards all data; 0 for none.
	Stream uint16
}

// Server answers clients on all addresses of the host, of both families.
type Server struct {
	poll   int
	wake   int
	fds    []int
	isUDP  map[int32]bool
	stream net.Listener
	done   sync.WaitGroup
}

// backlog bounds the number of connections that wait to be accepted. The kernel's own bound is
// net.core.somaxconn.
const backlog = 4096

// Serve starts a server. Each port takes a socket; Serve raises the process's limit of open
// files as needed. The caller must close the server.
func Serve(o ServerOptions) (*Server, error) {
	need := uint64(100)
	for _, p := range append(append([]Ports(nil), o.TCP...), o.UDP...) {
		need += uint64(max(1, p.Count))
	}
	if err := raiseFiles(need); err != nil {
		return nil, err
	}
	s := &Server{poll: -1, wake: -1, isUDP: make(map[int32]bool)}
	if err := s.open(o); err != nil {
		s.close()
		return nil, err
	}
	s.done.Go(s.run)
	if s.stream != nil {
		s.done.Go(s.discard)
	}
	return s, nil
}

// raiseFiles raises the limit of open files to at least n.
func raiseFiles(n uint64) error {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("read the limit of open files: %w", err)
	}
	if l.Cur >= n {
		return nil
	}
	l.Cur, l.Max = n, max(l.Max, n)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("raise the limit of open files to %d: %w: serve fewer ports, or run as root", n, err)
	}
	return nil
}

func (s *Server) open(o ServerOptions) (err error) {
	if s.poll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("open epoll: %w", err)
	}
	if s.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("open an event: %w", err)
	}
	if err := s.watch(s.wake); err != nil {
		return err
	}
	for _, l := range []struct {
		kind  int
		ports []Ports
	}{{unix.SOCK_STREAM, o.TCP}, {unix.SOCK_DGRAM, o.UDP}} {
		for _, p := range l.ports {
			for i := range max(1, p.Count) {
				if err := s.listen(l.kind, p.Nth(uint64(i))); err != nil {
					return err
				}
			}
		}
	}
	if o.Stream != 0 {
		if s.stream, err = net.Listen("tcp", fmt.Sprintf(":%d", o.Stream)); err != nil {
			return fmt.Errorf("serve the stream: %w", err)
		}
	}
	return nil
}

// listen opens one port for both families.
func (s *Server) listen(kind int, port uint16) error {
	fd, err := unix.Socket(unix.AF_INET6, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open port %d: %w", port, err)
	}
	s.fds = append(s.fds, fd)
	if kind == unix.SOCK_STREAM {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
	}
	if err == nil {
		err = unix.Bind(fd, sockaddr(netip.IPv6Unspecified(), port))
	}
	if err == nil && kind == unix.SOCK_STREAM {
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		return fmt.Errorf("open port %d: %w", port, err)
	}
	if kind == unix.SOCK_DGRAM {
		s.isUDP[int32(fd)] = true
	}
	return s.watch(fd)
}

func (s *Server) watch(fd int) error {
	if err := unix.EpollCtl(s.poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
		return fmt.Errorf("watch a port: %w", err)
	}
	return nil
}

// run answers until the server is closed.
func (s *Server) run() {
	events := make([]unix.EpollEvent, 128)
	buf := make([]byte, 2048)
	for {
		n, err := unix.EpollWait(s.poll, events, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		for _, e := range events[:max(0, n)] {
			switch {
			case int(e.Fd) == s.wake:
				return
			case s.isUDP[e.Fd]:
				echo(int(e.Fd), buf)
			default:
				accept(int(e.Fd))
			}
		}
	}
}

// accept accepts and closes all waiting connections. It does not reset them, because a reset
// could reach the client before the client sees that it is connected.
func accept(fd int) {
	for {
		c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		switch {
		case err == nil:
			_ = unix.Close(c)
		case errors.Is(err, unix.ECONNABORTED), errors.Is(err, unix.EINTR):
		default:
			return
		}
	}
}

// echo sends back all waiting datagrams.
func echo(fd int, buf []byte) {
	for {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		if err == nil {
			_ = unix.Sendto(fd, buf[:n], 0, from) // an error means that the client is gone
		}
	}
}

// discard reads all streams to their ends and discards the data.
func (s *Server) discard() {
	for {
		c, err := s.stream.Accept()
		if err != nil {
			return // the listener is closed
		}
		go func() {
			defer c.Close()
			_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10))
		}()
	}
}

// Close ends the server.
func (s *Server) Close() error {
	// This wakes run. The eventfd's counter was 0, so the write cannot block.
	_, err := unix.Write(s.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	if s.stream != nil {
		err = errors.Join(err, s.stream.Close())
	}
	s.done.Wait()
	s.stream = nil
	s.close()
	if err != nil {
		return fmt.Errorf("close the server: %w", err)
	}
	return nil
}

func (s *Server) close() {
	for _, fd := range append(s.fds, s.wake, s.poll) {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	if s.stream != nil {
		_ = s.stream.Close()
	}
}
