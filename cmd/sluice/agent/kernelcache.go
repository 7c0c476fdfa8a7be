package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"sluice/cache/bpf"
	"sluice/filter/event"
	"sluice/filter/rules"
	"sluice/filter/verdictlog"
)

// Verdicts can be remembered in the kernel too, where it and iptables can do that:
//
//   - Before there are rules, the agent pins the programs that the rules are to
//     call, each agent its own. It fills them before its rules lead there.
//   - With each publish it brings them up to date, and goes on to the live
//     connections when no packet in the rules was judged by the state before.
//   - When its rules are in place, nobody needs what agents before it have pinned.
//   - At its end the programs stay with the rules, or go with them.

// openKernel makes the flow cache in the kernel, and has the rules call it.
func (a *agent) openKernel() error {
	wanted := a.opts.KernelCache
	if wanted == KernelCacheOff {
		return nil
	}
	if why := a.unwelcome(); wanted == KernelCacheAuto && why != "" {
		a.log.Info("verdicts are not remembered in the kernel", event.KernelCacheOff.Attr(), "because", why)
		return nil
	}
	// A denial that is remembered would hold while no agent runs.
	allowedOnly := a.opts.Verdicts != verdictlog.None || a.opts.Rules.FailOpen
	c, err := bpf.Open(bpf.Options{BPFFS: a.opts.BPFFS, AllowedOnly: allowedOnly, Unattended: a.opts.Unattended, Logger: a.log})
	switch {
	case err != nil && wanted == KernelCacheOn:
		return fmt.Errorf("%w; or give --kernel-cache off", err)
	case err != nil:
		a.log.Info("verdicts are not remembered in the kernel", event.KernelCacheOff.Attr(), "because", err)
		return nil
	}
	a.kernel = c // close removes it, whatever happens next
	a.opts.Rules.AllowPin, a.opts.Rules.DenyPin = c.AllowPin(), c.DenyPin()
	if err := a.opts.Rules.Validate(); err != nil {
		return err
	}
	a.log.Info("verdicts are remembered in the kernel", "programs", filepath.Dir(c.AllowPin()), "denied_too", !allowedOnly)
	return nil
}

// setKernelRanges tells the kernel where pods have their addresses.
func (a *agent) setKernelRanges(all []netip.Prefix) {
	if err := a.kernelError(a.kernel.SetRanges(all)); err != nil {
		a.fail(err)
	}
}

// setKernelDevices tells the kernel which interface leads to which pod.
func (a *agent) setKernelDevices(devices map[netip.Addr]uint32) {
	if a.kernel == nil {
		return
	}
	if err := a.kernelError(a.kernel.SetDevices(devices)); err != nil {
		a.fail(err)
	}
}

// attend tells the kernel again and again that the agent is there, until ctx ends.
func (a *agent) attend(ctx context.Context) {
	if a.kernel == nil || a.opts.Unattended == 0 {
		return
	}
	tick := time.NewTicker(max(min(a.opts.Unattended/10, 10*time.Second), time.Millisecond))
	defer tick.Stop()
	failed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := a.kernel.Attend()
		if err != nil && !failed {
			a.log.Error("the kernel will stop answering for pods that share an interface", "err", err)
		}
		failed = err != nil
	}
}

// unwelcome says why the kernel's flow cache would do harm, if it would.
//
// Each change of a legacy table replaces it as a whole, and the programs that its
// rules call are looked up anew by whoever makes the change: kube-proxy, in a
// container that does not see where they are pinned, could change nothing any more.
func (a *agent) unwelcome() string {
	switch {
	case a.opts.Verdicts == verdictlog.All:
		return "the log is to have a line for each"
	case strings.HasSuffix(a.tableNames(), "-"+string(rules.Legacy)):
		return "others, who may not see the programs, could not change the legacy tables"
	}
	return ""
}

// applyWhatWorks puts the rules in place. That iptables or the kernel lacks a match for the
// crowd's queue, the kernel's flow cache or the rules about forged sources shows only
// now: what the manager has had to leave out is left out for good.
func (a *agent) applyWhatWorks(ctx context.Context) error {
	a.manager.MustPin(a.kernel != nil && a.opts.KernelCache == KernelCacheOn)
	if err := a.manager.Apply(ctx); err != nil {
		return err
	}
	a.manager.MustPin(false) // a repair without the programs is better than none
	if less, _ := a.manager.Lacks(); less != (rules.Less{}) {
		// Once more with all of it: the first time something else may have been in the way.
		if err := a.manager.Apply(ctx); err != nil {
			return err
		}
	}
	less, because := a.manager.Lacks()
	if less == (rules.Less{}) {
		return nil
	}
	a.manager.Without(less)
	if err := a.manager.Apply(ctx); err != nil {
		return err
	}
	return a.without(less, because)
}

// without logs which parts the rules lack, and adapts the agent to that.
func (a *agent) without(less rules.Less, because string) error {
	if less.Crowd {
		a.log.Info("sources that send more than --source-share are not set apart", event.SourceLimitOff.Attr(), "because", because)
	}
	if less.Sources {
		a.log.Warn("packets that claim to come from this node or from their receiver are not dropped", event.SourceCheckOff.Attr(), "because", because)
		a.network.takesAnySource()
	}
	if less.Pins {
		a.log.Info("verdicts are not remembered in the kernel after all", event.KernelCacheOff.Attr(), "because", because)
		return a.kernel.Stop()
	}
	return nil
}

// kernelError returns the errors with which the agent must end: the kernel might go on to
// answer by an older snapshot. With others all packets are queued, as without the cache.
func (a *agent) kernelError(err error) error {
	if err == nil || errors.Is(err, bpf.ErrStillAnswering) {
		return err
	}
	a.log.Error("the kernel answers nothing by itself until a change succeeds", "err", err)
	return nil
}

// kernelStats says how the kernel's flow cache has done, if there is one.
func (a *agent) kernelStats() *bpf.Stats {
	if a.kernel == nil {
		return nil
	}
	stats, err := a.kernel.Stats()
	if err != nil {
		a.log.Warn("the answers of the kernel are not counted", "err", err)
		return nil
	}
	return &stats
}

// removePins removes what agents that are gone have pinned, now that no rule calls it.
func (a *agent) removePins() {
	removed, err := a.leftovers.RemovePins()
	for _, dir := range removed {
		a.log.Info("removed the pinned programs of an agent that is gone", event.PinsRemoved.Attr(), "dir", dir)
	}
	if err != nil {
		a.log.Warn("pinned programs of agents that are gone may be left", "err", err)
	}
}

// closeKernel ends the flow cache in the kernel. Where rules still call it, it goes
// on to answer.
func (a *agent) closeKernel() error {
	switch {
	case a.kernel == nil:
		return nil
	case a.rulesStay:
		return a.kernel.Close()
	}
	return a.kernel.Remove()
}
