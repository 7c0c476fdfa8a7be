package queue

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/florianl/go-nfqueue/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sluice/filter"
)

// kernelQueue is one open NFQUEUE. It divides the work between go-nfqueue and this package.
//
// go-nfqueue binds and configures the queue, and encodes the verdicts. It sends both
// through our own [socket], which sends many verdicts with one system call.
// kernelQueue.read reads the packets. go-nfqueue's own reader is blocked (see
// socket.ReceiveIter) for two reasons: it needs a system call for each message and
// allocates for each packet; and it passes packets to a callback one by one, so that the
// worker would not know which packet is the last of a burst.
type kernelQueue struct {
	library *nfqueue.Nfqueue
	socket  *socket
	packets []packet // the result of the last read, reused by the next
	close   func()   // closes the queue, so that the kernel drops its packets; may be called more than once
}

// packet is a packet in the queue that has no verdict yet.
type packet struct {
	id, mark uint32
	// device is the index of the input interface: on a bridge, the index of the bridge
	// port. It is 0 if the kernel does not report one.
	device uint32
	hook   filter.Hook
	// data begins with the IP header, and is valid until the next read. It is nil if the
	// packet was queued before the queue was configured.
	data []byte
}

// openQueue binds a queue and configures it. It calls stale() for each verdict that the kernel
// rejects because the packet has already left the queue.
func openQueue(o Options, number uint16, stale func()) (*kernelQueue, error) {
	var flags uint32
	if !o.NoGSO {
		flags |= nfqueue.NfQaCfgFlagGSO
	}
	if o.FailOpen {
		flags |= nfqueue.NfQaCfgFlagFailOpen
	}
	library, err := nfqueue.Open(&nfqueue.Config{
		NetNS: o.NetNS, NfQueue: number, Copymode: nfqueue.NfQnlCopyPacket, Flags: flags,
		MaxQueueLen: o.MaxLen, MaxPacketLen: o.CopyRange,
	})
	if err != nil {
		return nil, fmt.Errorf("open queue %d: %w", number, explain(err, o.NetNS, number))
	}
	s, err := newSocket(o.NetNS, o.CopyRange, stale)
	if err != nil {
		_ = library.Close()
		return nil, fmt.Errorf("open queue %d: %w", number, explain(err, o.NetNS, number))
	}
	_ = library.Con.Close()
	library.Con = netlink.NewConn(s, s.port)
	q := &kernelQueue{library: library, socket: s, close: sync.OnceFunc(func() { _ = library.Close() })}
	// go-nfqueue calls neither function before the socket is closed: see socket.ReceiveIter.
	err = library.RegisterWithErrorFunc(context.Background(), func(nfqueue.Attribute) int { return 1 }, func(error) int { return 1 })
	if err != nil {
		q.close()
		return nil, fmt.Errorf("bind queue %d: %w", number, explain(err, o.NetNS, number))
	}
	return q, nil
}

// read waits for messages, and reads up to limit of them with one system call. It returns
// the packets in these messages, and the number of messages. There may be fewer packets
// than messages, because some messages are errors. If packets arrived before the queue was
// configured, the first read returns only these, and 0 as the number of messages.
func (q *kernelQueue) read(limit int) (packets []packet, messages int, err error) {
	if early := q.socket.takeEarly(); len(early) > 0 {
		return early, 0, nil
	}
	if messages, err = q.socket.receive(limit); err != nil {
		return nil, 0, err
	}
	q.packets = q.packets[:0]
	err = q.socket.each(messages, func(m netlink.Message) error {
		switch m.Header.Type {
		case kindPacket:
			p, err := parsePacket(m.Data)
			if err != nil {
				return err
			}
			q.packets = append(q.packets, p)
		case netlink.Error:
			q.socket.stale()
		}
		return nil
	})
	return q.packets, messages, err
}

// allow sends a packet through its chain again with the given mark, by which the rules let the
// packet pass. The verdicts of allow, deny and requeue take effect at the next flush or earlier.
func (q *kernelQueue) allow(id, mark uint32) error {
	return q.library.SetVerdictWithOption(id, nfqueue.NfRepeat, nfqueue.WithMark(mark))
}

