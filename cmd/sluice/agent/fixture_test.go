package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sluice/cache/bpf"
	"sluice/cache/conntrack"
	"sluice/filter"
	"sluice/filter/guard"
	"sluice/filter/iptables"
	"sluice/filter/policy"
	"sluice/filter/queue"
	"sluice/watch"
)

// testTimeout bounds each wait for the agent.
const testTimeout = time.Minute

// fixture is an agent whose host consists of fakes. They record each call as a step. The
// fixture itself is the agent's source of updates.
type fixture struct {
	*agent
	t    *testing.T
	in   chan watch.Update
	stop context.CancelFunc

	mu    sync.Mutex
	done  []string                // recorded steps
	hooks map[string]func() error // functions by the name of a step; fixture.step calls the function of its step and returns its error

	iptables *iptables.Fake
	sweptAll atomic.Int64 // number of dumps of all connections
	ended    chan error

	kernelDenied atomic.Pointer[bpf.Denial] // the flow that fakeKernel reports as denied; nil for none
}

// Names of the steps that the fakes record.
const (
	stepKernel    = "kernel cache"
	stepGuard     = "guard"
	stepQueues    = "queues"
	stepTakeOver  = "take over"
	stepRules     = "rules"
	stepLeftovers = "leftovers"
	stepAttach    = "guard attached"
	stepSweep     = "sweep"
	stepPending   = "pending packets"
	stepDrain     = "drain"
	stepYield     = "guard yielded"
)

func newFixture(t *testing.T) *fixture {
	f := &fixture{t: t, in: make(chan watch.Update), hooks: make(map[string]func() error), ended: make(chan error, 1)}
	opts := Options{
		Manifests: []string{"a feed"}, Rules: iptables.Defaults, OnExit: RemoveRules, Overflow: DropPackets, Verdicts: filter.LogNone,
	}
	f.agent = newAgent(opts, slog.New(slog.DiscardHandler))
	f.iptables = iptables.NewFake(iptables.IPv4)
	f.iptables.Refuse(func(string) error { return f.step(stepRules) })
	f.host = host{
		tables: []iptables.Table{f.iptables}, conntrack: fakeConnections{f}, kernel: fakeKernel{f: f}, guard: fakeGuard{f}, predecessor: fakePredecessor{f}, leftovers: fakeLeftovers{f},
		newQueues: func(queue.Options, func() queue.Evaluator, *slog.Logger) (packetQueues, error) {
			return &fakeQueues{f: f, ready: make(chan struct{})}, nil
		},
	}
	if err := f.wire(); err != nil {
		t.Fatal(err)
	}
	return f
}

// step records a step and calls its hook. Consecutive repetitions are recorded once.
func (f *fixture) step(name string) error {
	f.mu.Lock()
	if n := len(f.done); n == 0 || f.done[n-1] != name {
		f.done = append(f.done, name)
	}
	hook := f.hooks[name]
	f.mu.Unlock()
	if hook != nil {
		return hook()
	}
	return nil
}

// at sets the hook of a step; nil removes it.
func (f *fixture) at(step string, hook func() error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hooks[step] = hook
}

// steps returns the recorded steps, and forgets them.
func (f *fixture) steps() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	done := f.done
	f.done = nil
	return done
}

// run runs the agent until stop() is called.
func (f *fixture) run() {
	ctx, stop := context.WithCancel(f.t.Context())
	f.stop = stop
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		f.ended <- f.agent.run(ctx, f)
	}()
	f.t.Cleanup(func() { stop(); <-finished })
}

// start runs the agent and waits until it is ready.
func (f *fixture) start() {
	f.t.Helper()
	f.run()
	f.update(func(*policy.Store) {})
	f.await("ready", f.synced)
	f.await("attached to its stages", f.controller.Ready())
}

// end waits until the agent has ended, and returns the error of run().
func (f *fixture) end() error {
	f.t.Helper()
	select {
	case err := <-f.ended:
		return err
	case <-time.After(testTimeout):
		f.t.Fatal("the agent has not ended in time")
		return nil
	}
}

// await waits until c is closed.
func (f *fixture) await(what string, c <-chan struct{}) {
	f.t.Helper()
	select {
	case <-c:
	case err := <-f.ended:
		f.t.Fatalf("the agent ended before it was %s: %v", what, err)
	case <-time.After(testTimeout):
		f.t.Fatalf("the agent is not %s in time", what)
	}
}

// until waits until ok returns true.
func (f *fixture) until(what string, ok func() bool) {
	f.t.Helper()
	for end := time.Now().Add(testTimeout); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			f.t.Fatalf("timeout while waiting for: %s", what)
		}
	}
}

