package agent

import (
	"context"
	"fmt"

	"sluice/filter/guard"
	"sluice/filter/policy"
)

// openGuard loads the guard of the pods' interfaces.
func (a *agent) openGuard() error {
	if a.opts.Guard == GuardOff {
		return nil
	}
	g, err := guard.Open(a.opts.Rules.AllowedMark, a.log)
	switch {
	case err != nil && a.opts.Guard == GuardOn:
		return fmt.Errorf("%w; or give --guard off", err)
	case err != nil:
		a.log.Warn("pods' interfaces are not guarded; forged sources are not detected", "err", err)
		return nil
	}
	a.guard = g
	g.OnCovers = func(ctx context.Context, covers bool) error { return a.manager.Guarded(ctx, covers) }
	return nil
}

// applyGuarded guards the interfaces and puts the rules in place. Forged sources are
// dropped all the time: the rules need not do it while the guard does, and do it before the
// guard stops. Without a guard, applyGuarded removes that of an earlier agent, which would
// not know later pods.
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
		a.log.Error("not all interfaces are guarded; trying again", "err", err)
	}
	covers, because := a.guard.Covers()
	if !covers {
		a.log.Info("the rules drop forged sources, because the guard does not cover all interfaces", "because", because)
	}
	_ = a.manager.Guarded(ctx, covers) // before Apply it changes nothing yet
	if err := apply(ctx); err != nil {
		return err
	}
	a.guard.Told(covers)
	if now := a.published.Snapshot(); now != s { // published meanwhile
		a.updateGuard(now)
	}
	return nil
}

// keepRules leaves the rules in place without an agent. The node's addresses that the guard
// knows would go stale, so the rules drop forged sources again.
func (a *agent) keepRules(ctx context.Context) error {
	a.yieldGuard()
	_ = a.manager.Guarded(ctx, false) // before Apply it changes nothing yet
	if err := a.manager.Apply(ctx); err != nil {
		return err
	}
	return a.releaseGuard(ctx)
}

// releaseGuard removes this agent's programs from the interfaces that lead to no pod, if
// the rules drop forged sources. A successor's programs have replaced them otherwise.
func (a *agent) releaseGuard(ctx context.Context) error {
	if a.guard == nil || !a.manager.DropsSources(ctx) {
		return nil
	}
	return a.guard.Release()
}

func (a *agent) updateGuard(s *policy.Snapshot) {
	if err := a.guard.Publish(s); err != nil {
		a.log.Error("the guard of pods' interfaces is not up to date; trying again", "err", err)
	}
}

func (a *agent) yieldGuard() {
	if a.guard != nil {
		a.guard.Yield()
	}
}

// runGuard follows the node's interfaces.
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

// closeGuard releases the guard. Where rules stay, the programs stay too.
func (a *agent) closeGuard() error {
	if a.guard == nil {
		return nil
	}
	return a.guard.Close()
}

// guardStats returns the counters of the guard, nil without one, and why it is not up to
// date, empty if it is.
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
