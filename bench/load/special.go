package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Stream sends over one TCP connection as fast as possible for the given time. Outcome.Bytes is
// the number of bytes that the kernel has accepted. Some of these bytes, at most one socket
// buffer, may not have arrived.
func Stream(ctx context.Context, to Target, during time.Duration) (out Outcome, err error) {
	from, server, port := to.Key(0)
	d := net.Dialer{}
	if from.IsValid() {
		d.LocalAddr = &net.TCPAddr{IP: from.AsSlice()}
	}
	c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(server, port).String())
	if err != nil {
		return out, fmt.Errorf("open the stream: %w", err)
	}
	defer c.Close()
	began := time.Now()
	if err := c.SetWriteDeadline(began.Add(during)); err != nil {
		return out, fmt.Errorf("open the stream: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 256<<10)
	for {
		n, err := c.Write(buf)
		out.Bytes += uint64(n)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			out.Done, out.Took = 1, time.Since(began)
			return out, ctx.Err()
		}
		if err != nil {
			return out, fmt.Errorf("send the stream: %w", err)
		}
	}
}

// Flood sends first packets of new flows for the given time, as fast as one thread can. It
// sends UDP and TCP alternately, to random ports and random IPv4 addresses of the given
// ranges, and does not wait for answers. Outcome.Done is the number of packets.
func Flood(ctx context.Context, ranges []netip.Prefix, during time.Duration) (out Outcome, err error) {
	if len(ranges) == 0 {
		return out, errors.New("flood: give at least one range of addresses")
	}
	udp, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return out, fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(udp)
	random := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	began := time.Now()
	for end := began.Add(during); ; {
		if out.Done&63 == 0 && (ctx.Err() != nil || time.Now().After(end)) {
			break
		}
		to := &unix.SockaddrInet4{Port: 1 + random.IntN(65535), Addr: randomAddr(random, ranges)}
		if out.Done&1 == 0 {
			// Ignore the error: it reports that the destination of an earlier packet is
			// unreachable.
			_ = unix.Sendto(udp, []byte("flood"), 0, to)
		} else if fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err == nil {
			_ = unix.Connect(fd, to)
			closeWithReset(fd)
		}
		out.Done++
	}
	out.Took, out.InTime = time.Since(began), out.Done
	return out, ctx.Err()
}

// randomAddr returns a random IPv4 address of one of the ranges.
func randomAddr(random *rand.Rand, ranges []netip.Prefix) (a [4]byte) {
	p := ranges[random.IntN(len(ranges))]
	host := random.Uint32() & (1<<(32-p.Bits()) - 1)
	first := p.Masked().Addr().As4()
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(first[:])|host)
	return a
}

// Seen is the result of a probe: the times at which the answered datagrams were sent, in
// Unix nanoseconds and in the order of the answers.
type Seen struct {
	New  []int64 `json:"new"`  // datagrams from new sockets, one for each
	Live []int64 `json:"live"` // datagrams from one permanent socket
}

// probeInterval is the time between two datagrams of a probe.
const probeInterval = 200 * time.Microsecond

// Probe sends datagrams to the first port of the target for the given time. Every probeInterval, it
// sends one datagram from a new socket and one from a permanent socket. An answered datagram
// was allowed when it was sent.
func Probe(ctx context.Context, to Target, during time.Duration) (seen Seen, err error) {
	p := &probe{seen: &seen}
	p.from, p.to, p.port = to.Key(0)
	if p.poll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return seen, fmt.Errorf("open epoll: %w", err)
	}
	defer p.close()
	if p.live, err = p.open(); err != nil {
		return seen, err
	}
	began := time.Now()
	for next := began; time.Since(began) < during && ctx.Err() == nil; {
		time.Sleep(time.Until(next))
		next = time.Now().Add(probeInterval)
		if err := errors.Join(p.read(), p.send()); err != nil {
			return seen, err
		}
	}
	return seen, ctx.Err()
}

// probe is the state of a Probe.
type probe struct {
	from, to netip.Addr
	port     uint16
	poll     int
	live     int
	old      []int // sockets that may still receive an answer, oldest first
	seen     *Seen
}

// probeSockets bounds the number of sockets that wait for an answer. A new socket is opened every
// probeInterval, so a socket is closed after 500 × 200 µs = 100 ms.
const probeSockets = 500

func (p *probe) open() (int, error) {
	fd, err := open(unix.SOCK_DGRAM, p.from, p.to)
	if err != nil {
		return -1, err
	}
	err = unix.Connect(fd, sockaddr(p.to, p.port))
	if err == nil {
		err = unix.EpollCtl(p.poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("probe %s port %d: %w", p.to, p.port, err)
	}
	return fd, nil
}

func (p *probe) send() error {
	fd, err := p.open()
	if err != nil {
		return err
	}
	if p.old = append(p.old, fd); len(p.old) > probeSockets {
		_ = unix.Close(p.old[0])
		p.old = p.old[1:]
	}
	for _, fd := range []int{fd, p.live} {
		var b [8]byte
		binary.BigEndian.PutUint64(b[:], uint64(time.Now().UnixNano()))
		_, _ = unix.Write(fd, b[:]) // an error concerns the previous datagram, so ignore it
	}
	return nil
}

// read reads the answers that have arrived.
func (p *probe) read() error {
	var events [64]unix.EpollEvent
	n, err := unix.EpollWait(p.poll, events[:], 0)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("wait for answers: %w", err)
	}
	for _, e := range events[:max(0, n)] {
		var b [8]byte
		if n, err := unix.Read(int(e.Fd), b[:]); err != nil || n != len(b) {
			continue
		}
		sent := int64(binary.BigEndian.Uint64(b[:]))
		if int(e.Fd) == p.live {
			p.seen.Live = append(p.seen.Live, sent)
		} else {
			p.seen.New = append(p.seen.New, sent)
		}
	}
	return nil
}

func (p *probe) close() {
	for _, fd := range append(p.old, p.live, p.poll) {
		if fd > 0 {
			_ = unix.Close(fd)
		}
	}
}
