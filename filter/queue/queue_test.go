package queue_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sluice/bench/testbed/lab"
	"sluice/filter"
	"sluice/filter/event"
	"sluice/filter/queue"
)

const (
	patience = 2 * time.Minute
	mark     = 0x10
	first    = 300
)

// judge is an Evaluator that a test writes as a function.
type judge struct {
	decide   func(data []byte) filter.Action
	asked    atomic.Int64
	answered atomic.Int64
	givenUp  atomic.Int64
	spread   bool // what waits waits for an address of its own
}

// awaited is whom packets wait for that are held.
var awaited = netip.MustParseAddr("10.77.0.99")

func (j *judge) Evaluate(data []byte) (filter.Action, netip.Addr) {
	n := j.asked.Add(1)
	if j.spread {
		return j.decide(data), netip.AddrFrom4([4]byte{10, 78, byte(n >> 8), byte(n)})
	}
	return j.decide(data), awaited
}

func (j *judge) Expire([]byte) filter.Action {
	j.givenUp.Add(1)
	return filter.Deny
}

func (j *judge) Enter() {}

func (j *judge) Exit() { j.answered.Add(1) }

// buffer is a log that may be read while it is written.
type buffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

// rig is a node whose queues are read, between a client and a server.
type rig struct {
	*testing.T
	node           *lab.Node
	client, server *lab.Host
	log            buffer
	count          int
	decide         func([]byte) filter.Action
	spread         bool     // see judge
	judges         []*judge // two for each queue: of those that arrive, and of those that wait
}

