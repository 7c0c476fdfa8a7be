package load_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sluice/bench/load"
)

var loopback = netip.MustParseAddr("127.0.0.1")

// freePorts finds consecutive free ports.
func freePorts(t *testing.T, n int) load.Ports {
	t.Helper()
next:
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		first := l.Addr().(*net.TCPAddr).AddrPort().Port()
		_ = l.Close()
		p := load.Ports{First: first, Count: n}
		if int(first)+n > 65535 {
			continue
		}
		for i := range n {
			a := netip.AddrPortFrom(netip.IPv6Unspecified(), p.Nth(uint64(i)))
			l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(a))
			if err != nil {
				continue next
			}
			_ = l.Close()
			u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(a))
			if err != nil {
				continue next
			}
			_ = u.Close()
		}
		return p
	}
	t.Fatal("no free ports")
	return load.Ports{}
}

func TestClientAndServer(t *testing.T) {
	ports := freePorts(t, 4)
	// The last port is for the stream.
	served := load.Ports{First: ports.First, Count: 3}
	s, err := load.Serve(load.ServerOptions{TCP: []load.Ports{served}, UDP: []load.Ports{served}, Stream: ports.Nth(3)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		// Close must have freed the port.
		l, err := net.Listen("tcp", netip.AddrPortFrom(loopback, ports.First).String())
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
	}()
	ordersIn, orders := io.Pipe()
	answers, answersOut := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- load.ServeOrders(t.Context(), ordersIn, answersOut) }()
	d := load.NewDriver(orders, answers)

	to := load.Target{To: loopback, Ports: served, From: []netip.Addr{loopback, netip.MustParseAddr("127.0.0.2")}}
	for _, o := range []load.Order{{Do: "tcp", Clients: 1}, {Do: "tcp", Clients: 8}, {Do: "udp", Clients: 1}, {Do: "udp", Clients: 8}} {
		o.Target, o.For = to, 100*time.Millisecond
		a, err := d.Do(o)
		if err != nil {
			t.Fatal(err)
		}
		if a.Done == 0 || a.Failed > 0 || a.Took < o.For || a.P50 <= 0 || a.P50 > a.P99 || a.P99 > a.P999 || a.P999 > a.Max {
			t.Errorf("%s with %d clients: %+v", o.Do, o.Clients, a.Outcome)
		}
	}
	to.Ports = load.Ports{First: ports.Nth(3)}
	if a, err := d.Do(load.Order{Do: "stream", Target: to, For: 50 * time.Millisecond}); err != nil || a.Bytes == 0 {
		t.Errorf("stream: %d bytes: %v", a.Bytes, err)
	}
	to.Ports = served
	if a, err := d.Do(load.Order{Do: "probe", Target: to, For: 50 * time.Millisecond}); err != nil || len(a.New) == 0 || len(a.Live) == 0 {
		t.Errorf("probe: %d and %d answers: %v", len(a.New), len(a.Live), err)
	}
	if a, err := d.Do(load.Order{Do: "flood", Ranges: []netip.Prefix{netip.MustParsePrefix("127.77.0.0/16")}, For: 20 * time.Millisecond}); err != nil || a.Done == 0 {
		t.Errorf("flood: %d packets: %v", a.Done, err)
	}
	if _, err := d.Do(load.Order{Do: "dance"}); err == nil || !strings.Contains(err.Error(), "dance") {
		t.Errorf("%v, want that dance is not an order", err)
	}
	_ = orders.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestClosedPort checks that a refused connection counts as failed.
func TestClosedPort(t *testing.T) {
	// The client's address differs from the server's. Otherwise a client whose own port
	// happens to be the closed port would connect to itself (RFC 9293, 3.5: simultaneous
	// open).
	to := load.Target{To: loopback, Ports: freePorts(t, 1), From: []netip.Addr{netip.MustParseAddr("127.0.0.2")}}
	c := new(load.Client)
	for _, what := range []func(context.Context, load.Target, int, time.Duration) (load.Outcome, error){c.Connect, c.Request} {
		out, err := what(t.Context(), to, 2, 20*time.Millisecond)
		if err != nil || out.Done > 0 || out.Failed == 0 {
			t.Errorf("%+v: %v", out, err)
		}
	}
}

func TestEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	to := load.Target{To: loopback, Ports: freePorts(t, 1)}
	if _, err := new(load.Client).Connect(ctx, to, 1, time.Hour); err == nil {
		t.Error("no error")
	}
}

