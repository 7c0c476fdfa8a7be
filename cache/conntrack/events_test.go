package conntrack_test

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	timo "github.com/ti-mo/conntrack"

	"sluice/cache/conntrack"
	"sluice/filter"
)

// listening holds the events that listen has read so far.
type listening struct {
	t      *testing.T
	mu     sync.Mutex
	events []conntrack.Event
}

// listen reads events until the test ends.
func listen(t *testing.T, e *conntrack.Events) *listening {
	t.Helper()
	l := &listening{t: t}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- e.Read(ctx, func(event *conntrack.Event) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.events = append(l.events, *event)
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// await returns the first event about the connections with a key. If ended is true, it waits for the event
// of an end, otherwise for the event of a begin.
func (l *listening) await(key filter.Key, ended bool) conntrack.Event {
	l.t.Helper()
	for deadline := time.Now().Add(testTimeout); ; time.Sleep(time.Millisecond) {
		l.mu.Lock()
		known := l.events
		l.mu.Unlock()
		if i := slices.IndexFunc(known, func(e conntrack.Event) bool { return e.Key == key && e.Ended == ended }); i >= 0 {
			return known[i]
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("no event of %v (ended: %t)", key, ended)
		}
	}
}

// sysctl sets a value in the network namespace of the router.
func (n network) sysctl(name, value string) {
	n.tb.Helper()
	if err := n.router.Do(func() error { return os.WriteFile("/proc/sys/net/netfilter/"+name, []byte(value), 0o644) }); err != nil {
		n.tb.Fatal(err)
	}
}

// flush deletes all connections from the table of the router.
func (n network) flush() {
	n.tb.Helper()
	c, err := timo.Dial(&netlink.Config{NetNS: n.router.NetNS()})
	if err == nil {
		err = c.Flush()
		_ = c.Close()
	}
	if err != nil {
		n.tb.Fatal(err)
	}
}

// A connection is reported twice. The event of its begin has the destination before DNAT and the mark that
// the rules have set. The event of its end has the counts of packets and bytes.
func TestEvents(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			l := newLive(t)
			l.sysctl("nf_conntrack_acct", "1")
			l.sysctl("nf_conntrack_timestamp", "1")
			events, err := l.kernel.Events()
			if err != nil {
				t.Fatal(err)
			}
			heard := listen(t, events)
			before := time.Now()
			client, server := l.connectTCP(f.service, f.dst)
			write(t, client, "hello")
			read(t, server)
			key := filter.NewKey(f.src, f.dst, filter.TCP, target)
			began := heard.await(key, false)
			port := netip.MustParseAddrPort(client.LocalAddr().String()).Port()
			if began.SrcPort != port || began.To != f.service || began.Mark&foreign != foreign || began.Malformed || began.MidStream || began.Counted {
				t.Errorf("the begin: %+v", began)
			}
			_ = client.Close()
			_ = server.Close()
			l.flush()
			ended := heard.await(key, true)
			if ended.SrcPort != port || ended.To != f.service || !ended.Counted || ended.Began.Before(before.Add(-time.Minute)) || ended.Began.After(time.Now().Add(time.Minute)) {
				t.Errorf("the end: %+v", ended)
			}
			if ended.Last.Before(ended.Began) || ended.Last.Sub(ended.Began) > time.Since(before) {
				t.Errorf("the last packet: %+v", ended)
			}
			// SYN, ACK and data at least; the header of IPv4 with that of TCP has 40 bytes.
			if s, r := ended.Sent, ended.Received; s.Packets < 3 || s.Bytes < 3*40+5 || r.Packets < 1 || r.Bytes < 40 {
				t.Errorf("the counts: %+v", ended)
			}
			if lost, err := events.Lost(); lost != 0 || err != nil {
				t.Errorf("%d events are lost (%v)", lost, err)
			}
		})
	}
}

// If the sysctls for counts and times are 0, an event has neither.
func TestEventsUncounted(t *testing.T) {
	l := newLive(t)
	l.sysctl("nf_conntrack_acct", "0")
	l.sysctl("nf_conntrack_timestamp", "0")
	events, err := l.kernel.Events()
	if err != nil {
		t.Fatal(err)
	}
	heard := listen(t, events)
	client, _ := l.connectUDP(service, db)
	write(t, client, "hello")
	key := filter.NewKey(web, db, filter.UDP, target)
	heard.await(key, false)
	l.flush()
	if e := heard.await(key, true); e.Counted || !e.Began.IsZero() || e.Sent != (conntrack.Traffic{}) {
		t.Errorf("%+v", e)
	}
}

// Lost counts the events that do not fit into the receive buffer.
func TestEventsLost(t *testing.T) {
	l := newLive(t)
	events, err := l.kernel.Events()
	if err != nil {
		t.Fatal(err)
	}
	if err := events.SetBuffer(4096); err != nil {
		t.Fatal(err)
	}
	c, err := timo.Dial(&netlink.Config{NetNS: l.router.NetNS()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const connections = 50
	for port := range uint16(connections) {
		if err := c.Create(timo.NewFlow(6, 0, web, db, 40000, 1+port, 600, 0)); err != nil {
			t.Fatal(err)
		}
	}
	heard := listen(t, events)
	for deadline := time.Now().Add(testTimeout); ; time.Sleep(time.Millisecond) {
		lost, err := events.Lost()
		if err != nil {
			t.Fatal(err)
		}
		heard.mu.Lock()
		read := len(heard.events)
		heard.mu.Unlock()
		if lost > 0 && read+int(lost) == connections {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d events read and %d lost of %d connections", read, lost, connections)
		}
	}
}