// newRig sends what goes to the server to the queues, as the rules of an agent do.
func newRig(t *testing.T, count int, decide func(data []byte) filter.Action) *rig {
	l := lab.ForTest(t, lab.Options{})
	r := &rig{T: t, node: l.Nodes[0]}
	for name, host := range map[string]**lab.Host{"client": &r.client, "server": &r.server} {
		h, err := l.AddPod(name)
		if err != nil {
			t.Fatal(err)
		}
		*host = h
	}
	for _, network := range []string{"tcp", "udp"} {
		if err := r.server.Serve(network, 80); err != nil {
			t.Fatal(err)
		}
	}
	numbers := []string{"--queue-num", fmt.Sprint(first)}
	if count > 1 {
		numbers = []string{"--queue-balance", fmt.Sprintf("%d:%d", first, first+count-1)}
	}
	for i, iptables := range []string{"iptables", "ip6tables"} {
		to := r.server.Addrs()[i].String()
		for _, rule := range [][]string{
			{"-m", "mark", "--mark", fmt.Sprintf("%#x/%#x", mark, mark), "-j", "ACCEPT"},
			append([]string{"-d", to, "-m", "conntrack", "--ctstate", "NEW", "-j", "NFQUEUE"}, numbers...),
		} {
			if err := r.node.Run(iptables, append([]string{"-w", "-t", "mangle", "-A", "POSTROUTING"}, rule...)...); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.decide, r.count = decide, count
	return r
}

// run reads the queues until the test ends, or stop is called.
func (r *rig) run(opts queue.Options) (q *queue.Queues, stop func() error) {
	r.Helper()
	q = r.queues(opts)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- q.Run(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	r.Cleanup(func() { _ = stop() })
	select {
	case <-q.Ready():
	case err := <-ended:
		r.Fatalf("the queues did not start: %v", err)
	case <-time.After(patience):
		r.Fatal("the queues did not start")
	}
	return q, stop
}

func (r *rig) queues(opts queue.Options) *queue.Queues {
	r.Helper()
	opts.First, opts.Count, opts.Mark, opts.NetNS = first, r.count, mark, r.node.NetNS()
	q, err := queue.New(opts, func() queue.Evaluator {
		j := &judge{decide: r.decide, spread: r.spread}
		r.judges = append(r.judges, j)
		return j
	}, slog.New(slog.NewTextHandler(&r.log, nil)))
	if err != nil {
		r.Fatal(err)
	}
	return q
}

// reaches reports whether the client reaches the server, for each address.
func (r *rig) reaches(network string, timeout time.Duration) (reached int) {
	r.Helper()
	for _, a := range r.server.Addrs() {
		if res := r.client.Connect(r.Context(), network, netip.AddrPortFrom(a, 80), timeout); res.Outcome == lab.Reached {
			reached++
		}
	}
	return reached
}

// await waits until f is true.
func (r *rig) await(what string, f func() bool) {
	r.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			r.Fatalf("%s: not within %v\n%s", what, patience, r.log.String())
		}
	}
}

func TestAnswers(t *testing.T) {
	var deny atomic.Bool
	var bad atomic.Value
	r := newRig(t, 2, func(data []byte) filter.Action {
		if v := data[0] >> 4; v != 4 && v != 6 {
			bad.Store(bytes.Clone(data))
		}
		if deny.Load() {
			return filter.Deny
		}
		return filter.Allow
	})
	q, stop := r.run(queue.Options{})
	if n := r.reaches("tcp", patience) + r.reaches("udp", patience); n != 4 {
		t.Errorf("%d of 4 ways are open", n)
	}
	// IPv6 finds its neighbours without a connection, and so through the queue.
	if s := q.Stats(); s.Allowed < 4 || s.Denied != 0 {
		t.Errorf("%+v, want 4 allowed or more", s)
	}
	deny.Store(true)
	if n := r.reaches("tcp", 200*time.Millisecond) + r.reaches("udp", 200*time.Millisecond); n != 0 {
		t.Errorf("%d of 4 ways are open, though all is denied", n)
	}
	r.await("4 packets are denied", func() bool { return q.Stats().Denied >= 4 })
	if s := q.Stats(); s.Stale+s.Panics+s.Restarts+s.Dropped != 0 {
		t.Errorf("%+v, want denied packets and nothing else", s)
	}
	if data := bad.Load(); data != nil {
		t.Errorf("a packet begins with % x", data)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	for i, j := range r.judges {
		if j.asked.Load() > 0 && j.answered.Load() == 0 {
			t.Errorf("judge %d was never told that its answers are carried out", i)
		}
	}
}

// A judge that fails about a packet denies that packet and no other.
func TestJudgeThatPanics(t *testing.T) {
	var panics atomic.Bool
	panics.Store(true)
	r := newRig(t, 1, func([]byte) filter.Action {
		if panics.Load() {
			panic("on purpose")
		}
		return filter.Allow
	})
	q, _ := r.run(queue.Options{})
	if n := r.reaches("udp", 100*time.Millisecond); n != 0 {
		t.Errorf("%d packets passed that could not be judged", n)
	}
	r.await("a packet could not be judged", func() bool { return q.Stats().Panics > 0 })
	panics.Store(false)
	if n := r.reaches("udp", patience); n != 2 {
		t.Error("nothing passes after a judge has failed")
	}
	if s := q.Stats(); s.Panics == 0 || s.Restarts != 0 {
		t.Errorf("%+v", s)
	}
	if !strings.Contains(r.log.String(), "on purpose") {
		t.Errorf("the log does not say so: %s", r.log.String())
	}
}

// While a burst waits for its answers, each packet gets its own.
func TestBurst(t *testing.T) {
	const packets = 120
	begin := make(chan struct{})
	var once sync.Once
	r := newRig(t, 1, func(data []byte) filter.Action {
		once.Do(func() { <-begin }) // until all wait in the queue
		if bytes.Contains(data, []byte("odd")) {
			return filter.Deny
		}
		return filter.Allow
	})
	q, _ := r.run(queue.Options{CopyRange: 512})
	heard, err := r.server.Sniff()
	if err != nil {
		t.Fatal(err)
	}
	for i := range packets {
		conn, err := r.client.DialUDP(netip.AddrPortFrom(r.server.IPv4, 7))
		if err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf("even %d.", i)
		if i%2 == 1 {
			text = fmt.Sprintf("odd %d.", i)
		}
		if _, err := conn.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		defer conn.Close() // so that no two have one port, and are one connection
	}
	r.await("all packets in the queue", func() bool { n, err := q.Waiting(); return err == nil && n >= packets })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	short, stop := context.WithTimeout(ctx, 10*time.Millisecond)
	defer stop()
	if err := q.Drain(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("drained with packets in the queue: %v", err)
	}
	close(begin)
	if err := q.Drain(ctx); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < packets; i += 2 {
		want := []byte(fmt.Sprintf("even %d.", i))
		p, err := heard.Await(ctx, func(p []byte) bool { return bytes.Contains(p, []byte("even")) || bytes.Contains(p, []byte("odd")) })
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(p, want) {
			t.Fatalf("heard %q, want %q", p[28:], want)
		}
	}
	if s := q.Stats(); s.Allowed != packets/2 || s.Denied != packets/2 || s.Stale != 0 {
		t.Errorf("%+v, want %d allowed and as many denied", s, packets/2)
	}
	if j := r.judges[0]; j.answered.Load() >= j.asked.Load() {
		t.Errorf("%d sends for %d packets: they were not answered in bursts", j.answered.Load(), j.asked.Load())
	}
}

// What does not fit into a queue is dropped by the kernel, counted and reported.
func TestOverflow(t *testing.T) {
	begin := make(chan struct{})
	r := newRig(t, 1, func([]byte) filter.Action {
		<-begin
		return filter.Allow
	})
	q, _ := r.run(queue.Options{MaxLen: 10})
	for range 200 {
		conn, err := r.client.DialUDP(netip.AddrPortFrom(r.server.IPv4, 7))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
	}
	r.await("a count of what was dropped", func() bool { return q.Stats().Dropped > 0 })
	close(begin)
	if !strings.Contains(r.log.String(), event.PacketsDropped.Attr().String()) {
		t.Errorf("the log does not say so: %s", r.log.String())
	}
}

// The crowd's queue is read like the others, and what it loses counts apart.
func TestCrowd(t *testing.T) {
	begin := make(chan struct{})
	r := newRig(t, 1, func(data []byte) filter.Action {
		if bytes.Contains(data, []byte("crowd")) {
			<-begin
		}
		return filter.Allow
	})
	for i, iptables := range []string{"iptables", "ip6tables"} {
		if err := r.node.Run(iptables, "-w", "-t", "mangle", "-I", "POSTROUTING", "2", "-d", r.server.Addrs()[i].String(), "-p", "udp", "--dport", "9",
			"-m", "conntrack", "--ctstate", "NEW", "-j", "NFQUEUE", "--queue-num", fmt.Sprint(first+1)); err != nil {
			t.Fatal(err)
		}
	}
	const room = 1000
	q, _ := r.run(queue.Options{Overflow: true, MaxLen: room})
	for range 2 * room {
		conn, err := r.client.DialUDP(netip.AddrPortFrom(r.server.IPv4, 9))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("crowd")); err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
	}
	r.await("a count of what the crowd lost", func() bool { return q.Stats().OverflowDropped > 0 })
	if n := r.reaches("udp", patience); n != 2 {
		t.Errorf("%d of 2 ways are open beside a crowd whose judge is at work", n)
	}
	if s := q.Stats(); s.Overflow != 0 || s.Allowed != 2 || s.Dropped != 0 {
		t.Errorf("%+v, want 2 allowed, none of them of the crowd", s)
	}
	if n, err := q.Waiting(); err != nil || n != room {
		t.Errorf("%d wait (%v), want %d", n, err, room)
	}
	close(begin)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := q.Drain(ctx); err != nil {
		t.Fatal(err)
	}
	r.await("all are answered", func() bool { return q.Stats().Overflow == room })
	if s := q.Stats(); s.Allowed != room+2 || s.Stale+s.Restarts != 0 {
		t.Errorf("%+v, want %d allowed", s, room+2)
	}
}

// With FailOpen, what does not fit passes.
func TestOverflowPasses(t *testing.T) {
	begin := make(chan struct{})
	r := newRig(t, 1, func([]byte) filter.Action {
		<-begin
		return filter.Deny
	})
	q, _ := r.run(queue.Options{MaxLen: 1, FailOpen: true})
	heard, err := r.server.Sniff()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for i := range 300 {
		conn, err := r.client.DialUDP(netip.AddrPortFrom(r.server.IPv4, 7))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(conn, "passes %d", i); err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
	}
	if _, err := heard.Await(ctx, func(p []byte) bool { return bytes.Contains(p, []byte("passes")) }); err != nil {
		t.Error(err)
	}
	close(begin)
	if err := q.Drain(ctx); err != nil {
		t.Error(err)
	}
}

// With FailOpen, it is told when packets may have passed a full queue, which the
// kernel does not count: after the last of them.
func TestOverflowIsTold(t *testing.T) {
	for _, c := range []struct {
		name          string
		packets       int
		opts          queue.Options
		full, passing bool
	}{
		{"full", 1000, queue.Options{MaxLen: 500, FailOpen: true}, true, true},
		{"not nearly full", 300, queue.Options{MaxLen: 500, FailOpen: true}, false, true},
		{"full, and packets are dropped", 1000, queue.Options{MaxLen: 500}, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			begin := make(chan struct{})
			var asked, told atomic.Int64
			r := newRig(t, 1, func([]byte) filter.Action {
				<-begin
				asked.Add(1)
				return filter.Deny
			})
			c.opts.OnGap = func() { told.Add(1) }
			q, _ := r.run(c.opts)
			for range c.packets {
				conn, err := r.client.DialUDP(netip.AddrPortFrom(r.server.IPv4, 7))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := conn.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
				_ = conn.Close()
			}
			want := int64(min(c.packets, int(c.opts.MaxLen)))
			r.await("the packets wait", func() bool {
				n, err := q.Waiting()
				return err == nil && int64(n) == want
			})
			if told.Load() > 0 {
				t.Error("told before the packets were read")
			}
			close(begin)
			r.await("all are answered", func() bool { return asked.Load() == want })
			wantTold := uint64(0)
			if c.full && c.passing {
				wantTold = 1
				r.await("it is told", func() bool { return told.Load() > 0 })
			}
			if n := q.Stats().Full; n != wantTold {
				t.Errorf("%d overflows, want %d", n, wantTold)
			}
			if wantTold == 0 && told.Load() > 0 {
				t.Errorf("told %d times", told.Load())
			}
		})
	}
}

