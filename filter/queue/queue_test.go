package queue_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sluice/bench/testbed/lab"
	"sluice/bench/testbed/syncbuf"
	"sluice/filter"
	"sluice/filter/event"
	"sluice/filter/queue"
)

const (
	testTimeout = 2 * time.Minute
	mark        = 0x10
	first       = 300 // the number of the first queue
)

// fakeEvaluator is an Evaluator that calls the function of a test.
type fakeEvaluator struct {
	decide    func(data []byte) filter.Action
	evaluated atomic.Int64 // number of evaluated packets
	exits     atomic.Int64
	expired   atomic.Int64 // number of expired packets
	distinct  bool         // each packet waits for a different address
}

// pendingAddr is the address that held packets wait for.
var pendingAddr = netip.MustParseAddr("10.77.0.99")

func (e *fakeEvaluator) Evaluate(data []byte, _ filter.Hook) (filter.Action, netip.Addr) {
	n := e.evaluated.Add(1)
	if e.distinct {
		return e.decide(data), netip.AddrFrom4([4]byte{10, 78, byte(n >> 8), byte(n)})
	}
	return e.decide(data), pendingAddr
}

func (e *fakeEvaluator) Expire([]byte, filter.Hook, bool) filter.Action {
	e.expired.Add(1)
	return filter.Deny
}

func (e *fakeEvaluator) Enter() {}

func (e *fakeEvaluator) Exit() { e.exits.Add(1) }

// fixture is a node between a client and a server. The test reads the queues of the node.
type fixture struct {
	*testing.T
	node           *lab.Node
	client, server *lab.Host
	log            syncbuf.Buffer
	count          int
	decide         func([]byte) filter.Action
	distinct       bool             // see fakeEvaluator
	evaluators     []*fakeEvaluator // two for each queue: for arriving and for pending packets
}

// newFixture creates a node with a client and a server. It adds rules like those of an agent:
// they put packets of new connections into the queues if the destination is the server.
func newFixture(t *testing.T, count int, decide func(data []byte) filter.Action) *fixture {
	l := lab.ForTest(t, lab.Options{})
	r := &fixture{T: t, node: l.Nodes[0]}
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

// sentToQueues returns the number of IPv4 packets that the rule for the queues has matched.
func (r *fixture) sentToQueues() int {
	r.Helper()
	text, err := r.node.Output(exec.Command("iptables", "-w", "-t", "mangle", "-nvxL", "POSTROUTING"))
	if err != nil {
		r.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if words := strings.Fields(line); len(words) > 2 && words[2] == "NFQUEUE" {
			n, err := strconv.Atoi(words[0])
			if err != nil {
				r.Fatal(err)
			}
			return n
		}
	}
	r.Fatalf("no rule for the queues:\n%s", text)
	return 0
}

// run starts the workers of the queues, until the test ends or stop is called.
func (r *fixture) run(opts queue.Options) (q *queue.Queues, stop func() error) {
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
	case <-time.After(testTimeout):
		r.Fatal("the queues did not start")
	}
	return q, stop
}

// queues returns the workers of the queues, not yet running.
func (r *fixture) queues(opts queue.Options) *queue.Queues {
	r.Helper()
	opts.First, opts.Count, opts.Mark, opts.NetNS = first, r.count, mark, r.node.NetNS()
	q, err := queue.New(opts, func() queue.Evaluator {
		e := &fakeEvaluator{decide: r.decide, distinct: r.distinct}
		r.evaluators = append(r.evaluators, e)
		return e
	}, slog.New(slog.NewTextHandler(&r.log, nil)))
	if err != nil {
		r.Fatal(err)
	}
	return q
}

// reaches returns the number of the server's addresses that the client can connect to.
func (r *fixture) reaches(network string, timeout time.Duration) (reached int) {
	r.Helper()
	for _, a := range r.server.Addrs() {
		if res := r.client.Connect(r.Context(), network, netip.AddrPortFrom(a, 80), timeout); res.Outcome == lab.Reached {
			reached++
		}
	}
	return reached
}

// await waits until f() returns true. The error describes the condition with the text in the
// parameter "what".
func (r *fixture) await(what string, f func() bool) {
	r.Helper()
	for end := time.Now().Add(testTimeout); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			r.Fatalf("not within %[2]v: %[1]s\n%[3]s", what, testTimeout, r.log.String())
		}
	}
}

