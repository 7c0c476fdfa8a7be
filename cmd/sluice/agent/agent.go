// Package agent runs the agent of a node. It wires the parts together, starts them in
// order, puts each change of policy in force stage by stage, hands over to the next agent,
// and shuts down.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"sluice/cache"
	"sluice/cache/conntrack"
	"sluice/filter/engine"
	"sluice/filter/iptables"
	"sluice/filter/policy"
	"sluice/filter/queue"
	"sluice/filter/verdictlog"
	"sluice/watch"
	"sluice/watch/kube"
	"sluice/watch/manifests"
	"sluice/watch/node"
)

const (
	// drainTimeout bounds the wait at shutdown until the queued packets are answered.
	drainTimeout = 5 * time.Second
	// rulesTimeout bounds the run of iptables at shutdown, and after a successor has died.
	rulesTimeout = 5 * time.Second
)

// agent holds the parts of a running agent.
//
// One goroutine, that of run(), starts the agent, yields to a successor, enforces again and
// shuts down. So these never overlap, and no lock is held while iptables runs. The Controller's
// goroutine applies the stages.
type agent struct {
	opts Options
	log  *slog.Logger
	host

	published   policy.Published
	starting    *policy.StartingPods
	nodeSources nodeSources
	ruleChanges ruleChanges
	ipvs        *ipvsServices
	network     *nodeNetwork
	verdicts    *verdictlog.Log
	flows       *flows
	manager     *iptables.Manager
	evaluators  []*engine.Evaluator
	series      engine.Series // which policies have metrics of their own
	strangers   engine.Strangers
	tracked     *conntrack.TrackedFlows
	sweeper     *conntrack.Sweeper
	follower    *conntrack.Follower
	controller  *watch.Controller

	failed    chan error    // the error that ends the agent
	synced    chan struct{} // closed when the agent is ready
	ending    chan struct{} // closed when the agent begins to shut down
	gaps      chan struct{} // a value means that packets may have passed unjudged; see recordGap
	handovers chan handover
	tookOverC chan struct{} // closed when the predecessor has yielded

	lease     io.Closer // while the lease is open, the predecessor yields; if it is closed, the predecessor enforces again; nil without a predecessor
	rulesStay bool      // rules remain after the agent ends, because of --on-exit keep or because their removal failed

	mu    sync.Mutex // never held during I/O
	phase phase

	records
}

// phase is the phase of an agent's life. Only the goroutine of run() changes it.
type phase uint8

const (
	starting  phase = iota // no rules of this agent are in place
	applying               // rules are being written, so some may be in place
	enforcing              // the rules are in place, and live connections are judged
	yielded                // a successor has taken over
	resuming               // the successor has died; this agent writes its rules again
	leaving                // the agent shuts down
)

// Run builds an agent and runs it until ctx ends.
func Run(ctx context.Context, opts Options, log *slog.Logger) error {
	a := newAgent(opts, log)
	defer a.close()
	if err := a.open(ctx); err != nil {
		return err
	}
	if err := a.wire(); err != nil {
		return err
	}
	source, err := a.source()
	if err != nil {
		return err
	}
	if err := a.run(ctx, source); err != nil {
		return fmt.Errorf("run the agent: %w", err)
	}
	return nil
}

func newAgent(opts Options, log *slog.Logger) *agent {
	return &agent{
		opts: opts, log: log,
		failed: make(chan error, 1), synced: make(chan struct{}), ending: make(chan struct{}), gaps: make(chan struct{}, 1),
		handovers: make(chan handover), tookOverC: make(chan struct{}), ruleChanges: newRuleChanges(),
	}
}

