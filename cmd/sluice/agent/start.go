package agent

import (
	"context"
	"fmt"
	"time"

	"sluice/cache/conntrack"
	"sluice/filter/event"
	"sluice/filter/policy"
	"sluice/watch"
)

// start runs all steps until the agent enforces. Their order ensures that no packet passes
// unjudged and that none is dropped without need:
//
//   - Without a snapshot, the workers would deny all packets.
//   - Rules without workers would drop all new connections.
//   - The predecessor enforces until this agent's rules replace those of the predecessor.
//   - A sweep before the rules are in place would miss connections that begin in between.
//
// start calls background() with each part that must run until the agent ends.
func (a *agent) start(ctx context.Context, background func(part func(context.Context) error)) error {
	first, err := a.firstSnapshot(ctx)
	if err != nil {
		return err
	}
	if err := a.startQueues(ctx, background); err != nil {
		return err
	}
	if err := a.takeOver(ctx); err != nil {
		return err
	}
	if err := a.applyRules(ctx, first); err != nil {
		return err
	}
	a.flows.tenure.begin()
	a.removeLeftovers(ctx, background)
	if err := a.sweepAll(ctx, first); err != nil {
		return err
	}
	a.beginEnforcing(first, background)
	a.controller.Attach(a.stages()...)
	return nil
}

// firstSnapshot waits until all sources have been read. Then it publishes the first snapshot to
// the kernel's flow cache and to the guard: both need a snapshot before the rules are written.
func (a *agent) firstSnapshot(ctx context.Context) (*policy.Snapshot, error) {
	var first watch.Change
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case first = <-a.controller.First():
	}
	markNow(&a.inForce)
	a.verdicts.Follow(first.Snapshot.Logging())
	if err := a.publishToKernel(ctx, first); err != nil {
		return nil, err
	}
	return first.Snapshot, a.publishToGuard(ctx, first)
}

// nothingDenied reports whether this node has no rules of any agent, so that all packets pass.
// Then an agent that cannot read ClusterNetworkPolicies starts with the other policies, which
// deny more than no agent does. Otherwise it waits: a predecessor still enforces, or has left
// rules that apply the verdicts that the kernel remembers. New rules without
// ClusterNetworkPolicies would allow what these verdicts deny.
func (a *agent) nothingDenied(ctx context.Context) bool {
	placed, err := a.leftovers.RulesInPlace(ctx)
	if err != nil {
		a.log.Error("cannot find out whether rules of an earlier agent are in place", "err", err)
	}
	return err == nil && !placed
}

// startQueues starts the workers, and returns when they read all queues.
func (a *agent) startQueues(ctx context.Context, background func(func(context.Context) error)) error {
	background(a.queues.Run)
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-a.queues.Ready():
		return nil
	}
}

// takeOver asks the predecessor, if there is one, to leave rules and connections to this
// agent.
func (a *agent) takeOver(ctx context.Context) (err error) {
	if a.predecessor != nil {
		a.lease, err = a.predecessor.TakeOver(ctx)
	}
	return err
}

// applyRules guards the interfaces and puts the rules in place.
func (a *agent) applyRules(ctx context.Context, s *policy.Snapshot) error {
	a.setPhase(applying)
	if a.predecessor != nil {
		close(a.tookOverC)
	}
	a.network.begin(s) // the ranges of starting pods must be known before packets are queued
	a.ruleChanges.last = a.needs(watch.Change{Snapshot: s})
	a.setNeeds(ctx, a.ruleChanges.last) // writes nothing yet
	if err := a.applyGuarded(ctx, s, a.applyWhatWorks); err != nil {
		return fmt.Errorf("put the rules in place: %w", err)
	}
	return nil
}

// leftoversInterval is the time between two attempts of retryLeftovers.
const leftoversInterval = 30 * time.Second

// removeLeftovers removes what earlier agents have left. It runs after applyRules, because a
// predecessor needs its rules and programs until they are replaced.
func (a *agent) removeLeftovers(ctx context.Context, background func(func(context.Context) error)) {
	if err := a.leftovers.RemoveRules(ctx); err != nil {
		a.otherBackend.Store(&err) // not fatal: without an agent, the node would be open
		a.log.Error("cannot remove the rules of an earlier agent from the other backend; trying again", "err", err)
		background(a.retryLeftovers)
	}
	a.removePins()
}

// retryLeftovers tries every leftoversInterval to remove earlier agents' rules from the other
// backend of iptables, until it succeeds.
func (a *agent) retryLeftovers(ctx context.Context) error {
	tick := time.NewTicker(leftoversInterval)
	defer tick.Stop()
	for a.otherBackend.Load() != nil {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := a.leftovers.RemoveRules(ctx); err != nil {
			a.otherBackend.Store(&err)
			continue
		}
		a.otherBackend.Store(nil)
	}
	return nil
}

// sweepAll judges all connections that began before the rules were in place.
func (a *agent) sweepAll(ctx context.Context, s *policy.Snapshot) error {
	a.follower.Published(s, nil, conntrack.ScopeAll)
	return a.follower.Sweep(ctx)
}

// beginEnforcing marks the agent as ready.
func (a *agent) beginEnforcing(s *policy.Snapshot, background func(func(context.Context) error)) {
	a.setPhase(enforcing)
	if a.lease != nil {
		background(a.judgeAfterPredecessor)
	}
	a.enforced.applied(s, true)
	markNow(&a.ready)
	close(a.synced)
	c := s.Counts()
	a.log.Info("sluice is ready", event.Ready.Attr(), "policies", c.Policies, "pods", c.Pods, "namespaces", c.Namespaces,
		"queues", fmt.Sprintf("%d-%d", a.opts.Rules.FirstQueue, int(a.opts.Rules.FirstQueue)+a.opts.Rules.Queues-1),
		"fail", failMode(a.opts.Rules.FailOpen))
}
