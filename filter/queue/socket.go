package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net"
	"sync"
	"syscall"
	"unsafe"

	"github.com/mdlayher/netlink"
	nlsocket "github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

const (
	// overhead is an upper bound of a message's size without its packet, in bytes.
	overhead = 512
	// receiveBuffer is the requested size of the socket's receive buffer, in bytes. The
	// kernel counts about 800 bytes for each packet, so the buffer has room for more than
	// 10,000 packets. A queue of DefaultMaxLen packets is full before the buffer is.
	receiveBuffer = 8 << 20
	// maxOut is the number of buffered bytes at which Send flushes the verdicts: about 800
	// verdicts. The workers may answer many pending packets at once, and the kernel rejects
	// a message that is larger than the socket's send buffer (some 200 KiB).
	maxOut = 32 << 10

	headerLen  = 16       // struct nlmsghdr
	kindPacket = 3 << 8   // NFNL_SUBSYS_QUEUE, NFQNL_MSG_PACKET
	kindAnswer = 3<<8 | 1 // NFQNL_MSG_VERDICT
)

// socket is the netlink socket of one queue. It reads a burst of messages with one system
// call and sends their verdicts with another: with one call for each message, a packet
// costs twice as much CPU.
//
// go-nfqueue uses it as a netlink.Socket, to send requests and to read their
// acknowledgements. The kernel delivers packets as soon as the queue is bound. So packets
// may arrive while go-nfqueue waits for the acknowledgement of a request that configures
// the queue. The socket keeps such packets in the field "early", and kernelQueue.read returns
// them first.
type socket struct {
	conn *nlsocket.Conn
	raw  syscall.RawConn
	port uint32

	buffers [][]byte
	iovecs  []unix.Iovec
	headers []mmsghdr

	mu  sync.Mutex // guards out: another goroutine answers pending packets
	out []byte     // verdicts that are not yet sent

	requested bool          // a request was sent whose acknowledgement has not been read
	early     []packet      // packets that came before the acknowledgement
	closed    chan struct{} // closed by Close

	stale func() // called for a verdict about a packet that is already gone
}

// mmsghdr is struct mmsghdr of recvmmsg(2). Go pads it as C does, on 32 bits and
// on 64.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// newSocket opens a socket in the network namespace with the file descriptor netNS; 0 means
// the process's own. Messages hold up to copyRange bytes of a packet.
func newSocket(netNS int, copyRange uint32, stale func()) (*socket, error) {
	conn, err := nlsocket.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER, "nfqueue", &nlsocket.Config{NetNS: netNS})
	if err != nil {
		return nil, err
	}
	s := &socket{conn: conn, stale: stale, closed: make(chan struct{})}
	if err := s.setUp(copyRange); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return s, nil
}

