package telemetry

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// namedSlots gives names to the connections of slots.
type namedSlots struct {
	*slots
	names map[*slotConn]string
}

func (e *namedSlots) enter(source int, name string) (c *slotConn, out string) {
	c = &slotConn{in: e.slots, source: netip.AddrFrom4([4]byte{10, 0, 0, byte(source)})}
	e.names[c] = name
	if o := e.slots.enter(c); o != nil {
		out = e.names[o]
	}
	return c, out
}

// If a source is over its limit or all slots are taken, a new connection displaces a connection
// of the source that has the most: its oldest one that is neither busy nor pinned.
func TestDisplacement(t *testing.T) {
	e := &namedSlots{newSlots(4, 2), map[*slotConn]string{}}
	step := func(source int, name, want string) *slotConn {
		t.Helper()
		c, out := e.enter(source, name)
		if out != want {
			t.Errorf("%s displaces %q, want %q", name, out, want)
		}
		return c
	}
	first := step(1, "a1", "")
	first.set(func(c *slotConn) { c.busy = true })
	step(1, "a2", "")
	step(1, "a3", "a2") // source 1 is over its limit, and a1 is busy
	step(2, "b1", "")
	third := step(3, "c1", "")
	step(4, "d1", "a3") // all slots are taken, and source 1 has the most connections
	step(2, "b2", "b1") // with b2, source 2 has the most connections
	third.set(func(c *slotConn) { c.pinned = true })
	step(5, "e1", "d1") // each source has one connection; a1 is busy and c1 pinned
	step(6, "f1", "b2")
	if n := e.open(); n != 4 {
		t.Errorf("%d slots are taken, want 4", n)
	}
	if n := e.displaced.Load(); n != 5 {
		t.Errorf("%d connections were displaced, want 5", n)
	}
}

// Sources with many connections cannot keep out a source with one connection, even if none of
// their requests ever ends.
func TestManyConnectionsDoNotKeepOthersOut(t *testing.T) {
	e := &namedSlots{newSlots(otherSlots, sourceSlots), map[*slotConn]string{}}
	for i := range 10 * otherSlots {
		c, _ := e.enter(1+i%9, "flood")
		c.busy = true // a request that never ends
	}
	probe, out := e.enter(100, "probe")
	if out != "flood" {
		t.Errorf("the newcomer displaces %q, want one of the flood", out)
	}
	for i := range 10 * otherSlots {
		if _, out := e.enter(1+i%9, "flood"); out == "probe" {
			t.Fatal("the only connection of a source was displaced by a source with many")
		}
	}
	if !slices.Contains(e.taken, probe) || e.open() > otherSlots {
		t.Errorf("%d connections are open, want at most %d with the probe among them", e.open(), otherSlots)
	}
}

func TestSlotLimits(t *testing.T) {
	for _, limit := range []uint64{0, 20, 128, 200, 256, 512, 1024, 1 << 20, 1 << 63} {
		a := limitsFor(limit)
		sum := a.node + a.others + a.socket
		if min(a.node, a.others, a.socket, a.perSource) < minSlots || a.perSource > a.others {
			t.Errorf("%d descriptors: %+v", limit, a)
		}
		if limit >= 256 && sum+reserve > int(min(limit, 1<<20)) {
			t.Errorf("of %d descriptors, connections may take %d: fewer than %d are left", limit, sum, reserve)
		}
	}
	if a := limitsFor(1024); a != (slotLimits{nodeSlots, otherSlots, sourceSlots, socketSlots}) {
		t.Errorf("with 1024 descriptors, the usual limit of a shell: %+v, want the full limits", a)
	}
}

// pipes is a listener whose connections are sent on a channel.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{} }

