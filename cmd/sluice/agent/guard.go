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
	g, err := guard.Open(a.opts.Rules.JudgedMark, a.log)
	switch {
	case err != nil && a.opts.Guard == GuardOn:
		return fmt.Errorf("%w; or give --guard off", err)
	case err != nil:
		a.log.Warn("pods' interfaces are not guarded; forged sources are not detected", "err", err)
		return nil
	}
	a.guard = g
	return nil
}

// beginGuard guards the interfaces. Without a guard it removes that of an earlier agent,
// which would not know later pods.
func (a *agent) beginGuard(s *policy.Snapshot) {
	if a.guard == nil {
		if err := a.leftovers.RemoveGuard(); err != nil {
			a.log.Warn("the guard of an earlier agent may remain on pods' interfaces", "err", err)
		}
		return
	}
	if err := a.guard.Begin(s); err != nil {
		a.log.Error("not all interfaces of pods are guarded; trying again", "err", err)
	}
	if now := a.published.Snapshot(); now != s { // published meanwhile
		a.updateGuard(now)
	}
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