// Allowed packets pass and denied ones do not, over both protocols and IP versions.
func TestAnswers(t *testing.T) {
	var deny atomic.Bool
	var bad atomic.Value
	r := newFixture(t, 2, func(data []byte) filter.Action {
		if v := data[0] >> 4; v != 4 && v != 6 {
			bad.Store(bytes.Clone(data))
		}
		if deny.Load() {
			return filter.Deny
		}
		return filter.Allow
	})
	q, stop := r.run(queue.Options{})
	if n := r.reaches("tcp", testTimeout) + r.reaches("udp", testTimeout); n != 4 {
		t.Errorf("%d of 4 connections were possible", n)
	}
	// At least 4, because IPv6 neighbor discovery goes through the queue too.
	if s := q.Stats(); s.Allowed < 4 || s.Denied != 0 {
		t.Errorf("%+v, want 4 allowed or more", s)
	}
	deny.Store(true)
	if n := r.reaches("tcp", 200*time.Millisecond) + r.reaches("udp", 200*time.Millisecond); n != 0 {
		t.Errorf("%d of 4 connections were possible, though all packets are denied", n)
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
	for i, e := range r.evaluators {
		if e.evaluated.Load() > 0 && e.exits.Load() == 0 {
			t.Errorf("Exit of evaluator %d was never called", i)
		}
	}
}

// A packet whose evaluation panics is denied; later packets are not affected.
func TestEvaluatorPanics(t *testing.T) {
	var panics atomic.Bool
	panics.Store(true)
	r := newFixture(t, 1, func([]byte) filter.Action {
		if panics.Load() {
			panic("on purpose")
		}
		return filter.Allow
	})
	q, _ := r.run(queue.Options{})
	if n := r.reaches("udp", 100*time.Millisecond); n != 0 {
		t.Errorf("%d packets passed whose evaluation panicked", n)
	}
	r.await("an evaluation panics", func() bool { return q.Stats().Panics > 0 })
	panics.Store(false)
	if n := r.reaches("udp", testTimeout); n != 2 {
		t.Error("not all packets pass after an evaluation has panicked")
	}
	if s := q.Stats(); s.Panics == 0 || s.Restarts != 0 {
		t.Errorf("%+v", s)
	}
	if !strings.Contains(r.log.String(), "on purpose") {
		t.Errorf("the panic is not in the log: %s", r.log.String())
	}
}

// Each packet of a burst gets its own verdict.
func TestBurst(t *testing.T) {
	const packets = 120
	begin := make(chan struct{})
	var once sync.Once
	r := newFixture(t, 1, func(data []byte) filter.Action {
		once.Do(func() { <-begin }) // block until all packets are in the queue
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
		defer conn.Close() // stays open until the end, so that each datagram has a different port
	}
	r.await("all packets in the queue", func() bool { n, err := q.Waiting(); return err == nil && n >= packets })
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
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
	if e := r.evaluators[0]; e.exits.Load() >= e.evaluated.Load() {
		t.Errorf("%d sections for %d packets: they were not answered in bursts", e.exits.Load(), e.evaluated.Load())
	}
}

// Packets that find the queue full are dropped by the kernel, counted and logged.
func TestFullQueue(t *testing.T) {
	begin := make(chan struct{})
	r := newFixture(t, 1, func([]byte) filter.Action {
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
	r.await("dropped packets are counted", func() bool { return q.Stats().Dropped > 0 })
	r.await("dropped packets are logged", func() bool { return strings.Contains(r.log.String(), event.PacketsDropped.Attr().String()) })
	close(begin)
}

// The overflow queue is read like the others, and its dropped packets are counted
// separately.
func TestOverflowQueue(t *testing.T) {
	begin := make(chan struct{})
	r := newFixture(t, 1, func(data []byte) filter.Action {
		if bytes.Contains(data, []byte("over limit")) {
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
		if _, err := conn.Write([]byte("over limit")); err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
	}
	r.await("packets that the overflow queue dropped are counted", func() bool { return q.Stats().OverflowDropped > 0 })
	if n := r.reaches("udp", testTimeout); n != 2 {
		t.Errorf("%d of 2 connections were possible while the overflow queue was blocked", n)
	}
	if s := q.Stats(); s.Overflow != 0 || s.Allowed != 2 || s.Dropped != 0 {
		t.Errorf("%+v, want 2 allowed, none of them from the overflow queue", s)
	}
	if n, err := q.Waiting(); err != nil || n != room {
		t.Errorf("%d packets wait (%v), want %d", n, err, room)
	}
	close(begin)
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	if err := q.Drain(ctx); err != nil {
		t.Fatal(err)
	}
	r.await("all are answered", func() bool { return q.Stats().Overflow == room })
	if s := q.Stats(); s.Allowed != room+2 || s.Stale+s.Restarts != 0 {
		t.Errorf("%+v, want %d allowed", s, room+2)
	}
}

// With FailOpen, packets that find the queue full pass.
func TestFullQueueFailOpen(t *testing.T) {
	begin := make(chan struct{})
	r := newFixture(t, 1, func([]byte) filter.Action {
		<-begin
		return filter.Deny
	})
	q, _ := r.run(queue.Options{MaxLen: 1, FailOpen: true})
	heard, err := r.server.Sniff()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
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

// With FailOpen, the kernel lets packets pass while the queue is full. The worker calls OnGap
// while it reads a queue that was full, and not earlier. It does not call OnGap if the queue has
// always been far from full, or without FailOpen.
func TestFullQueueCallsOnGap(t *testing.T) {
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
			var evaluated, gaps atomic.Int64
			r := newFixture(t, 1, func([]byte) filter.Action {
				<-begin
				evaluated.Add(1)
				return filter.Deny
			})
			c.opts.OnGap = func() { gaps.Add(1) }
			q, _ := r.run(c.opts)
			// The client learns the node's hardware address now. It would drop some of many packets that
			// wait for the address.
			toNode := netip.AddrPortFrom(r.node.IPv4, 9)
			if got := r.client.Connect(t.Context(), "tcp", toNode, testTimeout); got.Outcome != lab.Refused {
				t.Fatalf("the client does not reach its node: %v", got.Err)
			}
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
			// On a busy machine, some packets are still on their way when the queue is full. They would
			// find room as soon as the others are answered.
			r.await("all packets have reached the queue", func() bool { return r.sentToQueues() == c.packets })
			if gaps.Load() > 0 {
				t.Error("OnGap was called before the packets were read")
			}
			close(begin)
			r.await("all are answered", func() bool { return evaluated.Load() == want })
			wantFull := uint64(0)
			if c.full && c.passing {
				wantFull = 1
				r.await("OnGap is called", func() bool { return gaps.Load() > 0 })
			}
			if n := q.Stats().Full; n != wantFull {
				t.Errorf("full %d times, want %d", n, wantFull)
			}
			if wantFull == 0 && gaps.Load() > 0 {
				t.Errorf("OnGap was called %d times, want 0", gaps.Load())
			}
		})
	}
}

// A queue that another process reads cannot be opened, and the error contains a hint.
func TestQueueIsTaken(t *testing.T) {
	r := newFixture(t, 1, func([]byte) filter.Action { return filter.Allow })
	bound := func() bool {
		b, err := queue.Bound(r.node.NetNS(), first, 1)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if bound() {
		t.Error("Bound is true before the queue is bound")
	}
	r.run(queue.Options{})
	if !bound() {
		t.Error("Bound is false for a queue that is bound")
	}
	err := r.queues(queue.Options{}).Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "--queue-first") {
		t.Errorf("%v, want a hint at --queue-first", err)
	}
}

// Packets that arrive after a queue is bound and before it is configured are answered too.
// The test starts and stops the queues repeatedly while connections open all the time.
func TestStartUnderLoad(t *testing.T) {
	r := newFixture(t, 2, func([]byte) filter.Action { return filter.Allow })
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

// send makes the client send a datagram with the text, from a port of its own.
func (r *fixture) send(text string) {
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

// receive waits until the server receives a datagram with one of the texts, and returns
// that text.
func (r *fixture) receive(s *lab.Sniffer, texts ...string) string {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), testTimeout)
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

// A held packet is answered when its pod is known; meanwhile, other packets of its queue
// pass.
func TestHold(t *testing.T) {
	var known atomic.Bool
	r := newFixture(t, 1, func(data []byte) filter.Action {
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
	r.send("late 1")
	r.await("the packet waits", func() bool { return q.Stats().Pending == 1 })
	r.send("other 1")
	if got := r.receive(heard, "late 1", "other 1"); got != "other 1" {
		t.Errorf("%q came first", got)
	}
	q.Reevaluate() // the pod is still unknown: the packet stays held
	r.send("other 2")
	if got := r.receive(heard, "late 1", "other 2"); got != "other 2" {
		t.Errorf("%q came first", got)
	}
	known.Store(true)
	q.Reevaluate()
	r.receive(heard, "late 1")
	if s := q.Stats(); s.Held != 1 || s.Pending != 0 || s.HoldExpired+s.HoldRejected != 0 {
		t.Errorf("%+v, want one held packet", s)
	}
	known.Store(false)
	r.send("late 2")
	r.await("the packet waits", func() bool { return q.Stats().Pending == 1 })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if s := q.Stats(); s.Pending != 0 {
		t.Errorf("%d packets are pending after the queue was closed", s.Pending)
	}
}

// A held packet is denied when it has waited for the time Options.Hold. A packet is denied at
// once if Options.MaxHeld packets are held already. In both cases, the worker calls the
// evaluator's Expire.
func TestHoldIsBounded(t *testing.T) {
	r := newFixture(t, 1, func(data []byte) filter.Action {
		if bytes.Contains(data, []byte("late")) {
			return filter.Hold
		}
		return filter.Allow
	})
	q, _ := r.run(queue.Options{Hold: 300 * time.Millisecond, MaxHeld: 5})
	for i := range 12 {
		r.send(fmt.Sprintf("late %d", i))
	}
	r.await("all have expired", func() bool { return q.Stats().Denied >= 12 })
	if s := q.Stats(); s.Pending != 0 || s.HoldExpired < 5 || s.HoldExpired+s.HoldRejected != 12 || s.HoldRejected == 0 {
		t.Errorf("%+v, want at least 5 expired and the others rejected", s)
	}
	if n := r.evaluators[0].expired.Load() + r.evaluators[1].expired.Load(); n != 12 {
		t.Errorf("%d packets expired, want 12", n)
	}
	heard, err := r.server.Sniff()
	if err != nil {
		t.Fatal(err)
	}
	r.send("other")
	if got := r.receive(heard, "late", "other"); got != "other" {
		t.Errorf("%q passed", got)
	}
}

// When all places are taken, a packet of another sender displaces the newest packet of the
// sender with the most places.
func TestHoldIsShared(t *testing.T) {
	var known atomic.Bool
	r := newFixture(t, 2, func(data []byte) filter.Action {
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
		r.send(fmt.Sprintf("late %d.", i))
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
		r.await("a packet is displaced", func() bool { return int(q.Stats().Denied) == scanned-places+1+i })
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
		got := r.receive(heard, append(texts, "late other 0.", "late other 1.")...)
		if !want[got] {
			t.Fatalf("%q passes, want one of %v", got, want)
		}
		delete(want, got)
	}
	if s := q.Stats(); s.Pending != 0 || s.Allowed < places {
		t.Errorf("%+v", s)
	}
}

// A worker that fails opens its queue again. It must forget the packets that it held before: in
// the new queue, their IDs belong to other packets, which would get the verdicts of the old ones.
func TestHoldEndsWithItsQueue(t *testing.T) {
	var queues atomic.Pointer[queue.Queues]
	var r *fixture
	bound := func() bool {
		is, err := queue.Bound(r.node.NetNS(), first, 1)
		return err == nil && is
	}
	r = newFixture(t, 1, func(data []byte) filter.Action {
		if !bytes.Contains(data, []byte("late")) {
			return filter.Allow
		}
		if bytes.Contains(data, []byte("late 2")) {
			q := queues.Load()
			q.Fail(errors.New("on purpose"))
			// Block until the worker has forgotten its pending packets or closed the queue.
			for end := time.Now().Add(testTimeout); q.Stats().Pending > 0 && bound() && time.Now().Before(end); {
				time.Sleep(time.Millisecond)
			}
		}
		return filter.Hold
	})
	var gaps atomic.Int64
	q, _ := r.run(queue.Options{Hold: time.Minute, MaxHeld: 10, OnGap: func() { gaps.Add(1) }})
	queues.Store(q)
	r.send("late 1")
	r.await("the packet waits", func() bool { return q.Stats().Pending == 1 })
	if n := gaps.Load(); n != 0 {
		t.Errorf("%d gaps before the worker failed", n)
	}
	r.send("late 2")
	r.await("the worker has started again", func() bool { return q.Stats().Restarts == 1 && bound() })
	r.await("OnGap is called for the time without a worker", func() bool { return gaps.Load() == 1 })
	heard, err := r.server.Sniff()
	if err != nil {
		t.Fatal(err)
	}
	r.send("other")
	r.receive(heard, "other")
	if s := q.Stats(); s.Held != 2 || s.Pending != 0 {
		t.Errorf("%+v: a packet of the previous queue is still pending", s)
	}
}

// If more verdicts are due than the kernel accepts in one system call, all are carried out.
func TestManyVerdictsAtOnce(t *testing.T) {
	const packets = 8000 // 32 bytes for each verdict; the kernel accepts some 210,000 bytes
	var known atomic.Bool
	r := newFixture(t, 1, func(data []byte) filter.Action {
		if bytes.Contains(data, []byte("late")) && !known.Load() {
			return filter.Hold
		}
		return filter.Deny
	})
	r.distinct = true
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
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	if err := q.Drain(ctx); err != nil {
		t.Error(err)
	}
	if s := q.Stats(); s.Restarts+s.Stale != 0 {
		t.Errorf("%+v: not all verdicts were accepted\n%s", s, r.log.String())
	}
}

func TestNewRejectsOptions(t *testing.T) {
	for _, o := range []queue.Options{{Count: 0}, {First: 65535, Count: 2}, {First: 65535, Count: 1, Overflow: true}} {
		if _, err := queue.New(o, nil, nil); err == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
}
