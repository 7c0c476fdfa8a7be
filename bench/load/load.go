// Package load generates traffic and serves it: new TCP connections, UDP requests, one long
// stream, a flood, and datagrams that show when a change of policy takes effect.
//
// It uses system calls directly, with one thread and epoll on each side. The cost of the
// benchmark's own client is added to every contender and hides the differences between them:
// net.Dial takes about twice the CPU time of a connection without any agent.
//
// A connection is measured from connect to the answer of the server's kernel, because an
// agent on the path can delay only this part. The client then closes the connection by a reset,
// so that its port can be used again at once instead of after a minute in TIME_WAIT.
package load

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Ports is a range of port numbers.
type Ports struct {
	First uint16 `json:"first"`
	Count int    `json:"count"` // 0 means 1
}

// Nth returns the nth port, modulo the count.
func (p Ports) Nth(n uint64) uint16 { return p.First + uint16(n%uint64(max(1, p.Count))) }

// Target describes the two ends of connections. Consecutive connections use one source after
// the other. When all sources have been used, the next port follows. So the key of a flow
// (source, destination, port) repeats only after sources × ports connections.
//
// Sources and destinations may also be ranges of addresses, which can be larger than a list. Then
// source and destination advance together, and after each pass over the sources the destinations
// are shifted by one. So both ends are new during the first pass, and a pair of ends repeats only
// after sources × destinations connections.
type Target struct {
	To        netip.Addr   `json:"to"`
	ToRange   netip.Prefix `json:"to_range,omitzero"` // used instead of To if it is valid
	Ports     Ports        `json:"ports"`
	From      []netip.Addr `json:"from,omitempty"`      // addresses of this host; if empty, the kernel chooses one
	FromRange netip.Prefix `json:"from_range,omitzero"` // used instead of From if it is valid; this host has all of its addresses
}

// Key returns the source, the destination and the port of the nth connection. Without sources, the
// first result is the zero Addr.
func (t Target) Key(n uint64) (from, to netip.Addr, port uint16) {
	pass := n
	switch {
	case t.FromRange.IsValid():
		from, pass = scattered(t.FromRange, n), n>>hostBits(t.FromRange)
	case len(t.From) > 0:
		sources := uint64(len(t.From))
		from, pass = t.From[n%sources], n/sources
	}
	if to = t.To; t.ToRange.IsValid() {
		to = scattered(t.ToRange, n+pass)
	}
	return from, to, t.Ports.Nth(pass)
}

// hostBits returns the number of bits in which the addresses of a range differ.
func hostBits(p netip.Prefix) int { return p.Addr().BitLen() - p.Bits() }

// scattered returns the nth address of a range, modulo the size of the range, in an order in which
// consecutive addresses are far apart, so that even the first few are spread over the whole range. The
// range has less than 2^32 addresses.
func scattered(p netip.Prefix, n uint64) netip.Addr {
	// The step is 2^32 divided by the golden ratio: multiples of this ratio are spread most evenly. It
	// is odd, so that each address appears once. The shift does the same for the range as for 2^32.
	const step = 2654435769
	bits := hostBits(p)
	at := n * (step>>(32-bits) | 1) & (1<<bits - 1)
	b := p.Masked().Addr().As16()
	low := b[12:]
	binary.BigEndian.PutUint32(low, binary.BigEndian.Uint32(low)|uint32(at))
	if p.Addr().Is4() {
		return netip.AddrFrom16(b).Unmap()
	}
	return netip.AddrFrom16(b)
}

// Latency is the distribution of the durations of connections or requests.
type Latency struct {
	P50  Micros `json:"p50"`
	P99  Micros `json:"p99"`
	P999 Micros `json:"p99.9"`
	Max  Micros `json:"max"`
}

// Micros is a time in microseconds.
type Micros float64

// Outcome is the result of a client.
type Outcome struct {
	Done   uint64        `json:"done"`   // answered connections or requests
	InTime uint64        `json:"intime"` // the part of Done that was answered before the clients stopped beginning new ones
	Failed uint64        `json:"failed"` // unanswered or refused connections or requests
	Late   uint64        `json:"late"`   // the part of Done that took lateAfter or longer, for TCP because a SYN was retransmitted
	Took   time.Duration `json:"took"`
	Latency
	Bytes uint64 `json:"bytes,omitempty"` // sent bytes of a stream
}

// Rate returns the number of answers per second.
func (o Outcome) Rate() float64 { return float64(o.InTime) / o.Took.Seconds() }

// lateAfter is the time after which TCP retransmits a SYN, less a margin for the clock.
const lateAfter = 950 * time.Millisecond

// connectTimeout bounds the time of a connection. It is long enough for TCP to send the SYN
// three times. requestTimeout bounds the time of a UDP request. It is shorter, because
// datagrams are not retransmitted.
const (
	connectTimeout = 4 * time.Second
	requestTimeout = time.Second
)

// summarize returns the latency of connections, and the number of those that took lateAfter or
// longer. It sorts its argument.
func summarize(took []time.Duration) (l Latency, late uint64) {
	if len(took) == 0 {
		return l, 0
	}
	slices.Sort(took)
	at := func(q float64) Micros {
		return Micros(float64(took[min(len(took)-1, int(q*float64(len(took))))].Nanoseconds()) / 1000)
	}
	for i := len(took) - 1; i >= 0 && took[i] >= lateAfter; i-- {
		late++
	}
	return Latency{P50: at(0.5), P99: at(0.99), P999: at(0.999), Max: at(1)}, late
}

// sockaddr returns an address in the kernel's form.
func sockaddr(a netip.Addr, port uint16) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Port: int(port), Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Port: int(port), Addr: a.As16()}
}

func domain(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// open opens a non-blocking socket. If the source address is valid, open binds the socket to
// it, and makes the kernel choose the source port at connect instead of at bind. At bind, the
// kernel would choose a port that no other socket has, and the ports would run out. At connect,
// only the 4-tuple must be unique.
func open(kind int, from, to netip.Addr) (fd int, err error) {
	fd, err = unix.Socket(domain(to), kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open a socket: %w", err)
	}
	if !from.IsValid() {
		return fd, nil
	}
	err = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	if err == nil {
		err = unix.Bind(fd, sockaddr(from, 0))
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("bind to %s: %w", from, err)
	}
	return fd, nil
}

// ParsePorts reads "8080" or "20000-20999".
func ParsePorts(text string) (p Ports, err error) {
	var last uint16
	if n, _ := fmt.Sscanf(text, "%d-%d", &p.First, &last); n == 2 && last >= p.First && p.First > 0 {
		p.Count = int(last) - int(p.First) + 1
		if p.String() == text {
			return p, nil
		}
	}
	p = Ports{Count: 1}
	if err := json.Unmarshal([]byte(text), &p.First); err != nil || p.First == 0 {
		return Ports{}, fmt.Errorf("ports %q: give a number or a range, such as 8080 or 20000-20999", text)
	}
	return p, nil
}

// String returns the range in the form that ParsePorts reads.
func (p Ports) String() string {
	if p.Count <= 1 {
		return fmt.Sprint(p.First)
	}
	return fmt.Sprintf("%d-%d", p.First, int(p.First)+p.Count-1)
}
