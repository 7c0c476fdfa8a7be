package load

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Client makes connections or requests, several at a time. It counts them across calls, so that
// each call continues with the next key (see Target.Key) and does not repeat earlier ones. Only
// one goroutine at a time may use a Client.
type Client struct {
	made uint64
}

// Connect makes new TCP connections for a time, with the given number of clients at once. A
// client opens its next connection when its previous one is done.
func (c *Client) Connect(ctx context.Context, to Target, clients int, during time.Duration) (Outcome, error) {
	return c.run(ctx, &exchange{Target: to, kind: unix.SOCK_STREAM, ready: unix.EPOLLOUT, timeout: connectTimeout}, clients, during)
}

// Request sends UDP requests for a time, with the given number of clients at once, each from a
// new socket, like a resolver.
func (c *Client) Request(ctx context.Context, to Target, clients int, during time.Duration) (Outcome, error) {
	return c.run(ctx, &exchange{Target: to, kind: unix.SOCK_DGRAM, ready: unix.EPOLLIN, timeout: requestTimeout}, clients, during)
}

// exchange describes how to make one connection or request.
type exchange struct {
	Target
	kind    int
	ready   uint32 // epoll event that reports the answer
	timeout time.Duration
}

// slot is one of the clients, with its current connection.
type slot struct {
	fd    int // socket of the connection; -1 if the client is idle
	began time.Time
}

// clientGroup is the state of the clients that run at the same time.
type clientGroup struct {
	*exchange
	*Client
	poll  int
	slots []slot
	took  []time.Duration
	out   Outcome
}

// run runs the clients for the given time, and then waits for the connections that are still
// open. These slow connections must count: without them, a slower server would have the lower
// latency.
func (c *Client) run(ctx context.Context, x *exchange, clients int, during time.Duration) (out Outcome, err error) {
	w := &clientGroup{exchange: x, Client: c, slots: make([]slot, max(1, clients)), took: make([]time.Duration, 0, 1<<16)}
	if w.poll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return out, fmt.Errorf("open epoll: %w", err)
	}
	for i := range w.slots {
		w.slots[i].fd = -1
	}
	defer w.close()
	began := time.Now()
	for i := range w.slots {
		if err := w.begin(i); err != nil {
			return out, err
		}
	}
	if err := w.work(ctx, began.Add(during), true); err != nil {
		return out, err
	}
	w.out.Took, w.out.InTime = time.Since(began), uint64(len(w.took))
	if err := w.work(ctx, time.Now().Add(x.timeout+time.Second), false); err != nil {
		return out, err
	}
	w.out.Done = uint64(len(w.took))
	w.out.Latency, w.out.Late = summarize(w.took)
	return w.out, ctx.Err()
}

// work records answers, errors and timeouts until a deadline, or until no connection is open.
// If the parameter "again" is set, a client whose connection is done begins a new one.
func (w *clientGroup) work(ctx context.Context, until time.Time, again bool) error {
	events := make([]unix.EpollEvent, len(w.slots))
	swept := time.Now()
	for now := swept; now.Before(until) && ctx.Err() == nil && w.open(); {
		n, err := unix.EpollWait(w.poll, events, 20)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for answers: %w", err)
		}
		now = time.Now()
		for _, e := range events[:max(0, n)] {
			if w.answered(w.slots[e.Fd].fd) {
				w.took = append(w.took, now.Sub(w.slots[e.Fd].began))
			} else {
				w.out.Failed++
			}
			if err := w.finish(int(e.Fd), again); err != nil {
				return err
			}
		}
		if now.Sub(swept) < 50*time.Millisecond {
			continue
		}
		swept = now
		for i, s := range w.slots {
			if s.fd < 0 || now.Sub(s.began) <= w.timeout {
				continue
			}
			w.out.Failed++
			if err := w.finish(i, again); err != nil {
				return err
			}
		}
	}
	return nil
}

// open reports whether a connection is open.
func (w *clientGroup) open() bool {
	return slices.ContainsFunc(w.slots, func(s slot) bool { return s.fd >= 0 })
}

// finish closes the connection of a slot. If the parameter "again" is set, it begins the next
// connection.
func (w *clientGroup) finish(i int, again bool) error {
	closeWithReset(w.slots[i].fd)
	w.slots[i].fd = -1
	if again {
		return w.begin(i)
	}
	return nil
}

func (w *clientGroup) close() {
	for _, s := range w.slots {
		closeWithReset(s.fd)
	}
	_ = unix.Close(w.poll)
}

// begin begins the next connection in a slot.
func (w *clientGroup) begin(i int) error {
	from, to, port := w.Key(w.made)
	w.made++
	began := time.Now()
	fd, err := open(w.kind, from, to)
	if err != nil {
		return err
	}
	w.slots[i] = slot{fd, began}
	if err := unix.Connect(fd, sockaddr(to, port)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return fmt.Errorf("connect to %s port %d: %w", to, port, err)
	}
	if w.kind == unix.SOCK_DGRAM {
		// EPERM means that a firewall on this host has rejected the datagram, which counts as
		// unanswered.
		if _, err := unix.Write(fd, []byte("?")); err != nil && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("send to %s port %d: %w", to, port, err)
		}
	}
	// Fd can be any number, which the kernel returns with the event. Here it is the number of
	// the slot, not a file descriptor.
	event := unix.EpollEvent{Events: w.ready | unix.EPOLLONESHOT, Fd: int32(i)}
	if err := unix.EpollCtl(w.poll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		return fmt.Errorf("wait for the answer: %w", err)
	}
	return nil
}

// answered reports whether the event on fd was an answer, not an error.
func (x *exchange) answered(fd int) bool {
	if x.kind == unix.SOCK_DGRAM {
		var b [1]byte
		_, err := unix.Read(fd, b[:])
		return err == nil
	}
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	return err == nil && code == 0
}

// closeWithReset closes a socket. It closes a TCP connection by a reset.
func closeWithReset(fd int) {
	if fd < 0 {
		return
	}
	// SO_LINGER has no effect on a datagram socket.
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	_ = unix.Close(fd)
}