// skip lets a packet pass without a mark. The kernel continues after the table that queued it.
func (q *kernelQueue) skip(id uint32) error { return q.library.SetVerdict(id, nfqueue.NfAccept) }

// reject sends a packet through its chain again, with the mark for packets that are to be
// rejected.
func (q *kernelQueue) reject(id, mark uint32) error {
	return q.library.SetVerdictWithOption(id, nfqueue.NfRepeat, nfqueue.WithMark(mark))
}

// deny drops a packet.
func (q *kernelQueue) deny(id uint32) error { return q.library.SetVerdict(id, nfqueue.NfDrop) }

// requeue sends a packet through its chain again unchanged, so that it returns to the
// queue.
func (q *kernelQueue) requeue(id uint32) error { return q.library.SetVerdict(id, nfqueue.NfRepeat) }

// flush sends the verdicts, and returns when the kernel has carried them out.
func (q *kernelQueue) flush() error { return q.socket.flush() }

// Attributes of a packet (linux/netfilter/nfnetlink_queue.h).
const (
	attrPacketHeader = 1
	attrMark         = 3
	attrInDevice     = 5
	attrPhysInDevice = 7
	attrPayload      = 10

	hookOffset    = 6      // of the hook in struct nfqnl_msg_packet_hdr
	attrHeaderLen = 4      // struct nlattr
	attrTypeMask  = 0x3fff // NLA_TYPE_MASK
	familyLen     = 4      // struct nfgenmsg
)

var errPacket = errors.New("malformed nfnetlink_queue message")

// parsePacket reads the attributes that a verdict needs. A packet without an ID is an
// error, because it could not be answered.
func parsePacket(body []byte) (p packet, err error) {
	if len(body) < familyLen {
		return p, errPacket
	}
	numbered := false
	for b := body[familyLen:]; len(b) >= attrHeaderLen; {
		n := int(binary.NativeEndian.Uint16(b))
		if n < attrHeaderLen || n > len(b) {
			return p, errPacket
		}
		value := b[attrHeaderLen:n:n]
		switch kind := binary.NativeEndian.Uint16(b[2:]) & attrTypeMask; {
		case kind == attrPayload:
			p.data = value
		case len(value) < 4: // malformed: each of the attributes below has 4 bytes or more
		case kind == attrPacketHeader:
			p.id, numbered = binary.BigEndian.Uint32(value), true
			if len(value) > hookOffset {
				p.hook = hookOf(value[hookOffset])
			}
		case kind == attrMark:
			p.mark = binary.BigEndian.Uint32(value)
		case kind == attrPhysInDevice, kind == attrInDevice && p.device == 0:
			p.device = binary.BigEndian.Uint32(value)
		}
		b = b[min(align(n), len(b)):]
	}
	if !numbered {
		return p, errPacket
	}
	return p, nil
}

// hookOf returns the hook with the kernel's number n. For any other hook than those that the
// rules use, it returns the one where a packet can be denied only by dropping it.
func hookOf(n byte) filter.Hook {
	switch n {
	case unix.NF_INET_FORWARD:
		return filter.AtForward
	case unix.NF_INET_LOCAL_IN:
		return filter.AtInput
	}
	return filter.AtPostrouting
}

// explain adds a hint to the errors that a user can fix.
func explain(err error, netNS int, number uint16) error {
	taken := errors.Is(err, unix.EBUSY)
	if errors.Is(err, unix.EPERM) {
		// The kernel returns EPERM in two cases: another process has bound the queue, or
		// this process lacks a privilege. Bound distinguishes the cases, if it can read the
		// list of bound queues.
		taken, _ = Bound(netNS, number, 1)
	}
	switch {
	case taken:
		return fmt.Errorf("%w: another process reads this queue: end it, or choose other numbers with --queue-first", err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: run as root, or with the capability NET_ADMIN", err)
	}
	return err
}