// A queue that another process reads cannot be opened, and the error says what to
// do.
func TestQueueIsTaken(t *testing.T) {
	r := newRig(t, 1, func([]byte) filter.Action { return filter.Allow })
	bound := func() bool {
		b, err := queue.Bound(r.node.NetNS(), first, 1)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if bound() {
		t.Error("a queue counts as read before it is")
	}
	r.run(queue.Options{})
	if !bound() {
		t.Error("a queue that is read does not count as read")
	}
	err := r.queues(queue.Options{}).Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "--queue-first") {
		t.Errorf("%v, want the hint", err)
	}
}

// A queue is bound before it is configured; packets that come in between are
// answered too. Connections open all the time while the queues come and go.
func TestStartUnderLoad(t *testing.T) {
	r := newRig(t, 2, func([]byte) filter.Action { return filter.Allow })
	var stop atomic.Bool
	var sent atomic.Int64
	var wait sync.WaitGroup
	defer func() { stop.Store(true); wait.Wait() }()
	for range 4 {
		wait.Go(func() {
			for !stop.Load() {
				for _, a := range r.server.Addrs() {
					conn, err := r.client.DialUDP(netip.AddrPortFrom(a, 7))
					if err != nil {
						t.Error(err)
						return
					}
					if _, err := conn.Write([]byte("x")); err == nil {
						sent.Add(1)
					}
					_ = conn.Close()
				}
			}
		})
	}
	for range 15 {
		q, end := r.run(queue.Options{})
		before := sent.Load()
		r.await("more packets", func() bool { return sent.Load() > before+100 })
		r.await("an answer", func() bool { return q.Stats().Allowed > 0 })
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if s := q.Stats(); s.Restarts+s.Panics != 0 {
			t.Fatalf("%+v: a start under load failed\n%s", s, r.log.String())
		}
	}
}