// withServer runs a server on pipes in a synctest bubble, so that time is simulated.
func withServer(t *testing.T, handler http.Handler, f func(dial func() net.Conn)) {
	t.Helper()
	synctest.Test(t, func(*testing.T) {
		all := make(pipes)
		server := newServer(handler, maxBody, slog.New(slog.DiscardHandler))
		done := make(chan error, 1)
		go func() { done <- server.Serve(limited{all, unixSlots(newSlots(10, 10))}) }()
		var clients []net.Conn
		f(func() net.Conn {
			here, there := net.Pipe()
			clients = append(clients, here)
			all <- there
			return here
		})
		for _, c := range clients {
			_ = c.Close()
		}
		close(all)
		_ = server.Close()
		<-done
	})
}

// timeToClose sends text, reads until the server closes the connection, and returns how long
// that takes. If reads is false, it waits for an hour of simulated time without reading, checks
// that the server has cut off the answer, and returns 0.
func timeToClose(t *testing.T, c net.Conn, text string, reads bool) time.Duration {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if !reads {
		time.Sleep(time.Hour)
		if _, err := io.ReadFull(c, make([]byte, 1<<20)); err == nil {
			t.Fatalf("after %q: the server still sends the answer an hour later", text)
		}
		return 0
	}
	_, _ = io.Copy(io.Discard, c) // returns when the server closes the connection
	return time.Since(began)
}

// The server closes the connection of a caller that sends nothing, sends half of a request, or
// does not read the answer.
func TestSlowCallersAreDisconnected(t *testing.T) {
	big := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 1<<21)) })
	withServer(t, big, func(dial func() net.Conn) {
		for text, most := range map[string]time.Duration{
			"":                          headerTimeout,
			"GET / HTTP/1.1\r\nHost: x": headerTimeout,
			"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc": writeTimeout + readTimeout,
			"GET / HTTP/1.1\r\nHost: x\r\n\r\n":                            idleTimeout,
		} {
			if took := timeToClose(t, dial(), text, true); took > most {
				t.Errorf("after %q the server waits for %v, want at most %v", text, took, most)
			}
		}
		timeToClose(t, dial(), "GET / HTTP/1.1\r\nHost: x\r\n\r\n", false)
	})
}

// The request of an agent that takes over stays open for as long as that agent lives. The
// request for a long profile stays open until the profile is complete.
func TestLongRequestsStayOpen(t *testing.T) {
	var ended chan time.Duration
	lease := socketHandler(Options{HandOver: func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		ended <- time.Since(began)
	}}, nil)
	const day = 24 * time.Hour
	keep := func(c net.Conn) {
		if _, err := io.WriteString(c, "POST /handover HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"); err != nil {
			t.Error(err)
		}
		in := bufio.NewReader(c)
		if line, err := in.ReadString('\n'); err != nil || !strings.Contains(line, "200") {
			t.Errorf("the answer begins with %q, %v; want status 200", line, err)
		}
		go func() { _, _ = io.Copy(io.Discard, in) }()
		time.Sleep(day)
	}
	withServer(t, lease, func(dial func() net.Conn) {
		ended = make(chan time.Duration, 1)
		c := dial()
		keep(c)
		select {
		case d := <-ended:
			t.Errorf("the lease ended after %v", d)
		default:
		}
		_ = c.Close()
		if d := <-ended; d < day {
			t.Errorf("the lease lasted %v, want at least %v", d, day)
		}
	})
	profile := untilDone(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(maxPprofDuration):
			fmt.Fprint(w, "profile")
		case <-r.Context().Done():
		}
	})
	withServer(t, profile, func(dial func() net.Conn) {
		c := dial()
		fmt.Fprintf(c, "GET /?seconds=%v HTTP/1.0\r\n\r\n", maxPprofDuration.Seconds())
		if text, _ := io.ReadAll(c); !strings.HasSuffix(string(text), "profile") {
			t.Errorf("a profile of %v is incomplete: %q", maxPprofDuration, text)
		}
		for _, bad := range []string{"1e9", "-1", "NaN", "x"} {
			c := dial()
			fmt.Fprintf(c, "GET /?seconds=%s HTTP/1.0\r\n\r\n", bad)
			if text, _ := io.ReadAll(c); !strings.Contains(string(text), "400") {
				t.Errorf("seconds=%s: %q, want status 400", bad, text)
			}
		}
	})
}
