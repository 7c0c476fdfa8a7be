package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/mdlayher/netlink"
	nlsocket "github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

const (
	// burst is how many messages one system call reads at most. Their answers
	// go back in one, so that it also bounds how long a verdict is on its way.
	burst = 64
	// overflowBurst is the same for the crowd's queue; crowdTurn, once crowdBacklog
	// packets have come without a pause, and until for crowdTime hardly any have: a
	// flood has short pauses too. Others wait for a turn at worst: with 4
	// packets instead of 2 their 99th percentile was a quarter longer, with 8 twice
	// as long. But 2 cost a busy client a third of its connections, 16 none.
	overflowBurst = 16
	floodBurst    = 2
	floodBacklog  = 512
	floodQuiet    = 20 * time.Millisecond
	// overhead is more than what a message holds beside the packet.
	overhead = 512
	// receiveBuffer is what the kernel may keep for us, in bytes: it accounts
	// about 800 bytes for each packet, so that MaxLen fills before this does.
	receiveBuffer = 8 << 20
	// maxOut is how many bytes of verdicts go out in one system call, about 800 of
	// them: the kernel refuses what exceeds the socket's send buffer, which is some
	// 200 KiB, and many packets that have waited may be answered at once.
	maxOut = 32 << 10

	headerLen  = 16       // struct nlmsghdr
	kindPacket = 3 << 8   // NFNL_SUBSYS_QUEUE, NFQNL_MSG_PACKET
	kindAnswer = 3<<8 | 1 // NFQNL_MSG_VERDICT
)

// socket is the netlink socket under go-nfqueue. It differs from the usual one
// in three ways.
//
// It reads a burst of messages with one system call and sends the verdicts about
// them with another: with one call a message each, a packet costs twice as much
// CPU. A verdict waits for no later packet: all go out before the next read.
//
// While a request waits for its acknowledgement, packets that arrive are put
// aside. A queue delivers from the moment that it is bound, before go-nfqueue has
// configured it, and a packet taken for the acknowledgement would be lost.
//
// It keeps the kernel's error messages about verdicts to itself. They say that a
// packet was given up meanwhile, and go-nfqueue would throw away the burst that
// they came with.
type socket struct {
	conn *nlsocket.Conn
	raw  syscall.RawConn
	port uint32

	buffers  [][]byte
	iovecs   []unix.Iovec
	headers  []mmsghdr
	messages []netlink.Message

	overflow   bool      // others go first
	most       int       // how many messages a read takes
	behind     int       // how many have come since a read last took less
	floodUntil time.Time // when there is no crowd any more

	// If backlog messages came without a pause, overflowed is called for each burst
	// until the next pause; 0 is never.
	backlog  int
	unpaused int // messages since the last pause
	full     func(first bool)

	mu  sync.Mutex // packets that have waited are answered by another goroutine
	out []byte     // verdicts that are not yet sent

	awaited bool              // a request waits for its acknowledgement
	aside   []netlink.Message // packets that came meanwhile

	flushed func() // all verdicts about the last burst have been carried out
	stale   func() // a verdict came too late
}

// mmsghdr is struct mmsghdr of recvmmsg(2). Go pads it as C does, on 32 bits and
// on 64.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// newSocket opens a socket in a network namespace, 0 for the process's own.
// Messages hold up to copyRange bytes of a packet.
func newSocket(netNS int, copyRange uint32, crowd bool, flushed, late func()) (*socket, error) {
	conn, err := nlsocket.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER, "nfqueue", &nlsocket.Config{NetNS: netNS})
	if err != nil {
		return nil, err
	}
	s := &socket{conn: conn, overflow: crowd, most: burst, flushed: flushed, stale: late}
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
	// Beyond net.core.rmem_max, which the privilege allows. A socket that stays
	// small works too, and what it loses is counted and reported.
	_ = s.conn.SetsockoptInt(unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
	// What does not fit is dropped and counted by the kernel either way; an error
	// at the next read would only get in the way of the answers.
	if err := s.conn.SetsockoptInt(unix.SOL_NETLINK, unix.NETLINK_NO_ENOBUFS, 1); err != nil {
		return fmt.Errorf("set NETLINK_NO_ENOBUFS: %w", err)
	}
	_ = s.conn.SetsockoptInt(unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1) // shorter errors
	if s.raw, err = s.conn.SyscallConn(); err != nil {
		return err
	}
	s.buffers = make([][]byte, burst)
	s.iovecs = make([]unix.Iovec, burst)
	s.headers = make([]mmsghdr, burst)
	size := int(copyRange) + overhead
	all := make([]byte, burst*size)
	for i := range burst {
		s.buffers[i] = all[i*size : (i+1)*size : (i+1)*size]
		s.iovecs[i].Base = &s.buffers[i][0]
		s.iovecs[i].SetLen(size)
		s.headers[i].hdr.Iov = &s.iovecs[i]
		s.headers[i].hdr.SetIovlen(1)
	}
	return nil
}

// Close implements netlink.Socket. The kernel then unbinds the queue and drops
// what waits in it.
func (s *socket) Close() error { return s.conn.Close() }

// SetDeadline, SetReadDeadline and SetWriteDeadline end calls that take too long.
func (s *socket) SetDeadline(t time.Time) error      { return s.conn.SetDeadline(t) }
func (s *socket) SetReadDeadline(t time.Time) error  { return s.conn.SetReadDeadline(t) }
func (s *socket) SetWriteDeadline(t time.Time) error { return s.conn.SetWriteDeadline(t) }

