package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"sluice/cache"
	"sluice/cache/conntrack"
	"sluice/cache/kernel"
	"sluice/filter/guard"
	"sluice/filter/policy"
	"sluice/filter/queue"
	"sluice/filter/rules"
	"sluice/filter/verdictlog"
	"sluice/watch"
	"sluice/watch/node"
)

const (
	// answering is how long the agent waits at its end for packets that wait to be
	// answered.
	answering = 5 * time.Second
	// goodbye is how long it then takes at most to leave the rules as they are to
	// be.
	goodbye = 5 * time.Second
)

// agent is the parts of a running agent, wired together.
//
// World and packets meet in published alone: the keeper puts snapshots there, the
// judges take them from there. After each publish the follower judges the live
// connections.
type agent struct {
	opts      runOptions
	log       *slog.Logger
	published policy.Published
	ranges    watch.Ranges // where pods have their addresses
	rangesSet uint64       // how often they were when live connections were last all judged
	network   *nodeNetwork
	verdicts  *verdictlog.Log
	manager   *rules.Manager
	judges    []*cache.Judge
	queues    *queue.Queues
	backend   []rules.Table // that the rules are kept in
	kernel    *kernel.Cache // nil where verdicts are not remembered in the kernel
	guard     *guard.Guard  // nil where pods' interfaces are not guarded
	table     *conntrack.Kernel
	admitted  *conntrack.Admitted
	sweeper   *conntrack.Sweeper
	follower  *conntrack.Follower
	keeper    *watch.Keeper

	known  chan struct{} // closed when the first snapshot is in force
	failed chan error    // why the agent cannot begin, or go on
	synced chan struct{} // closed when all is in place
	gaps   chan struct{} // packets may have passed unjudged

	wantedQueue uint16        // the first
	occupied    bool          // another agent may be there
	lease       io.Closer     // that it has yielded; nil without one
	inherited   chan struct{} // closed when the node is this agent's, and was another's

	// left is why an earlier agent's rules in the other backend could not be removed;
	// packets meet those too.
	left atomic.Pointer[error]

	rulesStay bool // at the end, or because they could not be removed

	serving context.Context // of all parts
	mu      sync.Mutex
	phase   phase

	standing
}

// phase is how far an agent is.
type phase uint8

const (
	starting  phase = iota // nothing is in place
	applying               // there may be rules in place
	enforcing              // the rules are in place and live connections judged
	yielded                // another agent has taken over
	leaving                // what is in place is taken back
)

func newAgent(ctx context.Context, opts runOptions, log *slog.Logger) (made *agent, err error) {
	a := &agent{log: log, known: make(chan struct{}), inherited: make(chan struct{}), failed: make(chan error, 1), synced: make(chan struct{}), gaps: make(chan struct{}, 1)}
	tables, err := rules.Open(ctx, opts.rules.Backend, log)
	if err != nil {
		return nil, err
	}
	a.wantedQueue = opts.rules.FirstQueue
	if opts.rules.FirstQueue, a.occupied, err = chooseQueues(opts.rules.FirstQueue, opts.rules.Span()); err != nil {
		return nil, err
	}
	a.opts, a.backend = opts, tables
	a.standsOn(tables)
	if err := a.openKernel(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.closeKernel(), a.closeGuard())
		}
	}()
	if err := a.openGuard(); err != nil {
		return nil, err
	}
	a.manager = rules.New(a.opts.rules, tables, log)
	a.manager.OnRepair = a.noteGap
	if a.kernel != nil {
		a.manager.EnsurePins = a.kernel.EnsurePins
	}
	a.verdicts = verdictlog.New(opts.verdicts, opts.verdictsRate, &a.published, log)
	a.ranges.Set(opts.podCIDRs, nil)
	a.network = newNodeNetwork(&a.ranges, log)
	a.network.onDevices = a.tellDevices
	a.network.cluster = len(opts.manifests) == 0
	a.network.guarded = func() bool { return a.guard != nil && a.guard.Failure() == "" }
	a.network.derive = a.network.cluster && len(opts.podCIDRs) == 0 // those that were given hold alone
	a.admitted = conntrack.NewAdmitted(func(addr netip.Addr) bool {
		_, cluster := a.ranges.Contains(addr)
		return cluster
	})
	a.queues, err = queue.New(queue.Options{
		First: opts.rules.FirstQueue, Count: opts.rules.Queues, Crowd: opts.rules.SourceShare > 0, Mark: opts.rules.JudgedMark,
		MaxLen: uint32(opts.queueLen), CopyRange: uint32(opts.copyRange),
		FailOpen: opts.overflow == passPackets, OnGap: a.noteGap, NoGSO: !opts.gso, Hold: opts.hold, MaxHeld: opts.maxHeld,
	}, a.newJudge, log)
	if err != nil {
		return nil, err
	}
	if a.table, err = conntrack.Open(conntrack.Options{}); err != nil {
		return nil, err
	}
	marks := conntrack.Marks{Judged: opts.rules.JudgedMark, Revoked: opts.rules.RevokedMark}
	a.sweeper = conntrack.New(a.table, marks, log, a.verdicts)
	a.sweeper.Awaited = a.awaited
	a.follower = conntrack.Follow(a.sweeper, a.admitted, log)
	world := policy.NewWorld()
	world.SetLimits(opts.limits())
	world.SetLocalNode(opts.nodeName)
	a.keeper = watch.New(world, &a.published, watch.Options{Logger: log, OnPublish: a.onPublish})
	return a, nil
}

