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

// Enforcing needs file descriptors: for manifests, iptables, queues, the Kubernetes
// API. Every pod may connect to its node, and a connection takes a descriptor for as
// long as the other end likes. So connections have places, and there are fewer of
// them than descriptors.
//
// A connection that finds no place displaces another one instead of being refused:
// the refused one could be a probe of the kubelet, and the others a pod's that does
// nothing with them. It displaces one of the source that holds most, if possible one
// without a request that is being answered. Callers on the node have places of their
// own, which no pod can take.
const (
	nodePlaces   = 64  // of callers on this node, by TCP
	otherPlaces  = 128 // of callers from elsewhere
	sourcePlaces = 16  // of those, of one address
	socketPlaces = 32  // of the unix socket, which is root's
	fewestPlaces = 2   // of each of them, however few descriptors there are

	// reserve is how many descriptors are the agent's own: with four queues it has
	// some 40 open, and runs one command at a time.
	reserve = 128
)

// allowance is how many connections a listener may have, by who calls.
type allowance struct{ node, others, perSource, socket int }

// allowed divides half of what descriptors leave beside the reserve. The other half
// is for what was not thought of.
func allowed(descriptors uint64) allowance {
	const all = nodePlaces + otherPlaces + socketPlaces
	left := (int(min(descriptors, 1<<20)) - reserve) / 2
	part := func(n int) int { return max(fewestPlaces, min(n, n*left/all)) }
	return allowance{node: part(nodePlaces), others: part(otherPlaces), perSource: part(sourcePlaces), socket: part(socketPlaces)}
}

// descriptors is how many files this process may have open. Go raises its own limit
// to the highest that it may at the start, and gives that of before to commands.
func descriptors() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0 // so that little is given away
	}
	return limit.Cur
}

// places tracks the open connections, and bounds their number in total and per source.
type places struct {
	most, perSource int

	mu    sync.Mutex
	taken []*placed // the oldest first
	of    map[netip.Addr]int

	displaced atomic.Uint64
}

func newPlaces(most, perSource int) *places {
	return &places{most: most, perSource: perSource, of: make(map[netip.Addr]int)}
}

// placed is a connection that has a place until it is closed.
type placed struct {
	net.Conn
	in     *places
	source netip.Addr // the same for all of a unix socket
	busy   bool       // a request is being answered
	stays  bool       // it is never displaced
}

// enter gives a connection a place. What is displaced, which may be the connection
// itself, is to be closed.
func (p *places) enter(c *placed) (out *placed) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken = append(p.taken, c)
	p.of[c.source]++
	switch {
	case p.of[c.source] > p.perSource:
		out = p.victim(c, func(o *placed) bool { return o.source == c.source })
	case len(p.taken) > p.most:
		most := 0
		for _, n := range p.of {
			most = max(most, n)
		}
		out = p.victim(c, func(o *placed) bool { return p.of[o.source] == most })
	default:
		return nil
	}
	p.remove(out)
	p.displaced.Add(1)
	return out
}

// victim is the connection that can best be done without, of those among which it
// is to be chosen: the oldest that is not busy, or else the oldest; the newcomer if
// all of them stay.
func (p *places) victim(newcomer *placed, among func(*placed) bool) *placed {
	var oldest *placed
	for _, c := range p.taken {
		if c == newcomer || c.stays || !among(c) {
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

func (p *places) remove(c *placed) {
	i := slices.Index(p.taken, c)
	if i < 0 {
		return // it was displaced before it was closed
	}
	p.taken = slices.Delete(p.taken, i, i+1)
	if p.of[c.source]--; p.of[c.source] == 0 {
		delete(p.of, c.source)
	}
}

func (p *places) open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.taken)
}

// Close gives the place back.
func (c *placed) Close() error {
	c.in.mu.Lock()
	c.in.remove(c)
	c.in.mu.Unlock()
	return c.Conn.Close()
}

func (c *placed) set(f func(*placed)) {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	f(c)
}

// limited is a listener whose connections have places.
type limited struct {
	net.Listener
	// whose says which places a connection is to have one of, and from which source
	// it comes.
	whose func(net.Conn) (*places, netip.Addr)
}

// Accept also closes what is displaced, so that there never are more connections
// than places, but for the newest.
func (l limited) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err // as it is: net/http looks whether it is worth another try
		}
		in, source := l.whose(conn)
		c := &placed{Conn: conn, in: in, source: source}
		out := in.enter(c)
		if out != nil {
			_ = out.Conn.Close() // its server notices
		}
		if out != c {
			return c, nil
		}
	}
}

// ofTCP tells callers on this node, which come from the address that they call or
// from loopback, from others.
func ofTCP(node, others *places) func(net.Conn) (*places, netip.Addr) {
	return func(c net.Conn) (*places, netip.Addr) {
		from, to := addrOf(c.RemoteAddr()), addrOf(c.LocalAddr())
		if from.IsLoopback() || from == to {
			return node, netip.Addr{} // one source: nothing tells its processes apart
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

func ofSocket(p *places) func(net.Conn) (*places, netip.Addr) {
	return func(net.Conn) (*places, netip.Addr) { return p, netip.Addr{} }
}

type connKey struct{}

// withConn lets a request find its connection.
func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// placeOf is the place of a request's connection; without one, an empty one.
func placeOf(ctx context.Context) *placed {
	if c, is := ctx.Value(connKey{}).(*placed); is {
		return c
	}
	return &placed{in: newPlaces(0, 0)}
}

// Connections are those of all listeners.
type Connections struct {
	Open      int
	Displaced uint64 // closed for another one
}

// lookout is how often it is looked whether connections were displaced.
const lookout = time.Minute

func connections(all []*places) (c Connections) {
	for _, p := range all {
		c.Open += p.open()
		c.Displaced += p.displaced.Load()
	}
	return c
}
