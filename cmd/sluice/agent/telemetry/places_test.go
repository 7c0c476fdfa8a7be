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

// entered gives the connections in places names.
type entered struct {
	*places
	names map[*placed]string
}

func (e *entered) enter(source int, name string) (c *placed, out string) {
	c = &placed{in: e.places, source: netip.AddrFrom4([4]byte{10, 0, 0, byte(source)})}
	e.names[c] = name
	if o := e.places.enter(c); o != nil {
		out = e.names[o]
	}
	return c, out
}

// Who displaces whom.
func TestPlaces(t *testing.T) {
	e := &entered{newPlaces(4, 2), map[*placed]string{}}
	step := func(source int, name, want string) *placed {
		t.Helper()
		c, out := e.enter(source, name)
		if out != want {
			t.Errorf("%s displaces %q, want %q", name, out, want)
		}
		return c
	}
	first := step(1, "a1", "")
	first.set(func(c *placed) { c.busy = true })
	step(1, "a2", "")
	step(1, "a3", "a2") // its own share is full, and a1 is busy
	step(2, "b1", "")
	third := step(3, "c1", "")
	step(4, "d1", "a3") // the places are full, and 1 has most
	step(2, "b2", "b1") // with it, 2 has most
	third.set(func(c *placed) { c.stays = true })
	step(5, "e1", "d1") // all have one: the oldest that is neither busy nor stays
	step(6, "f1", "b2")
	if n := e.open(); n != 4 {
		t.Errorf("%d places are taken, want 4", n)
	}
	if n := e.displaced.Load(); n != 5 {
		t.Errorf("%d were displaced, want 5", n)
	}
}

// A source cannot take more than its share from others, however it goes about it.
func TestNoSourceKeepsAnotherOut(t *testing.T) {
	e := &entered{newPlaces(otherPlaces, sourcePlaces), map[*placed]string{}}
	for i := range 10 * otherPlaces {
		c, _ := e.enter(1+i%9, "crowd")
		c.busy = true // the worst of them: requests that never end
	}
	probe, out := e.enter(100, "probe")
	if out != "crowd" {
		t.Errorf("a newcomer displaces %q", out)
	}
	for i := range 10 * otherPlaces {
		if _, out := e.enter(1+i%9, "crowd"); out == "probe" {
			t.Fatal("the only connection of a source was displaced by those of sources with many")
		}
	}
	if !slices.Contains(e.taken, probe) || e.open() > otherPlaces {
		t.Errorf("%d are open", e.open())
	}
}

func TestAllowed(t *testing.T) {
	for _, limit := range []uint64{0, 20, 128, 200, 256, 512, 1024, 1 << 20, 1 << 63} {
		a := allowed(limit)
		sum := a.node + a.others + a.socket
		if min(a.node, a.others, a.socket, a.perSource) < fewestPlaces || a.perSource > a.others {
			t.Errorf("%d descriptors: %+v", limit, a)
		}
		if limit >= 256 && sum+reserve > int(min(limit, 1<<20)) {
			t.Errorf("of %d descriptors, %d are for connections: fewer than %d are left", limit, sum, reserve)
		}
	}
	if a := allowed(1024); a != (allowance{nodePlaces, otherPlaces, sourcePlaces, socketPlaces}) {
		t.Errorf("with 1024 descriptors, which any shell has: %+v", a)
	}
}

// pipes is a listener of connections within the process.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{} }

// answering runs a server on pipes, by the clock of a bubble.
func answering(t *testing.T, handler http.Handler, f func(dial func() net.Conn)) {
	t.Helper()
	synctest.Test(t, func(*testing.T) {
		all := make(pipes)
		server := newServer(handler, slog.New(slog.DiscardHandler))
		done := make(chan error, 1)
		go func() { done <- server.Serve(limited{all, ofSocket(newPlaces(10, 10))}) }()
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

// closesIn is how long it takes until the other end closes a connection that has
// sent a text and then neither sends nor, unless reads, reads.
func closesIn(t *testing.T, c net.Conn, text string, reads bool) time.Duration {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if !reads {
		time.Sleep(time.Hour)
		if _, err := io.ReadFull(c, make([]byte, 1<<20)); err == nil {
			t.Fatalf("after %q: an hour later the rest of the answer comes", text)
		}
		return 0
	}
	_, _ = io.Copy(io.Discard, c) // until it is closed
	return time.Since(began)
}

// Who says nothing, or half of something, or does not listen, keeps no connection.
func TestCallersAreNotWaitedFor(t *testing.T) {
	big := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 1<<21)) })
	answering(t, big, func(dial func() net.Conn) {
		for text, most := range map[string]time.Duration{
			"":                          headerTimeout,
			"GET / HTTP/1.1\r\nHost: x": headerTimeout,
			"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc": writeTimeout + readTimeout,
			"GET / HTTP/1.1\r\nHost: x\r\n\r\n":                            idleTimeout,
		} {
			if took := closesIn(t, dial(), text, true); took > most {
				t.Errorf("after %q it waits for %v, want %v at most", text, took, most)
			}
		}
		closesIn(t, dial(), "GET / HTTP/1.1\r\nHost: x\r\n\r\n", false)
	})
}

// The request of an agent that takes over stays open for as long as that lives; one
// for a long profile, until it is there.
func TestLongRequestsAreWaitedFor(t *testing.T) {
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
			t.Errorf("%q, %v", line, err)
		}
		go func() { _, _ = io.Copy(io.Discard, in) }()
		time.Sleep(day)
	}
	answering(t, lease, func(dial func() net.Conn) {
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
			t.Errorf("the lease lasted %v", d)
		}
	})
	profile := untilDone(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(maxPprofDuration):
			fmt.Fprint(w, "profile")
		case <-r.Context().Done():
		}
	})
	answering(t, profile, func(dial func() net.Conn) {
		c := dial()
		fmt.Fprintf(c, "GET /?seconds=%v HTTP/1.0\r\n\r\n", maxPprofDuration.Seconds())
		if text, _ := io.ReadAll(c); !strings.HasSuffix(string(text), "profile") {
			t.Errorf("a profile of %v: %q", maxPprofDuration, text)
		}
		for _, bad := range []string{"1e9", "-1", "NaN", "x"} {
			c := dial()
			fmt.Fprintf(c, "GET /?seconds=%s HTTP/1.0\r\n\r\n", bad)
			if text, _ := io.ReadAll(c); !strings.Contains(string(text), "400") {
				t.Errorf("seconds=%s: %q", bad, text)
			}
		}
	})
}
