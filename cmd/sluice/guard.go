package main

import (
	"context"
	"fmt"

	"github.com/spf13/pflag"

	"sluice/filter/guard"
	"sluice/filter/policy"
)

// guardMode is whether to guard the pods' interfaces.
type guardMode string

const (
	guardAuto guardMode = "auto"
	guardOn   guardMode = "on"
	guardOff  guardMode = "off"
)

func addGuardFlag(fs *pflag.FlagSet, opts *runOptions) {
	opts.guard = guardAuto
	fs.Var(newChoiceFlag(&opts.guard, guardAuto, guardOn, guardOff), "guard", `whether programs on the node's ends of pods' interfaces drop packets with a source
that is not the pod's, router advertisements of pods, and what isolated pods must not
send or get although iptables cannot tell; and at the node's other interfaces, with a
source that is the node's own (Linux 6.6); auto is on where the kernel takes them`)
}

// openGuard loads the guard of the pods' interfaces.
func (a *agent) openGuard() error {
	if a.opts.guard == guardOff {
		return nil
	}
	g, err := guard.Open(a.opts.rules.JudgedMark, a.log)
	switch {
	case err != nil && a.opts.guard == guardOn:
		return fmt.Errorf("%w; or give --guard off", err)
	case err != nil:
		a.log.Warn("pods' interfaces are not guarded: sources that pods forge are not found out", "because", err)
		return nil
	}
	a.guard = g
	g.OnCovers = func(ctx context.Context, covers bool) error { return a.manager.Guarded(ctx, covers) }
	return nil
}

// applyGuarded guards the interfaces and puts the rules in place. Forged sources are
// dropped all the time: the rules need not do that when the guard does, and do it before
// the guard ceases to. Without a guard, what an agent has left there that had one goes: it
// would know nothing of pods to come.
func (a *agent) applyGuarded(s *policy.Snapshot, apply func() error) error {
	if a.guard == nil {
		if err := apply(); err != nil {
			return err
		}
		if _, err := guard.RemoveTraces(); err != nil {
			a.log.Warn("an old guard may be left on interfaces", "err", err)
		}
		return nil
	}
	if err := a.guard.Begin(s); err != nil {
		a.log.Error("not all interfaces are guarded; trying on", "err", err)
	}
	covers, because := a.guard.Covers()
	if !covers {
		a.log.Info("the rules drop forged sources, because the guard does not cover all interfaces", "because", because)
	}
	_ = a.manager.Guarded(context.Background(), covers) // nothing is kept yet
	if err := apply(); err != nil {
		return err
	}
	a.guard.Told(covers)
	return nil
}

// keepRules leaves the rules in place without an agent. What the guard knows of the node's
// addresses would grow old, so that the rules drop forged sources again.
func (a *agent) keepRules(ctx context.Context) error {
	a.yieldGuard()
	_ = a.manager.Guarded(ctx, false) // nothing is kept yet
	if err := a.manager.Apply(ctx); err != nil {
		return err
	}
	return a.releaseGuard(ctx)
}

// releaseGuard takes this agent's programs off the interfaces that lead to no pod, if the
// rules do their work. If another agent's do, they are in the place of ours.
func (a *agent) releaseGuard(ctx context.Context) error {
	if a.guard == nil || !a.manager.DropsSources(ctx) {
		return nil
	}
	return a.guard.Release()
}

func (a *agent) publishToGuard(s *policy.Snapshot) {
	if a.guard == nil {
		return
	}
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