// SendMessages implements netlink.Socket.
func (s *socket) SendMessages(messages []netlink.Message) error {
	for _, m := range messages {
		if err := s.Send(m); err != nil {
			return err
		}
	}
	return nil
}

// Send implements netlink.Socket. Verdicts are kept until the next read, or until
// they are many.
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
	s.awaited = m.Header.Flags&netlink.Acknowledge != 0
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

// align rounds up to what netlink aligns to.
func align(n int) int { return (n + 3) &^ 3 }

// flush sends what waits. The kernel carries a verdict out before the call
// returns: the packet has then passed the rules once more, and its connection
// has its mark.
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

// ReceiveIter implements netlink.Socket: it sends the verdicts about the last
// burst and waits for the next one, or for the acknowledgement of a request. The
// messages' data are good until the next call.
func (s *socket) ReceiveIter() iter.Seq2[netlink.Message, error] {
	return func(yield func(netlink.Message, error) bool) {
		messages, err := s.next()
		if err != nil {
			yield(netlink.Message{}, err)
			return
		}
		for _, m := range messages {
			if !yield(m, nil) {
				return
			}
		}
	}
}

func (s *socket) next() ([]netlink.Message, error) {
	if err := s.flush(); err != nil {
		return nil, err
	}
	s.flushed()
	if s.overflow && s.most == floodBurst {
		yield()
	}
	if !s.awaited && len(s.aside) > 0 {
		messages := s.aside
		s.aside = nil
		return messages, nil
	}
	for {
		n, err := s.read()
		if err != nil {
			return nil, err
		}
		if err := s.cut(n); err != nil {
			return nil, err
		}
		if !s.awaited {
			if len(s.messages) > 0 {
				return s.messages, nil
			}
			continue // errors about verdicts, and nothing else
		}
		if ack, ok := s.acknowledgement(); ok {
			s.awaited = false
			return []netlink.Message{ack}, nil
		}
	}
}

// read reads a burst into the buffers and returns its size.
func (s *socket) read() (n int, err error) {
	if e := s.raw.Read(func(fd uintptr) bool {
		for {
			got, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&s.headers[0])), uintptr(s.most), unix.MSG_DONTWAIT, 0, 0)
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
	if s.backlog > 0 {
		s.count(n)
	}
	if s.overflow {
		s.paceAfter(n, time.Now())
	}
	return n, err
}

// count counts the messages that came without a pause. A read that took less than it
// could have was the last before one.
func (s *socket) count(n int) {
	before := s.unpaused
	if s.unpaused += n; s.unpaused >= s.backlog {
		s.full(before < s.backlog)
	}
	if n < s.most {
		s.unpaused = 0
	}
}

// paceAfter says how many messages the next read of the crowd's queue takes, after
// one of n.
func (s *socket) paceAfter(n int, now time.Time) {
	if s.behind += n; n < s.most {
		s.behind = 0
	}
	if s.behind >= floodBacklog || s.behind > 0 && s.most == floodBurst {
		s.floodUntil = now.Add(floodQuiet)
	}
	s.most = overflowBurst
	if now.Before(s.floodUntil) {
		s.most = floodBurst
	}
}

// yield lets all others go first that could go on, at once if there are none.
// Only both calls together do that. The first is for the other workers: it also
// wakes an idle thread of the runtime, which looks for packets in their queues.
// The second is for the pods: the kernel lets a thread run on for milliseconds
// that has much to do, and whom it wakes waits so long. Measured on two cores as
// the 99th percentile of another pod's connections beside a flood, in times of
// that without: neither 17, one of them 11 or 18, both 2.
//
// That is for a crowd only. All others are also those who compute, each for
// milliseconds: on a node that started containers, a client that was merely beyond
// its share waited for up to 770 ms, where without giving way it waited for 50.
//
// The thread keeps its priority: the kernel would let one of a lower priority wait
// for long in the midst of a burst, and the collector would wait for it.
func yield() {
	runtime.Gosched()
	_, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
}

// cut makes messages of the first n buffers. Without a request that is waited
// for, only packets are kept.
func (s *socket) cut(n int) error {
	s.messages = s.messages[:0]
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
			m := netlink.Message{
				Header: netlink.Header{
					Length:   uint32(length),
					Type:     netlink.HeaderType(binary.NativeEndian.Uint16(b[4:])),
					Flags:    netlink.HeaderFlags(binary.NativeEndian.Uint16(b[6:])),
					Sequence: binary.NativeEndian.Uint32(b[8:]),
					PID:      binary.NativeEndian.Uint32(b[12:]),
				},
				Data: b[headerLen:length:length],
			}
			switch {
			case s.awaited || m.Header.Type == kindPacket:
				s.messages = append(s.messages, m)
			case m.Header.Type == netlink.Error:
				s.stale()
			}
			b = b[min(align(length), len(b)):]
		}
	}
	return nil
}

// acknowledgement finds the answer to a request in the burst, and puts the
// packets aside.
func (s *socket) acknowledgement() (ack netlink.Message, ok bool) {
	for _, m := range s.messages {
		switch m.Header.Type {
		case kindPacket:
			m.Data = append([]byte(nil), m.Data...)
			s.aside = append(s.aside, m)
		case netlink.Error:
			ack, ok = m, true
			ack.Data = append([]byte(nil), m.Data...)
		}
	}
	return ack, ok
}
