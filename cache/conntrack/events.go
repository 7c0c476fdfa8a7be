package conntrack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sluice/filter"
)

// Event is the begin or the end of a connection. It must not be used after the function that gets it has
// returned.
type Event struct {
	Conn
	// Ended is set if the connection has ended: its entry has left the table. If Ended is not set, the
	// connection has begun: its first packet has just passed all rules, and Mark is the mark that the
	// rules have set.
	Ended bool
	// To is the destination of the first packet before DNAT, such as the address of a Service. The
	// port is 0 unless Key.Transport is Ported.
	To netip.AddrPort
	// Began is the time of the first packet. It is zero unless net.netfilter.nf_conntrack_timestamp is
	// set.
	Began time.Time
	// Last is the time of the last packet of a connection that has ended. Its entry stays in the table until
	// a timeout, two minutes for most TCP connections, so Last is computed from the time at which the entry
	// has left the table, the state and the timeouts. It is zero if Began is, for other protocols than TCP,
	// UDP and ICMP, and for TCP if the kernel does not report the state of connections that have ended.
	Last time.Time
	// Sent counts the packets from the source of the key, and Received the packets from the destination.
	// Both are valid only if Ended and Counted are set. Counted is set if net.netfilter.nf_conntrack_acct
	// is 1.
	Sent, Received Traffic
	Counted        bool

	assured bool // for UDP: the kernel took it for a stream
}

// Traffic counts packets and their bytes, IP headers included.
type Traffic struct{ Packets, Bytes uint64 }

// ErrNoEvents means that the kernel reports no connections: net.netfilter.nf_conntrack_events is 0.
var ErrNoEvents = errors.New("the kernel reports no connections: set net.netfilter.nf_conntrack_events to 1 or 2")

const (
	// eventBuffer is the size of the receive buffer for events, in bytes. An event takes some 900 bytes of
	// it, so the buffer has room for 4,500 connections that begin and end while nothing reads.
	eventBuffer = 8 << 20
	// gatherTime is how long Read waits, after it has read all events, before it reads again. The buffer
	// is large enough for this time unless more than 450,000 connections begin and end in a second.
	gatherTime = 10 * time.Millisecond
	// The multicast groups of events: linux/netfilter/nfnetlink_compat.h.
	groupNew     = 1 << 0 // NF_NETLINK_CONNTRACK_NEW
	groupDestroy = 1 << 2 // NF_NETLINK_CONNTRACK_DESTROY
)

// Events is a subscription to the events of a connection table. While it is open, the kernel makes an
// event for each connection that begins or ends, which takes some microseconds. While none is open, the
// kernel makes no events, unless net.netfilter.nf_conntrack_events is 1.
type Events struct {
	fd       int // a netlink socket
	in       *burst
	timeouts timeouts // at the time of the subscription
}

// Events subscribes to the connections that begin and end from now on. If a connection has begun before,
// its end may not be reported.
func (k *Netlink) Events() (*Events, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: k.netNS, Groups: groupNew | groupDestroy})
	if err != nil {
		return nil, fmt.Errorf("subscribe to connections: %w", err)
	}
	defer c.Close()
	if err := widen(c, eventBuffer); err != nil {
		return nil, fmt.Errorf("subscribe to connections: %w", err)
	}
	// With this option, the kernel drops and counts only the events that do not fit into the buffer.
	// Without it, the kernel would drop all events from then on until the buffer is empty.
	if err := c.SetOption(netlink.NoENOBUFS, true); err != nil {
		return nil, fmt.Errorf("subscribe to connections: %w", err)
	}
	// The file descriptor of c is registered with the poller of Go's runtime. Each event would wake up the
	// poller, even if no goroutine waits for the socket, and that takes several times as much CPU as the
	// event. The duplicate is not registered.
	fd, err := duplicate(c)
	if err != nil {
		return nil, fmt.Errorf("subscribe to connections: %w", err)
	}
	return &Events{fd: fd, in: newBurst(), timeouts: readTimeouts()}, nil
}

// duplicate returns another file descriptor of a socket.
func duplicate(c *netlink.Conn) (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	if e := raw.Control(func(of uintptr) { fd, err = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) }); e != nil {
		return 0, e
	}
	return fd, err
}

// widen sets the size of a socket's receive buffer. If the process has the right to, it also exceeds the
// system's limit.
func widen(c *netlink.Conn, bytes int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	forced := false
	if err := raw.Control(func(fd uintptr) {
		forced = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bytes) == nil
	}); err != nil || forced {
		return err
	}
	return c.SetReadBuffer(bytes)
}

// Close ends the subscription.
func (e *Events) Close() error { return unix.Close(e.fd) }