// wire creates the parts that need the resources that open() has acquired, and connects the
// parts.
func (a *agent) wire() error {
	opts := a.opts
	a.started = time.Now()
	a.manager = iptables.New(opts.Rules, a.tables, a.log)
	a.manager.OnRepair = a.recordGap
	if a.kernel != nil {
		a.manager.EnsurePins = a.kernel.EnsurePins
	}
	a.flows = newFlows(a, opts.FlowBuffer)
	a.verdicts = verdictlog.New(opts.Verdicts, opts.VerdictsRate, a.flows.log, a.log)
	store := policy.NewStore()
	store.SetLimits(opts.Limits)
	store.SetLocalNode(opts.NodeName)
	store.SetDenial(opts.Denial)
	store.SetPodRanges(opts.PodCIDRs)
	a.starting = store.StartingPods()
	a.network = newNodeNetwork(a.starting, a.log)
	a.network.onStarting = a.setKernelStarting
	a.network.onDevices = a.setKernelDevices
	a.network.cluster = len(opts.Manifests) == 0
	a.network.guarded = func() bool { return a.guard != nil && a.guard.Failure() == "" }
	a.network.derive = a.network.cluster && len(opts.PodCIDRs) == 0 // --pod-cidrs replaces derived ranges
	a.tracked = conntrack.NewTrackedFlows()
	a.ipvs = &ipvsServices{path: ipvsFile}
	var err error
	a.queues, err = a.newQueues(queue.Options{
		First: opts.Rules.FirstQueue, Count: opts.Rules.Queues, Overflow: opts.Rules.SourceShare > 0, Mark: opts.Rules.AllowedMark, RejectMark: opts.Rules.RejectMark(),
		MaxLen: uint32(opts.QueueLen), CopyRange: uint32(opts.CopyRange),
		FailOpen: opts.Overflow == PassPackets, OnGap: a.recordGap, NoGSO: !opts.GSO, Hold: opts.Hold, MaxHeld: opts.MaxHeld,
	}, a.newEvaluator, a.log)
	if err != nil {
		return err
	}
	marks := conntrack.Marks{Allowed: opts.Rules.AllowedMark, Revoked: opts.Rules.RevokedMark}
	a.sweeper = conntrack.New(a.conntrack, marks, a.log, a.flows)
	a.sweeper.FailOpen = opts.Rules.FailOpen
	a.follower = conntrack.Follow(a.sweeper, a.tracked, a.log)
	a.follower.OnSwept = a.enforced.swept
	a.controller = watch.New(store, &a.published, watch.Options{Logger: a.log, Known: a.reportedByManifests, Applied: a.enforced.applied})
	return nil
}

// newEvaluator returns the evaluator of one worker.
func (a *agent) newEvaluator() queue.Evaluator {
	config := engine.Config{
		Published: &a.published, Observer: a.flows, Tracker: a.tracked, Translated: a.ipvs.translated,
		Rejects: a.manager.Rejects, Strangers: &a.strangers, Series: &a.series, FailOpen: a.opts.Rules.FailOpen,
	}
	if a.kernel != nil {
		config.Memory = a.kernel.NewWriter()
	}
	e := engine.New(config, cache.NewFlows(a.opts.CacheSize))
	a.evaluators = append(a.evaluators, e)
	return e
}

// source returns the source of pods and policies.
func (a *agent) source() (watch.Source, error) {
	nodeRanges := len(a.opts.PodCIDRs) == 0 // --pod-cidrs replaces the ranges of the Nodes
	if len(a.opts.Manifests) > 0 {
		return manifests.Source{
			Dirs: a.opts.Manifests, Logger: a.log, NodeRanges: nodeRanges,
			OnProblems: func(p []manifests.Problem) { a.manifests.Store(&p) },
			OnNotRead:  func(n []manifests.NotRead) { a.notRead.Store(&n) },
		}, nil
	}
	return kube.New(a.opts.Cluster, kube.Options{NodeName: a.opts.NodeName, NodeRanges: nodeRanges, StartupTaint: a.startupTaint(), StartWithout: a.nothingDenied, Logger: a.log})
}

// run runs the agent until ctx ends or a part fails, and then stops all parts in order.
func (a *agent) run(ctx context.Context, sources ...watch.Source) error {
	a.sources = sources
	// The parts keep running after ctx ends, while the rules are removed.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, serving := errgroup.WithContext(serving)
	background := func(part func(context.Context) error) { group.Go(func() error { return part(serving) }) }
	a.startParts(background, sources)

	either, cancel := context.WithCancelCause(serving)
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })()
	err := a.start(either, background)
	if err == nil {
		a.handOverUntil(ctx, serving)
	} else if either.Err() != nil {
		err = nil // interrupted: ctx has ended, or a part has failed and group.Wait below returns its error
	}
	if ctx.Err() != nil {
		a.log.Info("ending", "rules", string(a.opts.OnExit))
	}
	was := a.setPhase(leaving)
	close(a.ending)
	after := context.WithoutCancel(ctx)
	err = errors.Join(err, a.drain(after, serving))
	stop()
	err = errors.Join(group.Wait(), err)
	switch was {
	case applying, enforcing, resuming:
		err = errors.Join(err, a.leave(after))
	case yielded:
		err = errors.Join(err, a.releaseGuard(after))
	case starting, leaving:
	}
	return err
}

