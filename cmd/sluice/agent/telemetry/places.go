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
// as long as its client wants. So the number of connections is limited: each has a place,
// and there are fewer places than descriptors.
//
// If there is no free place, a new connection displaces another one instead of being
// refused: it could be a probe of the kubelet, and the others could be idle connections of
// a pod. It displaces a connection of the source that has most, and one without a request
// in progress if there is one. Callers on the node have places of their own, which pods
// cannot take.
const (
	nodePlaces   = 64  // of callers on this node, by TCP
	otherPlaces  = 128 // of callers from elsewhere
	sourcePlaces = 16  // of those, of one address
	socketPlaces = 32  // of the unix socket, which only root may open
	fewestPlaces = 2   // of each kind, however few descriptors there are

	// reserve is the number of descriptors that the agent keeps for itself. With four queues
	// it has about 40 open, and runs one command at a time.
	reserve = 128
)

// allowance is the number of connections that a listener may have, by kind of caller.
type allowance struct{ node, others, perSource, socket int }

// allowed divides half of the descriptors beyond the reserve. The other half is for the
// unforeseen.
func allowed(descriptors uint64) allowance {
	const all = nodePlaces + otherPlaces + socketPlaces
	left := (int(min(descriptors, 1<<20)) - reserve) / 2
	part := func(n int) int { return max(fewestPlaces, min(n, n*left/all)) }
	return allowance{node: part(nodePlaces), others: part(otherPlaces), perSource: part(sourcePlaces), socket: part(socketPlaces)}
}

// descriptors is the number of files that this process may have open. At the start, Go
// raises its own limit as far as it may, and gives commands the original one.
func descriptors() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0 // which leaves the fewest places
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

// enter gives a connection a place. The caller closes the connection that is displaced,
// which may be the new one.
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

// victim chooses a connection to close among some: the oldest that is not busy, otherwise
// the oldest, and the newcomer if all others stay.
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
		return // displaced before
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
	// placesOf returns the places for a connection, and its source.
	placesOf func(net.Conn) (*places, netip.Addr)
}

// Accept also closes the connection that is displaced, so that there is never more than one
// connection without a place.
func (l limited) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err // unwrapped: net/http checks whether to try again
		}
		in, source := l.placesOf(conn)
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

// ofTCP separates callers on this node from others: they come from loopback, or from the
// address that they call.
func ofTCP(node, others *places) func(net.Conn) (*places, netip.Addr) {
	return func(c net.Conn) (*places, netip.Addr) {
		from, to := addrOf(c.RemoteAddr()), addrOf(c.LocalAddr())
		if from.IsLoopback() || from == to {
			return node, netip.Addr{} // one source: processes of a node cannot be told apart
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

// placeOf returns the place of a request's connection; an empty one if it has none.
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

// displacedInterval is the time between two checks for displaced connections.
const displacedInterval = time.Minute

func connections(all []*places) (c Connections) {
	for _, p := range all {
		c.Open += p.open()
		c.Displaced += p.displaced.Load()
	}
	return c
}
