package agent

import (
	"context"
	"fmt"

	"sluice/filter/event"
	"sluice/filter/guard"
	"sluice/filter/policy"
)

// openGuard loads the guard of the pods' interfaces.
func (a *agent) openGuard() error {
	if a.opts.Guard == GuardOff {
		return nil
	}
	g, err := guard.Open(guard.Options{AllowedMark: a.opts.Rules.AllowedMark, BPFFS: a.opts.BPFFS, Logger: a.log})
	switch {
	case err != nil && a.opts.Guard == GuardOn:
		return fmt.Errorf("%w; or give --guard off", err)
	case err != nil:
		a.log.Warn("pods' interfaces are not guarded; forged sources are not detected", "err", err)
		return nil
	}
	a.guard = g
	g.OnCovers = func(ctx context.Context, covers bool) error { return a.manager.SetGuarded(ctx, covers) }
	return nil
}

// applyGuarded guards the interfaces and then puts the rules in place, so that forged
// sources are dropped at every moment: the guard begins before the rules stop dropping
// them, and stops only after the rules drop them again. If this agent has no guard,
// applyGuarded removes the guard of an earlier agent, which would not learn of new pods.
func (a *agent) applyGuarded(ctx context.Context, s *policy.Snapshot, apply func(context.Context) error) error {
	if a.guard == nil {
		if err := apply(ctx); err != nil {
			return err
		}
		if err := a.leftovers.RemoveGuard(); err != nil {
			a.log.Warn("the guard of an earlier agent may remain on interfaces", "err", err)
		}
		return nil
	}
	if err := a.guard.Begin(s); err != nil {
		a.log.Error("not all interfaces are guarded; trying again", event.GuardFailing.Attr(), "err", err)
	}
	covers, because := a.guard.Covers()
	if !covers {
		a.log.Info("the rules drop forged sources, because the guard does not cover all interfaces", "because", because)
	}
	_ = a.manager.SetGuarded(ctx, covers) // only records the value; apply writes the rules
	if err := apply(ctx); err != nil {
		return err
	}
	a.guard.RulesUpdated(covers)
	if now := a.published.Snapshot(); now != s { // a newer snapshot was published in the meantime
		a.updateGuard(now)
	}
	return nil
}

// keepRules makes the rules those that stay after the agent has ended. No process will update
// the guard's list of the node's addresses then, so the rules drop forged sources again.
func (a *agent) keepRules(ctx context.Context) error {
	a.yieldGuard()
	_ = a.manager.SetGuarded(ctx, false) // only records the value; Apply writes the rules
	if err := a.manager.Apply(ctx); err != nil {
		return err
	}
	return a.releaseGuard(ctx)
}

// releaseGuard removes this agent's programs from the interfaces without a pod if the iptables
// rules drop forged sources. Otherwise the programs stay, because they may be the only ones that
// drop forged sources.
func (a *agent) releaseGuard(ctx context.Context) error {
	if a.guard == nil || !a.manager.DropsSources(ctx) {
		return nil
	}
	return a.guard.Release()
}

func (a *agent) updateGuard(s *policy.Snapshot) {
	if err := a.guard.Publish(s); err != nil {
		a.log.Error("the guard of pods' interfaces is not up to date; trying again", event.GuardFailing.Attr(), "err", err)
	}
}

func (a *agent) yieldGuard() {
	if a.guard != nil {
		a.guard.Yield()
	}
}

// runGuard lets the guard follow changes of the node's interfaces until ctx ends.
func (a *agent) runGuard(ctx context.Context) {
	if a.guard != nil {
		a.guard.Run(ctx)
	}
}

func (a *agent) removeGuard() error {
	if a.guard == nil {
		return nil
	}
	return a.guard.Remove()
}

// closeGuard releases the guard's resources. The programs stay on the interfaces unless
// removeGuard has removed them.
func (a *agent) closeGuard() error {
	if a.guard == nil {
		return nil
	}
	return a.guard.Close()
}

// guardStats returns the counters of the guard, or nil if there is no guard. It also returns
// the reason why the guard is not up to date, or an empty string.
func (a *agent) guardStats() (*guard.Stats, string) {
	if a.guard == nil {
		return nil, ""
	}
	stats, err := a.guard.Stats()
	if err != nil {
		a.log.Warn("cannot count what the guard of pods' interfaces drops", "err", err)
		return nil, a.guard.Failure()
	}
	return &stats, a.guard.Failure()
}
