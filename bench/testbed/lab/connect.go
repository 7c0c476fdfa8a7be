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

// Outcome is the outcome of an attempt to reach a port.
type Outcome uint8

// Outcomes.
const (
	// Failed means any other error; see Result.Err.
	Failed Outcome = iota
	// Reached means that the server has answered.
	Reached
	// Refused means that the host exists but the port is closed.
	Refused
	// TimedOut means that there was no answer before the timeout or the end of the context.
	TimedOut
	// Unreachable means that the network reported that it cannot or will not deliver the
	// packet. For UDP, the kernel does not report this, and the attempt times out.
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

// Result is the result of a Connect.
type Result struct {
	Outcome Outcome
	Err     error // nil if Reached
	// By is the name of the host that answered. Seen is the client's address as this host saw
	// it, which differs from From if the address was translated.
	By   string
	Seen netip.AddrPort
	// From is the client's own address.
	From netip.AddrPort
	Took time.Duration // until the answer or the end of the attempt
}

// Connect connects to a port that [Host.Serve] serves, and waits for the answer until
// timeout or ctx ends. network is "tcp" or "udp"; for "udp", it sends one datagram. Each
// datagram has another source port. Otherwise it could belong to an earlier connection, which
// routers still remember and may have revoked.
func (h *Host) Connect(ctx context.Context, network string, to netip.AddrPort, timeout time.Duration) Result {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	start := time.Now()
	r := h.request(ctx, network, to)
	r.Took = time.Since(start)
	if r.Err != nil {
		r.Outcome = outcome(r.Err)
		r.Err = fmt.Errorf("from %s to %s/%s: %w", h.Name, to, network, r.Err)
	}
	return r
}

func (h *Host) request(ctx context.Context, network string, to netip.AddrPort) (r Result) {
	conn, err := h.dialForConnect(ctx, network, to)
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
		r.Err = fmt.Errorf("the server answered %q, which is not a name and an address", line)
		return r
	}
	r.By = line[:i]
	if r.Seen, r.Err = netip.ParseAddrPort(strings.TrimSpace(line[i+1:])); r.Err == nil {
		r.Outcome = Reached
	}
	return r
}

// dialForConnect dials as Connect does: a datagram has a source port of its own.
func (h *Host) dialForConnect(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	if network == "udp" {
		return h.dialUDPFromNewPort(to)
	}
	return h.dial(ctx, network, to)
}

// Datagrams of Connect have the source ports from firstSource on, which are not those that the
// kernel chooses from.
const (
	firstSource = 10_000
	sources     = 20_000
)

// dialUDPFromNewPort opens a UDP socket on a source port that no host of the lab has used for
// Connect before, until all are used. Hosts share the ports, because a new host may get the address
// of an earlier one.
func (h *Host) dialUDPFromNewPort(to netip.AddrPort) (c net.Conn, err error) {
	err = h.Do(func() (err error) {
		for range sources {
			from := &net.UDPAddr{Port: int(firstSource + h.lab.datagrams.Add(1)%sources)}
			if c, err = net.DialUDP("udp", from, net.UDPAddrFromAddrPort(to)); !errors.Is(err, unix.EADDRINUSE) {
				return err
			}
			// A server of the host has the port.
		}
		return err
	})
	return c, err
}

// outcome translates an error of a socket into an Outcome.
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
