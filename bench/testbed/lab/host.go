package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Host is a network namespace with its addresses: a pod, a node or an outside host. Its
// methods may be called concurrently.
type Host struct {
	Name       string
	IPv4, IPv6 netip.Addr

	lab    *Lab
	ns     *namespace
	uplink uplink // the link to the host's router; zero for the lab's own router

	bridge *bridge // the bridge of a node's pods; nil if each pod has a route

	mu      sync.Mutex
	closed  bool
	addrs   []netip.Addr // all addresses that the lab has given to the host
	closers []io.Closer  // servers and sockets to close with the host
	running map[*exec.Cmd]bool
	tasks   sync.WaitGroup // servers, and threads that wait for processes
}

// Addrs returns the host's two addresses, IPv4 first.
func (h *Host) Addrs() []netip.Addr { return []netip.Addr{h.IPv4, h.IPv6} }

// NetNS returns the file descriptor of the host's network namespace. It is valid until the host
// is closed.
func (h *Host) NetNS() int { return int(h.ns.fd) }

// Do runs f on a thread in the host's namespace. Sockets that f opens stay in the
// namespace, but goroutines that f starts run outside of it. f may call a test's Fatal.
func (h *Host) Do(f func() error) error {
	if err := h.ns.do(f); err != nil {
		return fmt.Errorf("on %s: %w", h.Name, err)
	}
	return nil
}

// Start starts a command in the host's namespace. The caller must Wait for it, as after
// [exec.Cmd.Start]. The command is killed when the host is closed or when this process
// dies. Pdeathsig would also kill it when the thread that started it ends, so Start keeps
// this thread until the command ends. This is why starting a command in Do is not enough.
func (h *Host) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	started := make(chan error, 1)
	go func() {
		err := h.ns.do(func() error {
			err := h.launch(cmd)
			started <- err
			if err == nil {
				awaitExit(cmd.Process.Pid)
				h.ended(cmd)
			}
			return nil
		})
		if err != nil {
			started <- err
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start %s on %s: %w", cmd.Path, h.Name, err)
	}
	return nil
}

// launch starts a command and registers it, unless the host is closed.
func (h *Host) launch(cmd *exec.Cmd) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return os.ErrClosed
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if h.running == nil {
		h.running = make(map[*exec.Cmd]bool)
	}
	h.running[cmd] = true
	h.tasks.Add(1)
	return nil
}

func (h *Host) ended(cmd *exec.Cmd) {
	h.mu.Lock()
	delete(h.running, cmd)
	h.mu.Unlock()
	h.tasks.Done()
}

// awaitExit waits until a child has ended, and does not reap it. It ignores errors, which mean
// that the caller of Start has already reaped the child.
func awaitExit(pid int) {
	for unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
}

// Run runs a command in the host's namespace and waits for its end. An error includes the
// command's standard error.
func (h *Host) Run(name string, args ...string) error {
	_, err := h.Output(exec.Command(name, args...))
	return err
}

// Output runs a command in the host's namespace, waits for its end and returns its output.
// An error includes its standard error, unless the caller has set cmd.Stderr.
func (h *Host) Output(cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout = &stdout
	if cmd.Stderr == nil {
		cmd.Stderr = &stderr
	}
	err := h.Start(cmd)
	if err == nil {
		if err = cmd.Wait(); err != nil {
			err = fmt.Errorf("on %s: %s: %w: %s", h.Name, strings.Join(cmd.Args, " "), err, bytes.TrimSpace(stderr.Bytes()))
		}
	}
	return stdout.String(), err
}

// ListenTCP listens on an address of the host. Without an address, as in
// netip.AddrPortFrom(netip.Addr{}, port), it listens on all addresses of both families.
func (h *Host) ListenTCP(at netip.AddrPort) (l *net.TCPListener, err error) {
	err = h.Do(func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
		return err
	})
	return l, err
}

// ListenUDP is [Host.ListenTCP] for UDP.
func (h *Host) ListenUDP(at netip.AddrPort) (c *net.UDPConn, err error) {
	err = h.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	return c, err
}

// DialTCP connects from the host. It fails if ctx ends first.
func (h *Host) DialTCP(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	c, err := h.dial(ctx, "tcp", to)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// DialUDP opens a socket on the host. The socket sends only to the given address, and receives
// only from it. DialUDP itself sends nothing.
func (h *Host) DialUDP(to netip.AddrPort) (*net.UDPConn, error) {
	c, err := h.dial(context.Background(), "udp", to)
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

func (h *Host) dial(ctx context.Context, network string, to netip.AddrPort) (c net.Conn, err error) {
	err = h.Do(func() (err error) {
		c, err = new(net.Dialer).DialContext(ctx, network, to.String())
		return err
	})
	return c, err
}

// closeWith registers c to be closed with the host. If the host is already closed, it closes
// c and returns an error. task, if not nil, runs in a goroutine and must return when c is
// closed: Close waits for it.
func (h *Host) closeWith(c io.Closer, task func()) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return errors.Join(fmt.Errorf("on %s: %w", h.Name, os.ErrClosed), c.Close())
	}
	h.closers = append(h.closers, c)
	if task != nil {
		h.tasks.Go(task)
	}
	return nil
}

// recordAddr records an address that the lab has given to the host. The caller must hold the
// lab's lock.
func (h *Host) recordAddr(a netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.addrs = append(h.addrs, a)
}

// Close removes the host from the lab: it kills the host's processes and waits for their
// end, closes its servers, removes its link and frees its addresses. It does not close
// sockets that the caller opened on the host. A second Close does nothing. Close takes
// about 30 ms, most of it for the link.
func (h *Host) Close() error {
	h.lab.closing.Lock() // the router must stay open until the link is removed
	defer h.lab.closing.Unlock()
	return h.close(true)
}

// close closes the host. If removeLink is set, it removes the host's link, which is not
// necessary if the router is closed too.
func (h *Host) close(removeLink bool) error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	h.closed = true
	var errs []error
	for cmd := range h.running {
		if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, err)
		}
	}
	for _, c := range h.closers {
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	h.mu.Unlock()
	h.tasks.Wait()
	if removeLink {
		errs = append(errs, h.uplink.removeLink())
	}
	errs = append(errs, h.ns.close())
	h.lab.removeHost(h, h.addrs)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close %s: %w", h.Name, err)
	}
	return nil
}
