package conntrack

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// readSize is more than the kernel puts into one part of a dump (32 KiB).
	readSize = 64 << 10
	// sendBatch is how many updates go into one send. Should all their entries be
	// gone, the answers must fit the socket's receive buffer, where each takes
	// about 900 bytes of the usual 200 KiB.
	sendBatch = 128
	// maxFiltered is up to how many addresses the kernel is asked for the
	// connections of each, rather than for all. Each address takes two walks
	// through the kernel's whole table; reporting all takes about as long as
	// twenty of them with 50,000 connections (see the benchmarks).
	maxFiltered = 4
	// fewConns are reported faster in one walk than chosen in several: a walk looks
	// into every bucket of the kernel's hash table, full or empty, which takes some
	// milliseconds where the table is made for many.
	fewConns = 4096
)

// Netlink is the kernel's table of one network namespace, by ctnetlink.
//
// The sockets are mdlayher/netlink's. The messages are written and read here,
// because only two numbers of each entry are of interest among a hundred.
type Netlink struct {
	netNS      int
	filterFrom int
	buffers    sync.Pool // of readSize bytes, for dumps

	// For SetMarks, which a dump's report may call.
	set     *netlink.Conn // nil until needed, and after an error
	seq     uint32
	in, out []byte

	// unfiltered is set once the kernel has shown that it cannot filter.
	unfiltered atomic.Bool
}

// Options say which table to open.
type Options struct {
	// NetNS is a file descriptor of the network namespace, which must stay open
	// until Close; 0 is that of the thread that calls, at each call.
	NetNS int
	// NoFilter makes every dump report all connections, as if the kernel knew no
	// filter.
	NoFilter bool
	// FilterFrom is from how many connections on the kernel is to choose those of
	// a few addresses; 0 is a number that was found to be best.
	FilterFrom int
}

// Open opens the table. It needs CAP_NET_ADMIN, and CAP_SYS_ADMIN for another
// namespace than the process's.
func Open(o Options) (*Netlink, error) {
	k := &Netlink{netNS: o.NetNS, filterFrom: cmp.Or(o.FilterFrom, fewConns), in: make([]byte, readSize)}
	k.buffers.New = func() any { return new([readSize]byte) }
	k.unfiltered.Store(o.NoFilter)
	c, err := k.dial()
	if err != nil {
		return nil, err
	}
	k.set = c
	return k, nil
}

// Close implements Table.
func (k *Netlink) Close() error {
	if k.set == nil {
		return nil
	}
	err := k.set.Close()
	k.set = nil
	return err
}

func (k *Netlink) dial() (*netlink.Conn, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: k.netNS})
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket to the connection table: %w", err)
	}
	// Without it, each error comes with the whole request. Kernels before 4.3
	// do not know the option, and then that is how it is.
	_ = c.SetOption(netlink.CapAcknowledge, true)
	return c, nil
}

// Dump implements Table. For a few addresses in a large table it lets the kernel
// choose; where the kernel cannot, and otherwise, it reports every connection.
func (k *Netlink) Dump(ctx context.Context, among []netip.Addr, report func(*Conn)) error {
	if among != nil && len(among) <= maxFiltered && !k.unfiltered.Load() && k.count(ctx) >= k.filterFrom {
		err := k.dumpAmong(ctx, among, report)
		if !errors.Is(err, errUnfiltered) {
			return err
		}
		k.unfiltered.Store(true)
	}
	return k.dump(ctx, unix.AF_UNSPEC, netip.Addr{}, 0, report)
}

// count is how many connections there are. A kernel before 5.9 does not tell, and
// then they count as many.
func (k *Netlink) count(ctx context.Context) int {
	c, err := k.dial()
	if err != nil {
		return math.MaxInt
	}
	defer c.Close()
	in := k.buffers.Get().(*[readSize]byte)
	defer k.buffers.Put(in)
	n := math.MaxInt
	_ = exchange(ctx, c, appendCount(nil, 1), in[:], func(m message) (bool, error) {
		if m.kind == msgConnStats {
			n = parseCount(m.body)
		}
		return true, nil
	})
	return n
}

// errUnfiltered says that the kernel refuses a filter, or reports what was
// filtered out.
var errUnfiltered = errors.New("kernel does not filter the connection table")

// dumpAmong reports the connections from the addresses, and at the same time
// those to them that are from others: on two processors, the walks through the
// kernel's table take half as long.
//
// Of IPv6 it reports everything, in one more walk. The kernel's filter compares
// IPv6 addresses the wrong way round (ctnetlink_filter_match_tuple, at least
// 5.8 to 6.18): it leaves out just those that are asked for, and where they are
// the only ones, its answer looks like that of an empty table.
func (k *Netlink) dumpAmong(ctx context.Context, among []netip.Addr, report func(*Conn)) error {
	v4 := slices.DeleteFunc(slices.Clone(among), netip.Addr.Is6)
	var mu sync.Mutex
	locked := func(c *Conn) {
		mu.Lock()
		defer mu.Unlock()
		report(c)
	}
	to := make(chan error, 1)
	go func() {
		to <- k.dumpOf(ctx, v4, ctaTupleReply, func(c *Conn, a netip.Addr) bool {
			if c.Malformed || !slices.Contains(v4, c.Key.SrcAddr()) {
				locked(c)
			}
			return c.Malformed || c.Key.DstAddr() == a
		})
	}()
	err := k.dumpOf(ctx, v4, ctaTupleOrig, func(c *Conn, a netip.Addr) bool {
		locked(c)
		return c.Malformed || c.Key.SrcAddr() == a
	})
	if err == nil && len(v4) < len(among) {
		err = k.dump(ctx, unix.AF_INET6, netip.Addr{}, 0, locked)
	}
	return errors.Join(err, <-to)
}