// TestKeysRepeatLate checks that a key repeats only after all combinations of sources and
// ports have been used. Loads that need keys without a remembered verdict depend on this.
func TestKeysRepeatLate(t *testing.T) {
	to := load.Target{To: loopback, Ports: load.Ports{First: 65000, Count: 7}, From: []netip.Addr{loopback, netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.3")}}
	type key struct {
		from netip.Addr
		port uint16
	}
	seen := make(map[key]bool)
	for i := range uint64(21) {
		from, _, port := to.Key(i)
		if port < 65000 || port > 65006 || seen[key{from, port}] {
			t.Fatalf("connection %d is from %s to %d", i, from, port)
		}
		seen[key{from, port}] = true
	}
	if from, _, port := to.Key(21); from != loopback || port != 65000 {
		t.Errorf("after all keys, the next is %s, %d", from, port)
	}
}

// TestPairsRepeatLate checks the order of ends in ranges: both ends are new during the first pass, no
// pair repeats before all pairs have been used, and a few consecutive addresses are of all parts of a
// range.
func TestPairsRepeatLate(t *testing.T) {
	type pair struct{ from, to netip.Addr }
	for _, to := range []load.Target{
		{FromRange: netip.MustParsePrefix("10.9.0.64/27"), ToRange: netip.MustParsePrefix("10.9.1.0/24")},
		{FromRange: netip.MustParsePrefix("fd00:9::/122"), ToRange: netip.MustParsePrefix("fd00:9:0:1::1:0/120")},
	} {
		sources := uint64(1) << (to.FromRange.Addr().BitLen() - to.FromRange.Bits())
		pods := uint64(1) << (to.ToRange.Addr().BitLen() - to.ToRange.Bits())
		pairs, ends := make(map[pair]uint64), make(map[netip.Addr]bool)
		for n := range sources * pods {
			from, pod, _ := to.Key(n)
			if before, is := pairs[pair{from, pod}]; is || !to.FromRange.Contains(from) || !to.ToRange.Contains(pod) {
				t.Fatalf("connections %d and %d are from %s to %s", before, n, from, pod)
			}
			if n < sources && (ends[from] || ends[pod]) {
				t.Fatalf("connection %d is from %s to %s, which both must be new", n, from, pod)
			}
			pairs[pair{from, pod}], ends[from], ends[pod] = n, true, true
		}
	}
	parts := make(map[netip.Prefix]bool)
	to := load.Target{FromRange: netip.MustParsePrefix("198.18.0.0/15"), To: loopback}
	for n := range uint64(128) {
		from, server, _ := to.Key(n)
		if server != loopback {
			t.Fatalf("connection %d is to %s", n, server)
		}
		part, _ := from.Prefix(21)
		parts[part] = true
	}
	if len(parts) != 64 {
		t.Errorf("128 addresses are of %d of 64 parts", len(parts))
	}
}

func TestParsePorts(t *testing.T) {
	for text, want := range map[string]load.Ports{"80": {80, 1}, "20000-20999": {20000, 1000}, "7-7": {}, "9-8": {}, "0": {}, "70000": {}, "80-": {}, "a": {}, "80-90x": {}, "": {}} {
		got, err := load.ParsePorts(text)
		if got != want || (err == nil) != (want.Count > 0) {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
		if err == nil && got.String() != text {
			t.Errorf("%q is written %q", text, got)
		}
	}
}