// sends has the client send a datagram with the text from a port of its own.
func (r *rig) sends(text string) {
	r.Helper()
	conn, err := r.client.DialUDP(netip.AddrPortFrom(r.server.IPv4, 7))
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { _ = conn.Close() })
	if _, err := conn.Write([]byte(text)); err != nil {
		r.Fatal(err)
	}
}

// hears returns the next datagram that the server hears with one of the texts.
func (r *rig) hears(s *lab.Sniffer, texts ...string) string {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	found := ""
	if _, err := s.Await(ctx, func(p []byte) bool {
		for _, text := range texts {
			if bytes.Contains(p, []byte(text)) {
				found = text
			}
		}
		return found != ""
	}); err != nil {
		r.Fatal(err)
	}
	return found
}

// A packet that has to wait is answered when more is known; others of its queue
// pass it meanwhile.
func TestHold(t *testing.T) {
	var known atomic.Bool
	r := newRig(t, 1, func(data []byte) filter.Action {
		if bytes.Contains(data, []byte("late")) && !known.Load() {
			return filter.Hold
		}
		return filter.Allow
	})
	q, stop := r.run(queue.Options{Hold: time.Minute, MaxHeld: 10})
	heard, err := r.server.Sniff()
	if err != nil {
		t.Fatal(err)
	}
	r.sends("late 1")
	r.await("the packet waits", func() bool { return q.Stats().Pending == 1 })
	r.sends("other 1")
	if got := r.hears(heard, "late 1", "other 1"); got != "other 1" {
		t.Errorf("%q came first", got)
	}
	q.Reevaluate() // nothing new: it goes on waiting
	r.sends("other 2")
	if got := r.hears(heard, "late 1", "other 2"); got != "other 2" {
		t.Errorf("%q came first", got)
	}
	known.Store(true)
	q.Reevaluate()
	r.hears(heard, "late 1")
	if s := q.Stats(); s.Held != 1 || s.Pending != 0 || s.HoldExpired+s.HoldRejected != 0 {
		t.Errorf("%+v, want one that was held", s)
	}
	known.Store(false)
	r.sends("late 2")
	r.await("the packet waits", func() bool { return q.Stats().Pending == 1 })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if s := q.Stats(); s.Pending != 0 {
		t.Errorf("%d packets wait in a queue that is closed", s.Pending)
	}
}

