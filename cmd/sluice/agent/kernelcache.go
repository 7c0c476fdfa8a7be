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
	"sluice/filter/iptables"
	"sluice/filter/verdictlog"
)

// The kernel can remember verdicts too, if the kernel and iptables support it:
//
//   - Before there are rules, the agent pins the programs that the rules will call. Each
//     agent has its own. It fills their maps before its rules call them.
//   - A change of policy updates them, and reaches the live connections when no packet in
//     the rules was judged by the old state.
//   - When its rules are in place, what earlier agents have pinned is not needed any more.
//   - At the end, the programs stay with the rules, or are removed with them.

// openKernel loads the flow cache of the kernel, and has the rules call it.
func (a *agent) openKernel() error {
	wanted := a.opts.KernelCache
	if wanted == KernelCacheOff {
		return nil
	}
	if why := a.avoidKernel(); wanted == KernelCacheAuto && why != "" {
		a.log.Info("the kernel remembers no verdicts", event.KernelCacheOff.Attr(), "because", why)
		return nil
	}
	// A remembered denial would stay in force while no agent runs.
	allowedOnly := a.opts.Verdicts != verdictlog.None || a.opts.Rules.FailOpen
	c, err := bpf.Open(bpf.Options{BPFFS: a.opts.BPFFS, AllowedOnly: allowedOnly, Unattended: a.opts.Unattended, Logger: a.log})
	switch {
	case err != nil && wanted == KernelCacheOn:
		return fmt.Errorf("%w; or give --kernel-cache off", err)
	case err != nil:
		a.log.Info("the kernel remembers no verdicts", event.KernelCacheOff.Attr(), "because", err)
		return nil
	}
	a.kernel = c // close removes it, whatever happens next
	a.opts.Rules.AllowPin, a.opts.Rules.DenyPin = c.AllowPin(), c.DenyPin()
	if err := a.opts.Rules.Validate(); err != nil {
		return err
	}
	a.log.Info("the kernel remembers verdicts", "programs", filepath.Dir(c.AllowPin()), "denied_too", !allowedOnly)
	return nil
}

// setKernelStarting tells the kernel the addresses of pods that start.
func (a *agent) setKernelStarting(addrs []netip.Prefix) {
	if a.kernel == nil {
		return
	}
	if err := a.kernelError(a.kernel.SetStarting(addrs)); err != nil {
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

// attend tells the kernel at intervals that the agent is running, until ctx ends.
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

// avoidKernel returns why the kernel's flow cache would do harm; empty if it would not.
//
// A change of a legacy table replaces the whole table, and the process that makes it looks
// up the programs that the rules call. So kube-proxy could not change the table any more
// from a container that does not see the pinned programs.
func (a *agent) avoidKernel() string {
	switch {
	case a.opts.Verdicts == verdictlog.All:
		return "--log-verdicts all needs each of them"
	case strings.HasSuffix(a.tableNames(), "-"+string(iptables.Legacy)):
		return "programs that do not see the pins could not change the legacy tables"
	}
	return ""
}

// applyWhatWorks puts the rules in place. Only now it becomes known whether iptables or the
// kernel lacks a match that the overflow queue, the kernel's flow cache or the rules about
// forged sources need. What the manager cannot write is left out for good.
func (a *agent) applyWhatWorks(ctx context.Context) error {
	a.manager.MustPin(a.kernel != nil && a.opts.KernelCache == KernelCacheOn)
	if err := a.manager.Apply(ctx); err != nil {
		return err
	}
	a.manager.MustPin(false) // a repair without the programs is better than no repair
	if less, _ := a.manager.Lacks(); less != (iptables.Less{}) {
		// Once more with all parts: the first time may have failed for another reason.
		if err := a.manager.Apply(ctx); err != nil {
			return err
		}
	}
	less, because := a.manager.Lacks()
	if less == (iptables.Less{}) {
		return nil
	}
	a.manager.Without(less)
	if err := a.manager.Apply(ctx); err != nil {
		return err
	}
	return a.without(less, because)
}

// without logs which parts the rules lack, and adapts the agent to it.
func (a *agent) without(less iptables.Less, because string) error {
	if less.Overflow {
		a.log.Info("sources over --source-share do not go to the overflow queue", event.SourceLimitOff.Attr(), "because", because)
	}
	if less.Sources {
		a.log.Warn("packets with a source of this node or of their receiver are not dropped", event.SourceCheckOff.Attr(), "because", because)
		a.network.takesAnySource()
	}
	if less.Pins {
		a.log.Info("the kernel remembers no verdicts after all", event.KernelCacheOff.Attr(), "because", because)
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
	a.log.Error("the kernel answers nothing by itself until the next change succeeds", "err", err)
	return nil
}

// kernelStats returns the counters of the kernel's flow cache; nil if there is none.
func (a *agent) kernelStats() *bpf.Stats {
	if a.kernel == nil {
		return nil
	}
	stats, err := a.kernel.Stats()
	if err != nil {
		a.log.Warn("cannot count the answers of the kernel", "err", err)
		return nil
	}
	return &stats
}

// removePins removes the programs that earlier agents have pinned. No rule calls them now.
func (a *agent) removePins() {
	removed, err := a.leftovers.RemovePins()
	for _, dir := range removed {
		a.log.Info("removed the pinned programs of an earlier agent", event.PinsRemoved.Attr(), "dir", dir)
	}
	if err != nil {
		a.log.Warn("pinned programs of earlier agents may remain", "err", err)
	}
}

// closeKernel releases the flow cache of the kernel. Where rules still call it, it goes on
// answering.
func (a *agent) closeKernel() error {
	switch {
	case a.kernel == nil:
		return nil
	case a.rulesStay:
		return a.kernel.Close()
	}
	return a.kernel.Remove()
}
