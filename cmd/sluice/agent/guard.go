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
		a.log.Warn("pods' interfaces are not guarded: sources that pods forge are not found out", "because", err)
		return nil
	}
	a.guard = g
	return nil
}

// beginGuard guards the interfaces. Without a guard, what an agent has left there that
// had one goes: it would know nothing of pods to come.
func (a *agent) beginGuard(s *policy.Snapshot) {
	if a.guard == nil {
		if err := a.leftovers.RemoveGuard(); err != nil {
			a.log.Warn("an old guard may be left on pods' interfaces", "err", err)
		}
		return
	}
	if err := a.guard.Begin(s); err != nil {
		a.log.Error("not all interfaces of pods are guarded; trying on", "err", err)
	}
	if now := a.published.Snapshot(); now != s { // published meanwhile
		a.updateGuard(now)
	}
}

func (a *agent) updateGuard(s *policy.Snapshot) {
	if err := a.guard.Publish(s); err != nil {
		a.log.Error("the guard of the pods' interfaces is not up to date; trying on", "err", err)
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

// closeGuard ends the agent's part. Where rules stay, so does the guard.
func (a *agent) closeGuard() error {
	if a.guard == nil {
		return nil
	}
	return a.guard.Close()
}

// guardStats says what the guard has done, nil without one, and why it is not up to
// date, if it is not.
func (a *agent) guardStats() (*guard.Stats, string) {
	if a.guard == nil {
		return nil, ""
	}
	stats, err := a.guard.Stats()
	if err != nil {
		a.log.Warn("what the guard of the pods' interfaces drops is not counted", "err", err)
		return nil, a.guard.Failure()
	}
	return &stats, a.guard.Failure()
}