// startParts starts the parts that run before the rules are written.
func (a *agent) startParts(background func(func(context.Context) error), sources []watch.Source) {
	background(func(ctx context.Context) error {
		return a.controller.Run(ctx, append(sources, node.Source{Logger: a.log}, watch.Starting{Pods: a.starting})...)
	})
	background(func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			return nil
		case err := <-a.failed:
			return err
		}
	})
	background(func(ctx context.Context) error { a.network.run(ctx, &a.published); return nil })
	for _, part := range []func(context.Context){a.manager.Run, a.writeRules, a.follower.Run, a.sweepAfterGaps, a.attend, a.verdicts.Run, a.flows.countDenials, a.serve, a.tuneMemory, a.runGuard} {
		background(func(ctx context.Context) error { part(ctx); return nil })
	}
}

// fail ends the agent with err. Only the first call has an effect.
func (a *agent) fail(err error) {
	select {
	case a.failed <- err:
	default:
	}
}

// setPhase sets the phase and returns the previous one.
func (a *agent) setPhase(to phase) (was phase) {
	a.mu.Lock()
	defer a.mu.Unlock()
	was, a.phase = a.phase, to
	return was
}

// is reports whether the agent is in one of the phases.
func (a *agent) is(phases ...phase) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Contains(phases, a.phase)
}

// drain changes the rules so that they queue no new packets, and waits until the workers
// have answered the queued ones. The changed rules treat new packets as they will be
// treated after the end of the agent: they pass with --on-exit remove or --fail open, and
// are dropped otherwise.
func (a *agent) drain(ctx, serving context.Context) error {
	ctx, cancel := within(ctx, drainTimeout, "to answer the queued packets")
	defer cancel()
	unqueued := iptables.DropUnqueued
	if a.opts.OnExit == RemoveRules || a.opts.Rules.FailOpen {
		unqueued = iptables.PassUnqueued
	}
	if err := a.manager.Pause(ctx, unqueued); err != nil {
		return fmt.Errorf("stop queueing packets: %w", err)
	}
	if serving.Err() != nil {
		return nil // the workers have ended, so the kernel has dropped the queued packets
	}
	if err := a.queues.Drain(ctx); err != nil {
		return fmt.Errorf("drain the queues: %w", err)
	}
	return nil
}

// leave removes or keeps the rules, as --on-exit demands. It has a timeout of its own, so
// that a slow drain does not use up the time for removing the rules.
func (a *agent) leave(ctx context.Context) error {
	ctx, cancel := within(ctx, rulesTimeout, "to remove the rules, or to make them those that stay")
	defer cancel()
	a.rulesStay = true
	if a.opts.OnExit == KeepRules {
		return a.keepRules(ctx)
	}
	if err := a.manager.Remove(ctx); err != nil {
		return err
	}
	a.rulesStay = false
	if err := a.removeGuard(); err != nil {
		return err
	}
	_, err := a.sweeper.ClearMarks(ctx, a.opts.Rules.Mask())
	return err
}

// close releases the agent's resources. It may be called after open() has failed.
func (a *agent) close() {
	if a.flows != nil {
		a.flows.close()
	}
	for _, e := range a.evaluators {
		e.Close()
	}
	if a.conntrack != nil {
		_ = a.conntrack.Close()
	}
	if err := a.closeKernel(); err != nil {
		a.log.Warn("parts of the kernel's flow cache may remain", "err", err)
	}
	if err := a.closeGuard(); err != nil {
		a.log.Warn("parts of the guard of pods' interfaces may remain", "err", err)
	}
	if a.lease != nil {
		_ = a.lease.Close() // if the predecessor still runs, it enforces again
	}
}

// within returns a context with a timeout, whose context.Cause names the work and the
// timeout: "context deadline exceeded" names neither. Callers that report the end of a
// context use context.Cause.
func within(ctx context.Context, timeout time.Duration, what string) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, timeout, fmt.Errorf("it took longer than %v %s", timeout, what))
}

func failMode(open bool) string {
	if open {
		return "open"
	}
	return "closed"
}
