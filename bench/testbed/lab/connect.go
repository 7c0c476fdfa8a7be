package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Outcome is how an attempt to talk to a port ended.
type Outcome uint8

// Outcomes.
const (
	// Failed: something else went wrong; see the error.
	Failed Outcome = iota
	// Reached: the server's answer has come back.
	Reached
	// Refused: the host is there and the port is closed.
	Refused
	// TimedOut: no answer before the time or the context ended.
	TimedOut
	// Unreachable: the network said that it cannot or will not deliver. Of UDP the
	// kernel does not pass that on, and the attempt times out.
	Unreachable
)

func (o Outcome) String() string {
	switch o {
	case Reached:
		return "reached"
	case Refused:
		return "refused"
	case TimedOut:
		return "timed out"
	case Unreachable:
		return "unreachable"
	}
	return "failed"
}

// Result is what came of a Connect.
type Result struct {
	Outcome Outcome
	Err     error // nil if Reached
	// By is the name of the host that answered and Seen is the client as that
	// host saw it, which tells what translation has done on the way.
	By   string
	Seen netip.AddrPort
	// From is the client's own idea of its address.
	From netip.AddrPort
	Took time.Duration // until the answer, or until it was given up
}

// Connect asks a port that [Host.Serve] serves who it is, once, and waits for the
// answer as long as timeout and ctx let it. network is "tcp" or "udp".
func (h *Host) Connect(ctx context.Context, network string, to netip.AddrPort, timeout time.Duration) Result {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	start := time.Now()
	r := h.ask(ctx, network, to)
	r.Took = time.Since(start)
	if r.Err != nil {
		r.Outcome = outcome(r.Err)
		r.Err = fmt.Errorf("from %s to %s/%s: %w", h.Name, to, network, r.Err)
	}
	return r
}

func (h *Host) ask(ctx context.Context, network string, to netip.AddrPort) (r Result) {
	conn, err := h.dial(ctx, network, to)
	if err != nil {
		return Result{Err: err}
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	switch local := conn.LocalAddr().(type) {
	case *net.UDPAddr:
		r.From = local.AddrPort()
		if _, err := conn.Write([]byte("who is there?")); err != nil {
			r.Err = err
			return r
		}
	case *net.TCPAddr:
		r.From = local.AddrPort()
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		r.Err = err
		return r
	}
	i := strings.LastIndexByte(line, ' ')
	if i < 0 {
		r.Err = fmt.Errorf("the server says %q, which is no name and address", line)
		return r
	}
	r.By = line[:i]
	if r.Seen, r.Err = netip.ParseAddrPort(strings.TrimSpace(line[i+1:])); r.Err == nil {
		r.Outcome = Reached
	}
	return r
}

// outcome sorts the errors of sockets.
func outcome(err error) Outcome {
	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ECONNRESET):
		return Refused
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded),
		errors.Is(err, context.Canceled), errors.Is(err, unix.ETIMEDOUT):
		return TimedOut
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return Unreachable
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return TimedOut
	}
	return Failed
}