func (s *socket) setUp(copyRange uint32) error {
	if err := s.conn.Bind(&unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	name, err := s.conn.Getsockname()
	if err != nil {
		return fmt.Errorf("get the port: %w", err)
	}
	if addr, ok := name.(*unix.SockaddrNetlink); ok {
		s.port = addr.Pid
	}
	// SO_RCVBUFFORCE may exceed net.core.rmem_max. If it fails, the socket works with a
	// smaller buffer, and its losses are counted and reported.
	_ = s.conn.SetsockoptInt(unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
	// If the buffer is full, the kernel drops and counts packets, with or without this
	// option. Without it, the next read would also return ENOBUFS, and the worker would
	// fail.
	if err := s.conn.SetsockoptInt(unix.SOL_NETLINK, unix.NETLINK_NO_ENOBUFS, 1); err != nil {
		return fmt.Errorf("set NETLINK_NO_ENOBUFS: %w", err)
	}
	_ = s.conn.SetsockoptInt(unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1) // the kernel's error messages then omit the copy of the request
	if s.raw, err = s.conn.SyscallConn(); err != nil {
		return err
	}
	s.buffers = make([][]byte, maxBurst)
	s.iovecs = make([]unix.Iovec, maxBurst)
	s.headers = make([]mmsghdr, maxBurst)
	size := int(copyRange) + overhead
	all := make([]byte, maxBurst*size)
	for i := range maxBurst {
		s.buffers[i] = all[i*size : (i+1)*size : (i+1)*size]
		s.iovecs[i].Base = &s.buffers[i][0]
		s.iovecs[i].SetLen(size)
		s.headers[i].hdr.Iov = &s.iovecs[i]
		s.headers[i].hdr.SetIovlen(1)
	}
	return nil
}

// bufferSize returns the size of the receive buffer, in bytes.
func (s *socket) bufferSize() (int, error) {
	n, err := s.conn.GetsockoptInt(unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil {
		return 0, fmt.Errorf("get the size of the receive buffer: %w", err)
	}
	return n, nil
}

// Close implements netlink.Socket. The kernel then unbinds the queue and drops the packets
// in it.
func (s *socket) Close() error {
	close(s.closed)
	return s.conn.Close()
}

// SendMessages implements netlink.Socket.
func (s *socket) SendMessages(messages []netlink.Message) error {
	for _, m := range messages {
		if err := s.Send(m); err != nil {
			return err
		}
	}
	return nil
}

// Send implements netlink.Socket. A request is sent at once. Verdicts are buffered until
// flush, or until they reach maxOut bytes.
func (s *socket) Send(m netlink.Message) error {
	s.mu.Lock()
	s.out = appendMessage(s.out, m)
	full := len(s.out) >= maxOut
	s.mu.Unlock()
	if m.Header.Type == kindAnswer {
		if full {
			return s.flush()
		}
		return nil
	}
	s.requested = m.Header.Flags&netlink.Acknowledge != 0
	return s.flush()
}

func appendMessage(b []byte, m netlink.Message) []byte {
	length := headerLen + len(m.Data)
	b = binary.NativeEndian.AppendUint32(b, uint32(length))
	b = binary.NativeEndian.AppendUint16(b, uint16(m.Header.Type))
	b = binary.NativeEndian.AppendUint16(b, uint16(m.Header.Flags))
	b = binary.NativeEndian.AppendUint32(b, m.Header.Sequence)
	b = binary.NativeEndian.AppendUint32(b, m.Header.PID)
	b = append(b, m.Data...)
	return append(b, make([]byte, align(length)-length)...)
}

// align rounds up to netlink's alignment.
func align(n int) int { return (n + 3) &^ 3 }

// flush sends the buffered messages. The kernel carries out the verdicts before the system
// call returns: by then, an allowed packet has passed the rules once more, and its
// connection has the allowed mark.
func (s *socket) flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.out) == 0 {
		return nil
	}
	var err error
	if e := s.raw.Write(func(fd uintptr) bool {
		for {
			err = unix.Sendto(int(fd), s.out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
			if !errors.Is(err, unix.EINTR) {
				return !errors.Is(err, unix.EAGAIN)
			}
		}
	}); e != nil {
		err = e
	}
	s.out = s.out[:0]
	if err != nil {
		return fmt.Errorf("send verdicts: %w", err)
	}
	return nil
}

// Receive implements netlink.Socket.
func (s *socket) Receive() ([]netlink.Message, error) {
	var all []netlink.Message
	for m, err := range s.ReceiveIter() {
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

// ReceiveIter implements netlink.Socket. If a request was sent, it yields the
// acknowledgement. Otherwise, go-nfqueue's reader has called it to read packets.
// kernelQueue.read reads them instead, so ReceiveIter blocks this reader until the socket
// is closed.
func (s *socket) ReceiveIter() iter.Seq2[netlink.Message, error] {
	return func(yield func(netlink.Message, error) bool) {
		if !s.requested {
			<-s.closed
			yield(netlink.Message{}, net.ErrClosed)
			return
		}
		for s.requested {
			ack, err := s.acknowledgement()
			if err != nil {
				yield(netlink.Message{}, err)
				return
			}
			if ack != nil && !yield(*ack, nil) {
				return
			}
		}
	}
}

// acknowledgement reads a burst, and returns the answer to the request, or nil if the burst
// does not contain it. It keeps the packets of the burst in s.early.
func (s *socket) acknowledgement() (ack *netlink.Message, err error) {
	n, err := s.receive(maxBurst)
	if err != nil {
		return nil, err
	}
	err = s.each(n, func(m netlink.Message) error {
		m.Data = append([]byte(nil), m.Data...)
		switch m.Header.Type {
		case kindPacket:
			p, err := parsePacket(m.Data)
			if err != nil {
				return err
			}
			s.early = append(s.early, p)
		case netlink.Error:
			ack, s.requested = &m, false
		}
		return nil
	})
	return ack, err
}

// takeEarly returns the packets that came before the queue was configured, and removes
// them.
func (s *socket) takeEarly() []packet {
	early := s.early
	s.early = nil
	return early
}

// receive waits for messages, reads up to limit of them into the buffers and returns
// how many there are.
func (s *socket) receive(limit int) (n int, err error) {
	if e := s.raw.Read(func(fd uintptr) bool {
		for {
			got, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&s.headers[0])), uintptr(limit), unix.MSG_DONTWAIT, 0, 0)
			switch errno {
			case 0:
				n, err = int(got), nil
				return true
			case unix.EINTR:
				continue
			case unix.EAGAIN:
				return false
			}
			err = errno
			return true
		}
	}); e != nil {
		return 0, e
	}
	return n, err
}

// each calls f for every message in the first n buffers. The data of a message is valid
// until the next receive.
func (s *socket) each(n int, f func(netlink.Message) error) error {
	for i := range n {
		if s.headers[i].hdr.Flags&unix.MSG_TRUNC != 0 {
			return fmt.Errorf("receive: a message of more than %d bytes", len(s.buffers[i]))
		}
		for b := s.buffers[i][:s.headers[i].len]; len(b) > 0; {
			length := 0
			if len(b) >= headerLen {
				length = int(binary.NativeEndian.Uint32(b))
			}
			if length < headerLen || length > len(b) {
				return errors.New("receive: malformed netlink message")
			}
			err := f(netlink.Message{
				Header: netlink.Header{
					Length:   uint32(length),
					Type:     netlink.HeaderType(binary.NativeEndian.Uint16(b[4:])),
					Flags:    netlink.HeaderFlags(binary.NativeEndian.Uint16(b[6:])),
					Sequence: binary.NativeEndian.Uint32(b[8:]),
					PID:      binary.NativeEndian.Uint32(b[12:]),
				},
				Data: b[headerLen:length:length],
			})
			if err != nil {
				return err
			}
			b = b[min(align(length), len(b)):]
		}
	}
	return nil
}
