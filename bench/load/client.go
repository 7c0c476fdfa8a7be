package load

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Client makes connections or requests, several at a time. It keeps count of all
// that it has ever made, so that its keys go on where they were: it belongs to one
// goroutine.
type Client struct {
	made uint64
}

// Connect makes new TCP connections for a time, clients at once, each as soon as
// the one before it is done.
func (c *Client) Connect(ctx context.Context, to Target, clients int, during time.Duration) (Outcome, error) {
	return c.run(ctx, &exchange{Target: to, kind: unix.SOCK_STREAM, ready: unix.EPOLLOUT, patience: patience}, clients, during)
}

// Request asks by UDP for a time, clients at once, each time from a new socket, as
// a resolver asks for names.
func (c *Client) Request(ctx context.Context, to Target, clients int, during time.Duration) (Outcome, error) {
	return c.run(ctx, &exchange{Target: to, kind: unix.SOCK_DGRAM, ready: unix.EPOLLIN, patience: datagramPatience}, clients, during)
}

// exchange is how one connection or request is made.
type exchange struct {
	Target
	kind     int
	ready    uint32 // the event that says that it is answered
	patience time.Duration
}

// slot is one of the clients that are at work at once.
type slot struct {
	fd    int // -1 if it has nothing to do
	began time.Time
}

func (c *Client) run(ctx context.Context, x *exchange, clients int, during time.Duration) (out Outcome, err error) {
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return out, fmt.Errorf("open epoll: %w", err)
	}
	slots := make([]slot, max(1, clients))
	defer func() {
		for _, s := range slots {
			closeHard(s.fd)
		}
		_ = unix.Close(poll)
	}()
	began := time.Now()
	for i := range slots {
		slots[i].fd = -1
		if err := c.begin(x, poll, slots, i); err != nil {
			return out, err
		}
	}
	took := make([]time.Duration, 0, 1<<16)
	events := make([]unix.EpollEvent, len(slots))
	now, swept := began, began
	for end := began.Add(during); now.Before(end) && ctx.Err() == nil; {
		n, err := unix.EpollWait(poll, events, 20)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return out, fmt.Errorf("wait for answers: %w", err)
		}
		now = time.Now()
		for _, e := range events[:max(0, n)] {
			s := &slots[e.Fd]
			if x.answered(s.fd) {
				took = append(took, now.Sub(s.began))
			} else {
				out.Failed++
			}
			closeHard(s.fd)
			if err := c.begin(x, poll, slots, int(e.Fd)); err != nil {
				return out, err
			}
		}
		if now.Sub(swept) < 50*time.Millisecond {
			continue
		}
		swept = now
		for i, s := range slots {
			if now.Sub(s.began) > x.patience {
				out.Failed++
				closeHard(s.fd)
				if err := c.begin(x, poll, slots, i); err != nil {
					return out, err
				}
			}
		}
	}
	out.Done, out.Took = uint64(len(took)), now.Sub(began)
	out.Latency, out.Late = summarize(took)
	return out, ctx.Err()
}

// begin makes the next connection in a slot.
func (c *Client) begin(x *exchange, poll int, slots []slot, i int) error {
	from, port := x.Key(c.made)
	c.made++
	began := time.Now()
	fd, err := open(x.kind, from, x.To)
	if err != nil {
		return err
	}
	slots[i] = slot{fd, began}
	if err := unix.Connect(fd, sockaddr(x.To, port)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return fmt.Errorf("connect to %s port %d: %w", x.To, port, err)
	}
	if x.kind == unix.SOCK_DGRAM {
		// A firewall on this very host may say no at once, which is an answer that
		// does not come.
		if _, err := unix.Write(fd, []byte("?")); err != nil && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("send to %s port %d: %w", x.To, port, err)
		}
	}
	// The events carry the number of the slot.
	event := unix.EpollEvent{Events: x.ready | unix.EPOLLONESHOT, Fd: int32(i)}
	if err := unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		return fmt.Errorf("wait for the answer: %w", err)
	}
	return nil
}

// answered says whether what came is an answer, and not an error.
func (x *exchange) answered(fd int) bool {
	if x.kind == unix.SOCK_DGRAM {
		var b [1]byte
		_, err := unix.Read(fd, b[:])
		return err == nil
	}
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	return err == nil && code == 0
}

// closeHard closes a socket, a connection by a reset.
func closeHard(fd int) {
	if fd < 0 {
		return
	}
	// On a datagram socket it does nothing.
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	_ = unix.Close(fd)
}