// Read calls report for each event, until ctx ends.
func (e *Events) Read(ctx context.Context, report func(*Event)) error {
	var event Event // reused for all events, because it escapes to the heap
	for ctx.Err() == nil {
		n, err := e.in.receive(e.fd)
		if err != nil {
			return fmt.Errorf("read connections: %w", err)
		}
		for i := range n {
			if err := readEvents(e.in.datagram(i), &e.timeouts, &event, report); err != nil {
				return fmt.Errorf("read connections: %w", err)
			}
		}
		if n < maxBurst {
			pause(ctx)
		}
	}
	return nil
}

// pause waits for gatherTime.
func pause(ctx context.Context) {
	wait := time.NewTimer(gatherTime)
	defer wait.Stop()
	select {
	case <-ctx.Done():
	case <-wait.C:
	}
}

// readEvents calls report for each event in a datagram.
func readEvents(b []byte, t *timeouts, event *Event, report func(*Event)) error {
	for len(b) > 0 {
		m, _, rest, err := cutMessage(b)
		if err != nil {
			return err
		}
		if b = rest; m.kind != msgConnSet && m.kind != msgConnDelete {
			continue
		}
		if err := parseEvent(m, t, event); err != nil {
			return err
		}
		report(event)
	}
	return nil
}

// Lost returns the number of events that did not fit into the receive buffer.
func (e *Events) Lost() (uint64, error) {
	var info memoryInfo
	if err := info.read(e.fd); err != nil {
		return 0, fmt.Errorf("count lost connections: %w", err)
	}
	return uint64(info[memoryDrops]), nil
}

// parseEvent parses an event.
func parseEvent(m message, t *timeouts, e *Event) error {
	*e = Event{Ended: m.kind == msgConnDelete}
	if err := parseConn(m.body, &e.Conn); err != nil {
		return err
	}
	var stop time.Time
	var remaining time.Duration
	for a, rest, ok := cut(m.body[nfgenLen:]); ok; a, rest, ok = cut(rest) {
		switch a.kind {
		case ctaTupleOrig:
			e.To = parseTo(a.value, e.Key.Transport)
		case ctaTimestamp:
			e.Began, stop = parseTime(a.value, ctaTimestampStart), parseTime(a.value, ctaTimestampStop)
		case ctaStatus:
			e.assured = len(a.value) == 4 && binary.BigEndian.Uint32(a.value)&statusAssured != 0
		case ctaTimeout:
			if len(a.value) == 4 {
				remaining = time.Duration(binary.BigEndian.Uint32(a.value)) * time.Second
			}
		case ctaCountersOrig:
			e.Sent, e.Counted = parseTraffic(a.value), true
		case ctaCountersReply:
			e.Received, e.Counted = parseTraffic(a.value), true
		}
	}
	if e.Ended {
		e.Last = t.last(e, stop, remaining)
	}
	return nil
}

// parseTo returns the destination in the value of a CTA_TUPLE_* attribute.
func parseTo(b []byte, transport filter.Transport) netip.AddrPort {
	var addr netip.Addr
	var port uint16
	for a, rest, ok := cut(b); ok; a, rest, ok = cut(rest) {
		for p, rest, ok := cut(a.value); ok; p, rest, ok = cut(rest) {
			switch {
			case a.kind == ctaTupleIP && (p.kind == ctaIPv4Dst || p.kind == ctaIPv6Dst):
				addr, _ = netip.AddrFromSlice(p.value)
			case a.kind == ctaTupleProto && p.kind == ctaProtoDstPort && len(p.value) == 2 && transport == filter.Ported:
				port = binary.BigEndian.Uint16(p.value)
			}
		}
	}
	return netip.AddrPortFrom(addr, port)
}

// parseTime returns the time of the given kind in a CTA_TIMESTAMP.
func parseTime(b []byte, kind uint16) time.Time {
	if ns, ok := number64(b, kind); ok {
		return time.Unix(0, int64(ns))
	}
	return time.Time{}
}

// parseTraffic returns the numbers in a CTA_COUNTERS_*.
func parseTraffic(b []byte) (t Traffic) {
	t.Packets, _ = number64(b, ctaCountersPackets)
	t.Bytes, _ = number64(b, ctaCountersBytes)
	return t
}

// number64 returns the number in the nested attribute of the given kind.
func number64(b []byte, kind uint16) (n uint64, found bool) {
	for a, rest, ok := cut(b); ok; a, rest, ok = cut(rest) {
		if a.kind == kind && len(a.value) == 8 {
			return binary.BigEndian.Uint64(a.value), true
		}
	}
	return 0, false
}