// newJudge makes one of the workers' judges.
func (a *agent) newJudge() queue.Judge {
	config := cache.Config{
		Published: &a.published, Observer: a.verdicts, Ranges: &a.ranges, Admissions: a.admitted, FailOpen: a.opts.rules.FailOpen,
	}
	if a.kernel != nil {
		config.Memory = a.kernel.NewWriter()
	}
	j := cache.NewJudge(config, cache.NewFlows(a.opts.cacheSize))
	a.judges = append(a.judges, j)
	return j
}

// awaited says whether a packet from or to an address that nobody has waits, and
// is denied if it waits in vain.
func (a *agent) awaited(addr netip.Addr) bool {
	local, _ := a.ranges.Contains(addr)
	return local && !a.opts.rules.FailOpen
}

// forgetOtherBackend takes away what an agent has left in the backend that is not
// used: packets would be judged by both.
func forgetOtherBackend(ctx context.Context, inUse []rules.Table, log *slog.Logger) error {
	others, err := rules.Others(ctx, inUse)
	if err != nil {
		return fmt.Errorf("look for rules in the other backend: %w", err)
	}
	removed, err := rules.Traces(ctx, others)
	for _, line := range removed {
		log.Warn("removed what an agent had left in the other backend", "what", line)
	}
	return err
}

// forgetInterval is how often the other backend is tried again.
const forgetInterval = 30 * time.Second

// forgetLater tries until the other backend is rid of what an agent has left there, if
// it was not at the start.
func (a *agent) forgetLater(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-a.synced:
	}
	tick := time.NewTicker(forgetInterval)
	defer tick.Stop()
	for a.left.Load() != nil {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := forgetOtherBackend(ctx, a.backend, a.log); err != nil {
			a.left.Store(&err)
			continue
		}
		a.left.Store(nil)
	}
}

func (a *agent) close() {
	for _, j := range a.judges {
		j.Close()
	}
	_ = a.table.Close()
	if err := a.closeKernel(); err != nil {
		a.log.Warn("something of the kernel's flow cache may be left", "err", err)
	}
	if err := a.closeGuard(); err != nil {
		a.log.Warn("something of the guard of the pods' interfaces may be left", "err", err)
	}
	if a.lease != nil {
		_ = a.lease.Close() // the agent from before may step in again
	}
}

// advance goes from one phase to the next, unless another has come between.
func (a *agent) advance(from, to phase) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.phase != from {
		return false
	}
	a.phase = to
	return true
}

// end begins the last phase, and returns the one before.
func (a *agent) end() phase {
	a.mu.Lock()
	defer a.mu.Unlock()
	was := a.phase
	a.phase = leaving
	return was
}

// run runs all parts until ctx ends, and then ends them in order; or until one of
// them fails, and then ends the others likewise.
func (a *agent) run(ctx context.Context, sources ...watch.Source) error {
	a.sources = sources
	// What serves packets goes on while the rules are taken back.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, serving := errgroup.WithContext(serving)
	a.serving = serving
	group.Go(func() error {
		return a.keeper.Run(serving, append(sources, node.Source{Logger: a.log}, watch.Local{Ranges: &a.ranges})...)
	})
	group.Go(func() error {
		select {
		case <-serving.Done():
			return nil
		case <-a.known: // before that, every packet would be denied
			return a.queues.Run(serving)
		}
	})
	group.Go(func() error {
		select {
		case <-serving.Done():
			return nil
		case err := <-a.failed:
			return err
		}
	})
	group.Go(func() error { a.network.run(serving, &a.published); return nil })
	for _, part := range []func(context.Context){a.manager.Run, a.follower.Run, a.closeGaps, a.attend, a.verdicts.Run, a.inherit, a.serve, a.tendMemory, a.forgetLater, a.runGuard} {
		group.Go(func() error { part(serving); return nil })
	}
	ended := make(chan error, 1)
	go func() { ended <- group.Wait() }()
	select {
	case <-ctx.Done():
		a.log.Info("ending", "rules", string(a.opts.onExit))
	case err := <-ended:
		ended <- err
	}
	was := a.end()
	drained := a.drain(context.WithoutCancel(ctx), serving)
	stop()
	err := errors.Join(<-ended, drained)
	switch was {
	case applying, enforcing:
		err = errors.Join(err, a.leave(context.WithoutCancel(ctx)))
	case yielded:
		err = errors.Join(err, a.releaseGuard(context.WithoutCancel(ctx)))
	case starting, leaving:
	}
	return err
}