// Packets whose time is over, and packets for which there is no room, expire.
func TestHoldIsBounded(t *testing.T) {
	r := newRig(t, 1, func(data []byte) filter.Action {
		if bytes.Contains(data, []byte("late")) {
			return filter.Hold
		}
		return filter.Allow
	})
	q, _ := r.run(queue.Options{Hold: 300 * time.Millisecond, MaxHeld: 5})
	for i := range 12 {
		r.sends(fmt.Sprintf("late %d", i))
	}
	r.await("all have been given up", func() bool { return q.Stats().Denied >= 12 })
	if s := q.Stats(); s.Pending != 0 || s.HoldExpired < 5 || s.HoldExpired+s.HoldRejected != 12 || s.HoldRejected == 0 {
		t.Errorf("%+v, want 5 that waited, and the others refused", s)
	}
	if n := r.judges[0].givenUp.Load() + r.judges[1].givenUp.Load(); n != 12 {
		t.Errorf("%d were given up, want 12", n)
	}
	heard, err := r.server.Sniff()
	if err != nil {
		t.Fatal(err)
	}
	r.sends("other")
	if got := r.hears(heard, "late", "other"); got != "other" {
		t.Errorf("%q passed", got)
	}
}

// When all places are taken, a packet of another sender takes that of the newest of
// the one that has most.
func TestHoldIsShared(t *testing.T) {
	var known atomic.Bool
	r := newRig(t, 2, func(data []byte) filter.Action {
		if bytes.Contains(data, []byte("late")) && !known.Load() {
			return filter.Hold
		}
		return filter.Allow
	})
	heard, err := r.server.Sniff()
	if err != nil {
		t.Fatal(err)
	}
	const places, scanned = 5, 12
	q, _ := r.run(queue.Options{Hold: time.Hour, MaxHeld: places})
	for i := range scanned {
		r.sends(fmt.Sprintf("late %d.", i))
	}
	r.await("the places are taken", func() bool { return q.Stats().Denied == scanned-places })
	for i := range 2 {
		other, err := r.node.AddPod(fmt.Sprintf("other-%d", i))
		if err != nil {
			t.Fatal(err)
		}
		conn, err := other.DialUDP(netip.AddrPortFrom(r.server.IPv4, 7))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := fmt.Fprintf(conn, "late other %d.", i); err != nil {
			t.Fatal(err)
		}
		r.await("one gives way", func() bool { return int(q.Stats().Denied) == scanned-places+1+i })
	}
	if s := q.Stats(); s.Pending != places || s.HoldRejected != scanned-places+2 || s.HoldExpired != 0 || s.Stale+s.Restarts != 0 {
		t.Errorf("%+v", s)
	}
	known.Store(true)
	q.Reevaluate()
	want := map[string]bool{"late 0.": true, "late 1.": true, "late 2.": true, "late other 0.": true, "late other 1.": true}
	for len(want) > 0 {
		var texts []string
		for i := range scanned {
			texts = append(texts, fmt.Sprintf("late %d.", i))
		}
		got := r.hears(heard, append(texts, "late other 0.", "late other 1.")...)
		if !want[got] {
			t.Fatalf("%q passes, want one of %v", got, want)
		}
		delete(want, got)
	}
	if s := q.Stats(); s.Pending != 0 || s.Allowed < places {
		t.Errorf("%+v", s)
	}
}