// dumpOf asks for the connections that have each of the IPv4 addresses as the
// source of the given tuple. It fails if report says that one has not.
func (k *Netlink) dumpOf(ctx context.Context, among []netip.Addr, direction uint16, report func(*Conn, netip.Addr) bool) error {
	for _, a := range among {
		strays := false
		err := k.dump(ctx, unix.AF_INET, a, direction, func(c *Conn) {
			strays = strays || !report(c, a)
		})
		if err := filterError(err, strays); err != nil {
			return err
		}
	}
	return nil
}

// filterError tells a kernel that cannot filter from one that fails.
func filterError(err error, strays bool) error {
	if strays || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return errUnfiltered
	}
	return err
}

// dump makes one dump, on a socket of its own: what is left of a dump that was
// given up would otherwise be taken for the next one's. That costs some 20 µs.
func (k *Netlink) dump(ctx context.Context, family uint8, src netip.Addr, direction uint16, report func(*Conn)) error {
	c, err := k.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	in := k.buffers.Get().(*[readSize]byte)
	defer k.buffers.Put(in)
	request := appendDump(nil, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, 1, family, src, direction)
	var conn Conn // once, because it escapes
	err = exchange(ctx, c, request, in[:], func(m message) (bool, error) {
		if m.kind != msgConnSet {
			return m.kind == unix.NLMSG_ERROR, m.err // the request was refused
		}
		if err := parseConn(m.body, &conn); err != nil {
			return false, err
		}
		report(&conn)
		return false, nil
	})
	if errors.Is(err, unix.ENOBUFS) {
		return ErrInterrupted
	}
	if err != nil && !errors.Is(err, ErrInterrupted) {
		return fmt.Errorf("dump the connection table: %w", err)
	}
	return err
}

// SetMarks implements Table. The kernel applies a message before the send that
// brings it returns, and answers nothing if all is well: only the last one of a
// batch asks for an answer, which says that all answers are there.
func (k *Netlink) SetMarks(ctx context.Context, updates []Update) error {
	for batch := range slices.Chunk(updates, sendBatch) {
		if err := k.setBatch(ctx, batch); err != nil {
			_ = k.Close()
			return fmt.Errorf("mark connections: %w", err)
		}
	}
	return nil
}

func (k *Netlink) setBatch(ctx context.Context, batch []Update) error {
	if k.set == nil {
		c, err := k.dial()
		if err != nil {
			return err
		}
		k.set = c
	}
	k.out = k.out[:0]
	for i := range batch {
		k.seq++
		flags := uint16(unix.NLM_F_REQUEST)
		if i == len(batch)-1 {
			flags |= unix.NLM_F_ACK
		}
		k.out = appendUpdate(k.out, &batch[i], flags, k.seq)
	}
	last, failed := k.seq, error(nil)
	err := exchange(ctx, k.set, k.out, k.in, func(m message) (bool, error) {
		if m.err != nil && !errors.Is(m.err, unix.ENOENT) {
			failed = m.err
		}
		return m.kind == unix.NLMSG_ERROR && m.seq == last, nil
	})
	if err != nil {
		return err
	}
	return failed
}

// message is what the kernel sends.
type message struct {
	kind uint16
	seq  uint32
	body []byte
	err  error // of an NLMSG_ERROR that is not merely an acknowledgement
}

// exchange sends requests and hands each answer to got, until that is done, or
// fails, or the dump is at its end. The error of a dump ends it.
func exchange(ctx context.Context, c *netlink.Conn, out, in []byte, got func(message) (done bool, err error)) (err error) {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		// Once the deadline is or will be set, the socket serves no more.
		if !stop() && err == nil {
			err = context.Cause(ctx)
		}
	}()
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if err := send(raw, out); err != nil {
		return cause(ctx, err)
	}
	interrupted := false
	for {
		n, err := receive(raw, in)
		if err != nil {
			return cause(ctx, err)
		}
		for b := in[:n]; len(b) > 0; {
			var m message
			var flags uint16
			if m, flags, b, err = cutMessage(b); err != nil {
				return err
			}
			interrupted = interrupted || flags&unix.NLM_F_DUMP_INTR != 0
			if m.kind == unix.NLMSG_DONE {
				return doneError(m.err, interrupted)
			}
			if done, err := got(m); done || err != nil {
				return err
			}
		}
	}
}

// doneError is what the end of a dump says.
func doneError(err error, interrupted bool) error {
	if err == nil && interrupted {
		return ErrInterrupted
	}
	return err
}

// cause prefers the reason for which the context ended to what it led to.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// cutMessage takes the first message off b.
func cutMessage(b []byte) (m message, flags uint16, rest []byte, err error) {
	if len(b) < headerLen {
		return m, 0, nil, errMessage
	}
	n := int(binary.NativeEndian.Uint32(b))
	if n < headerLen || n > len(b) {
		return m, 0, nil, errMessage
	}
	m = message{
		kind: binary.NativeEndian.Uint16(b[4:]),
		seq:  binary.NativeEndian.Uint32(b[8:]),
		body: b[headerLen:n],
	}
	if m.kind == unix.NLMSG_ERROR || m.kind == unix.NLMSG_DONE {
		if len(m.body) >= 4 {
			if errno := int32(binary.NativeEndian.Uint32(m.body)); errno < 0 {
				m.err = unix.Errno(-errno)
			}
		}
	}
	return m, binary.NativeEndian.Uint16(b[6:]), b[min(align(n), len(b)):], nil
}