// drain keeps new packets from the queues and waits until those that wait there
// have been answered. New ones already get what they will get without an agent.
func (a *agent) drain(ctx, serving context.Context) error {
	ctx, cancel := within(ctx, answering, "to answer the packets that wait")
	defer cancel()
	pass := a.opts.onExit == removeAtExit || a.opts.rules.FailOpen
	if err := a.manager.Pause(ctx, pass); err != nil {
		return fmt.Errorf("end in order: %w", err)
	}
	if serving.Err() != nil {
		return nil // the workers are gone, and the kernel has dropped what waited
	}
	if err := a.queues.Drain(ctx); err != nil {
		return fmt.Errorf("end in order: %w", err)
	}
	return nil
}

// leave leaves the rules as they are to be without an agent. Its time is its own:
// also when packets waited for too long, no rule may stay by mistake.
func (a *agent) leave(ctx context.Context) error {
	ctx, cancel := within(ctx, goodbye, "to leave the rules as they are to be")
	defer cancel()
	a.rulesStay = true
	if a.opts.onExit == keepAtExit {
		return a.keepRules(ctx)
	}
	if err := a.manager.Remove(ctx); err != nil {
		return err
	}
	a.rulesStay = false
	if err := a.removeGuard(); err != nil {
		return err
	}
	_, err := a.sweeper.ClearMarks(ctx, a.opts.rules.Mask())
	return err
}

// onPublish is called when a snapshot is in force and no verdict of an older one
// can still take effect, or late ones might.
func (a *agent) onPublish(ctx context.Context, s *policy.Snapshot, changes policy.Changes, late bool) {
	note(&a.inForce)
	a.mu.Lock()
	begun := a.phase != starting
	a.mu.Unlock()
	if begun {
		a.queues.Rejudge() // what waits for a pod need not wait for the kernel too
	}
	a.publishToKernel(s, changes)
	a.publishToGuard(s)
	if begun {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.phase == enforcing {
			a.follower.Published(s, changes, a.scope(late)) // and not after this agent has yielded
		}
		return
	}
	if err := a.begin(ctx, s); err != nil && ctx.Err() == nil {
		if !errors.Is(err, errEnding) {
			a.fail(err)
		}
		<-ctx.Done() // there is no going on from here
	}
}

// errEnding says that the agent was told to end before it began, which is no failure.
var errEnding = errors.New("the agent ends before it has begun")

// scope is which live connections are to be judged after a publish. Where pods are
// expected decides of which keys the judges tell; with other ranges, all that live
// must be found once.
func (a *agent) scope(late bool) conntrack.Scope {
	switch sets := a.ranges.Sets(); {
	case sets != a.rangesSet:
		a.rangesSet = sets
		return conntrack.Everything
	case late:
		return conntrack.Changed
	}
	return conntrack.Turned
}

// fail ends the agent, with the first reason that it is given.
func (a *agent) fail(err error) {
	select {
	case a.failed <- err:
	default:
	}
}

// begin puts the rules in place, once somebody reads the queues, and then judges
// the connections that lived before: in this order, so that none begins unseen in
// between.
func (a *agent) begin(ctx context.Context, s *policy.Snapshot) error {
	close(a.known)
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-a.queues.Ready():
	}
	if a.occupied {
		if err := a.succeed(ctx); err != nil {
			return err
		}
	}
	if !a.advance(starting, applying) {
		return errEnding
	}
	a.network.begin(s) // pods that start are expected before the rules ask about them
	if err := a.applyGuarded(s, func() error { return a.apply(ctx) }); err != nil {
		return fmt.Errorf("put the rules in place: %w", err)
	}
	// Only now, so that an agent that was there has enforced by them until now.
	if err := forgetOtherBackend(ctx, a.backend, a.log); err != nil {
		a.left.Store(&err) // no reason not to begin
		a.log.Error("what an agent may have left in the other backend cannot be removed; trying on", "err", err)
	}
	a.forgetStale()
	a.rangesSet = a.ranges.Sets()
	a.follower.Published(s, nil, conntrack.Everything)
	if err := a.follower.Sweep(ctx); err != nil {
		return err
	}
	a.advance(applying, enforcing)
	if a.lease != nil {
		close(a.inherited)
	}
	note(&a.ready)
	close(a.synced)
	c := s.Counts()
	a.log.Info("sluice is ready", "policies", c.Policies, "pods", c.Pods, "namespaces", c.Namespaces,
		"queues", fmt.Sprintf("%d-%d", a.opts.rules.FirstQueue, int(a.opts.rules.FirstQueue)+a.opts.rules.Queues-1),
		"fail", failText(a.opts.rules.FailOpen))
	return nil
}

func failText(open bool) string {
	f := failFlag(open)
	return f.String()
}
