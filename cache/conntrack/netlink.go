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
	// readSize exceeds the size of a dump's datagrams, 32 KiB.
	readSize = 64 << 10
	// sendBatch bounds the updates in one send. If all their entries are gone, each update
	// fails, and all the answers must fit into the socket's receive buffer. An answer takes
	// about 900 bytes there, so 128 answers take 113 KiB of the usual 200 KiB.
	sendBatch = 128
	// maxFiltered bounds the addresses for which Dump lets the kernel select the connections.
	// For more addresses, Dump lets the kernel report all connections. A selection takes two
	// walks through the kernel's whole table for each address. Reporting all 50,000 connections
	// of a table takes about as long as twenty walks (see the benchmarks).
	maxFiltered = 4
	// minFiltered is the least number of connections in the table for which Dump lets the
	// kernel select. In a smaller table, reporting all connections is faster: each walk of a
	// selection visits every bucket of the kernel's hash table, even the empty ones, which
	// takes some milliseconds if the table has many buckets.
	minFiltered = 4096
)

// Netlink is the kernel's table of one network namespace, accessed through ctnetlink.
//
// The sockets are mdlayher/netlink's. The messages are encoded and decoded here, because
// only a few of the hundred values of an entry are needed.
type Netlink struct {
	netNS      int
	filterFrom int
	buffers    sync.Pool // buffers of readSize bytes, for dumps

	// These belong to SetMarks. Dump does not use them, because its report function may call
	// SetMarks.
	set     *netlink.Conn // connection to the kernel; nil after an error, until SetMarks opens a new one
	seq     uint32
	in, out []byte

	// unfiltered makes every dump report all connections. It is set by Options.NoFilter, and
	// when the kernel has refused or ignored a filter.
	unfiltered atomic.Bool
}

// Options configure Open.
type Options struct {
	// NetNS is a file descriptor of the network namespace, which must stay open until
	// Close; 0 means the namespace of the thread that calls a method.
	NetNS int
	// NoFilter makes every dump report all connections, as on a kernel that cannot
	// filter.
	NoFilter bool
	// FilterFrom replaces minFiltered: if the table has fewer connections, every dump
	// reports all of them; 0 means minFiltered.
	FilterFrom int
}

// Open opens the table. It needs CAP_NET_ADMIN, and CAP_SYS_ADMIN for the namespace of
// another process.
func Open(o Options) (*Netlink, error) {
	k := &Netlink{netNS: o.NetNS, filterFrom: cmp.Or(o.FilterFrom, minFiltered), in: make([]byte, readSize)}
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
	// Without this option, each error contains the whole request. Kernels before 4.3 lack
	// the option.
	_ = c.SetOption(netlink.CapAcknowledge, true)
	return c, nil
}

// Dump implements Table. For a few addresses in a large table it lets the kernel select
// the connections. Otherwise, or if the kernel cannot select, it reports all connections.
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

// count returns the number of connections. If the kernel does not report it, as before 5.9,
// count returns math.MaxInt.
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

// errUnfiltered means that the kernel refuses a filter, or reports connections that it
// should have left out.
var errUnfiltered = errors.New("kernel does not filter the connection table")

// dumpAmong reports the connections from and to the given addresses. It dumps those from the
// IPv4 addresses and those to the IPv4 addresses concurrently: on two CPUs, this halves the time
// of the walks through the kernel's table. It reports a connection between two of these
// addresses once.
//
// If any of the addresses is IPv6, dumpAmong makes one more dump, of all IPv6 connections. It
// cannot let the kernel select these, because the kernel's comparison of IPv6 addresses is
// inverted (ctnetlink_filter_match_tuple, at least 5.8 to 6.18): the filter leaves out exactly
// the requested connections. If the table has no other connections, the answer is empty, and
// cannot be told from that of an empty table.
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

// dumpOf makes one dump for each IPv4 address in the list. It requests the connections whose
// tuple of the given direction, original or reply, has that address as its source. report()
// returns false if a connection does not have this source; the kernel has then ignored the
// filter, and dumpOf returns errUnfiltered.
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

// filterError returns errUnfiltered if the kernel refuses a filter (err), or if it reports
// connections that it should have left out (strays). Otherwise, it returns err.
func filterError(err error, strays bool) error {
	if strays || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return errUnfiltered
	}
	return err
}

// dump makes one dump, on a socket of its own. That costs some 20 µs, but on a shared
// socket the rest of an aborted dump would be taken for part of the next one.
func (k *Netlink) dump(ctx context.Context, family uint8, src netip.Addr, direction uint16, report func(*Conn)) error {
	c, err := k.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	in := k.buffers.Get().(*[readSize]byte)
	defer k.buffers.Put(in)
	request := appendDump(nil, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, 1, family, src, direction)
	var conn Conn // reused for all entries, because it escapes to the heap
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

// SetMarks implements Table. The kernel applies a message before the send returns, and
// answers only a message that fails. The last message of a batch requests an
// acknowledgement, which comes after all other answers.
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

// message is a message from the kernel.
type message struct {
	kind uint16
	seq  uint32
	body []byte
	err  error // the error in an NLMSG_ERROR that is not an acknowledgement
}

// exchange sends requests, and calls got() with each answer, until got() returns true or an
// error, or the dump ends.
func exchange(ctx context.Context, c *netlink.Conn, out, in []byte, got func(message) (done bool, err error)) (err error) {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		// stop() returns false if ctx has ended: the function above has set the deadline of the
		// socket, or is about to. The socket is unusable after that.
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

// doneError returns the error of a dump that has ended.
func doneError(err error, interrupted bool) error {
	if err == nil && interrupted {
		return ErrInterrupted
	}
	return err
}

// cause returns the cause of ctx if ctx has ended, and otherwise err.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// cutMessage splits the first message off b.
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