// recorded reports whether a step was recorded since steps was last called.
func (f *fixture) recorded(step string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Contains(f.done, step)
}

// update sends u from the source to the agent.
func (f *fixture) update(u watch.Update) {
	f.t.Helper()
	select {
	case f.in <- u:
	case <-time.After(testTimeout):
		f.t.Fatal("the agent does not receive updates")
	}
}

// hasRules reports whether the rules are in place.
func (f *fixture) hasRules() bool { return strings.Contains(f.iptables.Dump(), "-j SLUICE") }

// errFeed is the error of the source after a nil update.
var errFeed = errors.New("the feed broke")

func (f *fixture) String() string { return "a feed" }

// Run implements watch.Source. A nil update ends it with errFeed.
func (f *fixture) Run(ctx context.Context, update func(watch.Update)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case u := <-f.in:
			if u == nil {
				return errFeed
			}
			update(u)
		}
	}
}

// fakeConnections is a conntrack table without connections.
type fakeConnections struct{ f *fixture }

func (c fakeConnections) Dump(_ context.Context, among []netip.Addr, _ func(*conntrack.Conn)) error {
	if among == nil {
		c.f.sweptAll.Add(1)
	}
	return c.f.step(stepSweep)
}
func (c fakeConnections) SetMarks(context.Context, []conntrack.Update) error { return nil }
func (c fakeConnections) Close() error                                       { return nil }

type fakeQueues struct {
	f     *fixture
	ready chan struct{}
}

func (q *fakeQueues) Run(ctx context.Context) error {
	if err := q.f.step(stepQueues); err != nil {
		return err
	}
	close(q.ready)
	<-ctx.Done()
	return nil
}
func (q *fakeQueues) Ready() <-chan struct{}      { return q.ready }
func (q *fakeQueues) Reevaluate()                 { _ = q.f.step(stepPending) }
func (q *fakeQueues) Drain(context.Context) error { return q.f.step(stepDrain) }
func (q *fakeQueues) Stats() queue.Stats          { return queue.Stats{} }
func (q *fakeQueues) Waiting() (int, error)       { return 0, nil }

// fakeKernel records only Publish. The embedded interface is nil, so methods that are not
// overridden panic.
type fakeKernel struct {
	kernelCache
	f *fixture
}

func (k fakeKernel) Publish(*policy.Snapshot, policy.Changes) error { return k.f.step(stepKernel) }
func (k fakeKernel) SetStarting([]netip.Prefix) error               { return nil }
func (k fakeKernel) SetDevices(map[netip.Addr]uint32) error         { return nil }
func (k fakeKernel) EnsurePins() error                              { return nil }

// Denials returns the flow in kernelDenied, if a test has set it.
func (k fakeKernel) Denials() ([]bpf.Denial, error) {
	if d := k.f.kernelDenied.Load(); d != nil {
		return []bpf.Denial{*d}, nil
	}
	return nil, nil
}

func (k fakeKernel) Stats() (s bpf.Stats, err error) {
	if d := k.f.kernelDenied.Load(); d != nil {
		s.Denied = d.Packets
	}
	return s, nil
}

type fakeGuard struct{ f *fixture }

func (g fakeGuard) Begin(*policy.Snapshot) error   { return g.f.step(stepAttach) }
func (g fakeGuard) Publish(*policy.Snapshot) error { return g.f.step(stepGuard) }
func (g fakeGuard) Yield()                         { _ = g.f.step(stepYield) }
func (g fakeGuard) Run(ctx context.Context)        { <-ctx.Done() }
func (g fakeGuard) Stats() (guard.Stats, error)    { return guard.Stats{}, nil }
func (g fakeGuard) Failure() string                { return "" }
func (g fakeGuard) Covers() (bool, string)         { return true, "" }
func (g fakeGuard) RulesUpdated(bool)              {}
func (g fakeGuard) Release() error                 { return nil }
func (g fakeGuard) Remove() error                  { return nil }
func (g fakeGuard) Close() error                   { return nil }

type fakePredecessor struct{ f *fixture }

func (p fakePredecessor) TakeOver(context.Context) (io.Closer, error) {
	return nil, p.f.step(stepTakeOver)
}
func (p fakePredecessor) Queued() (int, error) { return 0, nil }

type fakeLeftovers struct{ f *fixture }

func (l fakeLeftovers) RulesInPlace(ctx context.Context) (bool, error) {
	return iptables.InPlace(ctx, l.f.tables)
}
func (l fakeLeftovers) RemoveRules(context.Context) error { return l.f.step(stepLeftovers) }
func (l fakeLeftovers) RemovePins() ([]string, error)     { return nil, nil }
func (l fakeLeftovers) RemoveGuard() error                { return nil }
