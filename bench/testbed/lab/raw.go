package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Send sends a packet, which begins with its IP header, on the host's link to its router.
// The host's own kernel does not check, change, route or filter the packet, so it can be any
// packet that a hostile pod might send. If the packet does not look like IPv6, Send sends it
// as IPv4.
func (h *Host) Send(packet []byte) error {
	if h.uplink.remote == nil {
		return fmt.Errorf("send from %s: it has no link", h.Name)
	}
	to := &unix.SockaddrLinklayer{Protocol: bigEndian(unix.ETH_P_IP), Ifindex: h.uplink.inside.Attrs().Index}
	to.Halen = uint8(copy(to.Addr[:], h.RouterMAC()))
	if len(packet) > 0 && packet[0]>>4 == 6 {
		to.Protocol = bigEndian(unix.ETH_P_IPV6)
	}
	fd, err := h.packetSocket(unix.SOCK_DGRAM, 0)
	if err == nil {
		err = errors.Join(unix.Sendto(fd, packet, 0, to), unix.Close(fd))
	}
	if err != nil {
		return fmt.Errorf("send from %s: %w", h.Name, err)
	}
	return nil
}

// packetSocket opens a packet socket. Its packets have a link header if kind is SOCK_RAW, and
// no link header if kind is SOCK_DGRAM. The socket receives packets of the given protocol, or
// no packets if protocol is 0.
func (h *Host) packetSocket(kind int, protocol uint16) (fd int, err error) {
	err = h.ns.do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(bigEndian(protocol)))
		return err
	})
	return fd, err
}

// bigEndian returns a number in network byte order, as packet sockets need it.
func bigEndian(n uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], n)
	return binary.NativeEndian.Uint16(b[:])
}

// Sniffer receives the IP packets that arrive at any interface of a host, before the host's
// kernel handles them. So it receives exactly the packets that netfilter on the router lets
// through.
type Sniffer struct {
	// Outside leaves out packets that the host sends to itself.
	Outside bool

	host *Host
	file *os.File
	buf  []byte
}

// Sniff opens a sniffer. Packets that arrive from now on are buffered for Next, as long as the
// socket's buffer has room. Closing the host closes the sniffer, too.
func (h *Host) Sniff() (*Sniffer, error) {
	fd, err := h.packetSocket(unix.SOCK_DGRAM, unix.ETH_P_ALL)
	if err != nil {
		return nil, fmt.Errorf("sniff on %s: %w", h.Name, err)
	}
	s := &Sniffer{host: h, file: os.NewFile(uintptr(fd), "sniffer on "+h.Name), buf: make([]byte, 64<<10)}
	return s, h.closeWith(s.file, nil)
}

// Next returns the next packet, beginning with its IP header. It waits for the packet until
// ctx ends. Checksums may be missing, because packets that never leave the machine do not
// need them. Next must not be called concurrently.
func (s *Sniffer) Next(ctx context.Context) ([]byte, error) {
	if err := s.file.SetReadDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("sniff on %s: %w", s.host.Name, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = s.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for ctx.Err() == nil {
		n, from, err := s.read()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
		case err != nil:
			return nil, fmt.Errorf("sniff on %s: %w", s.host.Name, err)
		case from.Pkttype == unix.PACKET_OUTGOING, s.Outside && from.Hatype == unix.ARPHRD_LOOPBACK:
		case from.Protocol == bigEndian(unix.ETH_P_IP), from.Protocol == bigEndian(unix.ETH_P_IPV6):
			return append([]byte(nil), s.buf[:n]...), nil
		}
	}
	return nil, fmt.Errorf("sniff on %s: %w", s.host.Name, context.Cause(ctx))
}

// Await returns the next packet for which match() returns true, and discards the packets before
// it. It waits until ctx ends.
func (s *Sniffer) Await(ctx context.Context, match func(packet []byte) bool) ([]byte, error) {
	for {
		if p, err := s.Next(ctx); err != nil || match(p) {
			return p, err
		}
	}
}

func (s *Sniffer) read() (n int, from *unix.SockaddrLinklayer, err error) {
	conn, err := s.file.SyscallConn()
	if err != nil {
		return 0, nil, err
	}
	var sa unix.Sockaddr
	if e := conn.Read(func(fd uintptr) bool {
		n, sa, err = unix.Recvfrom(int(fd), s.buf, 0)
		return err != unix.EAGAIN && err != unix.EINTR
	}); e != nil {
		return 0, nil, e
	}
	if err != nil {
		return 0, nil, err
	}
	from, ok := sa.(*unix.SockaddrLinklayer)
	if !ok {
		return 0, nil, errors.New("a packet without a link address")
	}
	return n, from, nil
}

// SetBufferSize sets the size of the sniffer's buffer, for tests that do not read for a while.
func (s *Sniffer) SetBufferSize(bytes int) error {
	return s.control(func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bytes) })
}

// Lost returns the number of packets that were lost since the last call, because the buffer
// was full.
func (s *Sniffer) Lost() (n uint32, err error) {
	err = s.control(func(fd int) error {
		stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err == nil {
			n = stats.Drops
		}
		return err
	})
	return n, err
}

// control runs a function on the sniffer's socket.
func (s *Sniffer) control(do func(fd int) error) error {
	conn, err := s.file.SyscallConn()
	if err != nil {
		return err
	}
	if e := conn.Control(func(fd uintptr) { err = do(int(fd)) }); e != nil {
		return e
	}
	if err != nil {
		return fmt.Errorf("sniff on %s: %w", s.host.Name, err)
	}
	return nil
}

// Close ends the sniffer.
func (s *Sniffer) Close() error { return s.file.Close() }