// What a worker holds while it fails is not answered in the queue that it opens
// next: another packet has its number there.
func TestHoldEndsWithItsQueue(t *testing.T) {
	var queues atomic.Pointer[queue.Queues]
	var r *rig
	bound := func() bool {
		is, err := queue.Bound(r.node.NetNS(), first, 1)
		return err == nil && is
	}
	r = newRig(t, 1, func(data []byte) filter.Action {
		if !bytes.Contains(data, []byte("late")) {
			return filter.Allow
		}
		if bytes.Contains(data, []byte("late 2")) {
			q := queues.Load()
			q.Fail(errors.New("on purpose"))
			// Until the worker has let go of what it holds, or of the queue.
			for end := time.Now().Add(patience); q.Stats().Pending > 0 && bound() && time.Now().Before(end); {
				time.Sleep(time.Millisecond)
			}
		}
		return filter.Hold
	})
	var gaps atomic.Int64
	q, _ := r.run(queue.Options{Hold: time.Minute, MaxHeld: 10, OnGap: func() { gaps.Add(1) }})
	queues.Store(q)
	r.sends("late 1")
	r.await("the packet waits", func() bool { return q.Stats().Pending == 1 })
	if n := gaps.Load(); n != 0 {
		t.Errorf("%d gaps before the worker failed", n)
	}
	r.sends("late 2")
	r.await("the worker has started again", func() bool { return q.Stats().Restarts == 1 && bound() })
	r.await("it is told that packets may have passed meanwhile", func() bool { return gaps.Load() == 1 })
	heard, err := r.server.Sniff()
	if err != nil {
		t.Fatal(err)
	}
	r.sends("other")
	r.hears(heard, "other")
	if s := q.Stats(); s.Held != 2 || s.Pending != 0 {
		t.Errorf("%+v: a packet of the queue before counts as waiting in this one", s)
	}
}

// More answers than the kernel takes at once reach it.
func TestManyAnswersAtOnce(t *testing.T) {
	const packets = 8000 // 32 bytes for each, and the kernel takes some 210,000
	var known atomic.Bool
	r := newRig(t, 1, func(data []byte) filter.Action {
		if bytes.Contains(data, []byte("late")) && !known.Load() {
			return filter.Hold
		}
		return filter.Deny
	})
	r.spread = true
	q, _ := r.run(queue.Options{Hold: time.Minute, MaxHeld: packets, MaxLen: packets})
	for range packets {
		conn, err := r.client.DialUDP(netip.AddrPortFrom(r.server.IPv4, 7))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("late")); err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
	}
	r.await("all wait", func() bool { return q.Stats().Pending == packets })
	known.Store(true)
	q.Reevaluate()
	r.await("all are answered", func() bool { return q.Stats().Denied == packets })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := q.Drain(ctx); err != nil {
		t.Error(err)
	}
	if s := q.Stats(); s.Restarts+s.Stale != 0 {
		t.Errorf("%+v: not all answers were taken\n%s", s, r.log.String())
	}
}

func TestNewSaysWhatIsWrong(t *testing.T) {
	for _, o := range []queue.Options{{Count: 0}, {First: 65535, Count: 2}, {First: 65535, Count: 1, Overflow: true}} {
		if _, err := queue.New(o, nil, nil); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}
