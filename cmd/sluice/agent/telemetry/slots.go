package telemetry

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// The agent needs file descriptors to enforce: for manifests, iptables, queues and the
// Kubernetes API. Every pod may connect to its node, and a connection takes a descriptor for
// as long as its client wants. So the number of connections is limited: each takes a slot,
// and there are fewer slots than descriptors.
//
// If no slot is free, the listener accepts the new connection and closes another one: the
// new connection could be a probe of the kubelet, and the others idle connections of a pod.
// slots.enter selects the connection to close. First, it selects the source: the new
// connection's own source if that source now exceeds its share (sourceSlots), otherwise a
// source with the most connections. Of this source, it selects the oldest connection without
// a request in progress, or the oldest connection if all have one. Callers on the node have
// separate slots, which pods cannot take.
const (
	nodeSlots   = 64  // slots for callers on this node, over TCP
	otherSlots  = 128 // slots for callers from other machines and pods
	sourceSlots = 16  // how many of otherSlots one address may take
	socketSlots = 32  // slots for the unix socket, which only root may open
	minSlots    = 2   // lower bound to which limitsFor may reduce each number above

	// reserve is the number of descriptors that the agent keeps for itself. With four queues
	// it has about 40 open, and runs one command at a time.
	reserve = 128
)

// slotLimits is the largest number of connections for each kind of caller.
type slotLimits struct{ node, others, perSource, socket int }

// limitsFor returns the limits for a process that may open the given number of descriptors.
// Slots may take (descriptors - reserve) / 2 of them; the other half is a safety margin. If
// that is less than the sum of nodeSlots, otherSlots and socketSlots, limitsFor reduces
// each limit in proportion, but not below minSlots.
func limitsFor(descriptors uint64) slotLimits {
	const all = nodeSlots + otherSlots + socketSlots
	left := (int(min(descriptors, 1<<20)) - reserve) / 2
	part := func(n int) int { return max(minSlots, min(n, n*left/all)) }
	return slotLimits{node: part(nodeSlots), others: part(otherSlots), perSource: part(sourceSlots), socket: part(socketSlots)}
}

// descriptors returns the number of files that this process may have open. The Go runtime
// raises the soft limit to the hard limit at the start, and restores it for child processes.
func descriptors() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0 // limitsFor(0) returns minSlots for each kind of caller
	}
	return limit.Cur
}

// slots tracks the open connections, and bounds their number in total and per source.
type slots struct {
	limit, perSource int

	mu       sync.Mutex
	taken    []*slotConn        // open connections, oldest first
	bySource map[netip.Addr]int // number of connections by source

	displaced atomic.Uint64
}

func newSlots(limit, perSource int) *slots {
	return &slots{limit: limit, perSource: perSource, bySource: make(map[netip.Addr]int)}
}

// slotConn is a connection that takes a slot until it is closed.
type slotConn struct {
	net.Conn
	in     *slots
	source netip.Addr // the zero Addr for all connections of a unix socket
	busy   bool       // a request is in progress
	pinned bool       // the connection is never displaced
}

// enter gives c a slot, and returns nil if a slot was free for it. Otherwise, enter takes away
// the slot of one connection and returns this connection, which the caller must close. If all
// candidates are pinned, this connection is c itself.
func (p *slots) enter(c *slotConn) (out *slotConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken = append(p.taken, c)
	p.bySource[c.source]++
	switch {
	case p.bySource[c.source] > p.perSource:
		out = p.victim(c, func(o *slotConn) bool { return o.source == c.source })
	case len(p.taken) > p.limit:
		most := 0
		for _, n := range p.bySource {
			most = max(most, n)
		}
		out = p.victim(c, func(o *slotConn) bool { return p.bySource[o.source] == most })
	default:
		return nil
	}
	p.remove(out)
	p.displaced.Add(1)
	return out
}

// victim returns the connection that must give up its slot. It considers the connections for
// which candidate() returns true, except the newcomer and pinned connections. Of these, it
// returns the oldest that is not busy. If all are busy, it returns the oldest. If there are
// none, it returns the newcomer.
func (p *slots) victim(newcomer *slotConn, candidate func(*slotConn) bool) *slotConn {
	var oldest *slotConn
	for _, c := range p.taken {
		if c == newcomer || c.pinned || !candidate(c) {
			continue
		}
		if !c.busy {
			return c
		}
		if oldest == nil {
			oldest = c
		}
	}
	if oldest == nil {
		return newcomer
	}
	return oldest
}

func (p *slots) remove(c *slotConn) {
	i := slices.Index(p.taken, c)
	if i < 0 {
		return // c was displaced, and enter() has freed its slot
	}
	p.taken = slices.Delete(p.taken, i, i+1)
	if p.bySource[c.source]--; p.bySource[c.source] == 0 {
		delete(p.bySource, c.source)
	}
}

func (p *slots) open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.taken)
}

// Close frees the slot and closes the connection.
func (c *slotConn) Close() error {
	c.in.mu.Lock()
	c.in.remove(c)
	c.in.mu.Unlock()
	return c.Conn.Close()
}

func (c *slotConn) set(f func(*slotConn)) {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	f(c)
}

// limited is a listener whose connections take slots.
type limited struct {
	net.Listener
	// slotsOf returns the slots for a connection, and its source.
	slotsOf func(net.Conn) (*slots, netip.Addr)
}

// Accept returns the next connection that gets a slot. If this connection takes the slot of
// another one, Accept closes the other one before it returns. So the listener has at most
// one open connection without a slot.
func (l limited) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err // not wrapped: net/http checks whether the error is temporary
		}
		in, source := l.slotsOf(conn)
		c := &slotConn{Conn: conn, in: in, source: source}
		out := in.enter(c)
		if out != nil {
			_ = out.Conn.Close() // a handler that still uses this connection gets an error
		}
		if out != c {
			return c, nil
		}
	}
}

// tcpSlots returns a function for limited.slotsOf. The function selects the slots in the first
// argument for callers on this node, and the slots in the second for all other callers. Callers
// on this node connect from loopback, or from the address to which they connect.
func tcpSlots(node, others *slots) func(net.Conn) (*slots, netip.Addr) {
	return func(c net.Conn) (*slots, netip.Addr) {
		from, to := addrOf(c.RemoteAddr()), addrOf(c.LocalAddr())
		if from.IsLoopback() || from == to {
			return node, netip.Addr{} // all callers on the node count as one source: they cannot be told apart
		}
		return others, from
	}
}

func addrOf(a net.Addr) netip.Addr {
	if tcp, is := a.(*net.TCPAddr); is {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

func unixSlots(p *slots) func(net.Conn) (*slots, netip.Addr) {
	return func(net.Conn) (*slots, netip.Addr) { return p, netip.Addr{} }
}

type connKey struct{}

// withConn stores the connection in the context of its requests.
func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// slotOf returns the connection of a request. Without one, as in tests, it returns an empty
// slotConn.
func slotOf(ctx context.Context) *slotConn {
	if c, is := ctx.Value(connKey{}).(*slotConn); is {
		return c
	}
	return &slotConn{in: newSlots(0, 0)}
}

// Connections counts the connections of all listeners.
type Connections struct {
	Open      int
	Displaced uint64 // connections closed to make room for others
}

// displacedInterval is the time between two checks of the counter of displaced connections.
const displacedInterval = time.Minute

func connections(all []*slots) (c Connections) {
	for _, p := range all {
		c.Open += p.open()
		c.Displaced += p.displaced.Load()
	}
	return c
}
