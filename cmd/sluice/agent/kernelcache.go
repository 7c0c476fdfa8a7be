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
)

// The kernel can remember verdicts too, if the kernel and iptables support it:
//
//   - Before it writes rules, the agent pins the programs that the rules will call, and
//     fills their maps. Each agent has programs of its own.
//   - A change of policy updates the maps. The live connections are judged only when every
//     packet that was decided by the old maps has left the rules.
//   - When the rules are in place, the agent removes the programs that earlier agents have
//     pinned.
//   - At the end, the programs stay if the rules stay; otherwise both are removed.

// openKernel loads the kernel's flow cache, and sets the options so that the rules call it.
func (a *agent) openKernel() error {
	wanted := a.opts.KernelCache
	if wanted == KernelCacheOff {
		return nil
	}
	if why := a.avoidKernel(); wanted == KernelCacheAuto && why != "" {
		a.log.Info("the kernel remembers no verdicts", event.KernelCacheOff.Attr(), "because", why)
		return nil
	}
	// With --fail open, the kernel must not remember denials, because it would deny while no agent runs.
	allowedOnly := a.opts.Rules.FailOpen
	c, err := bpf.Open(bpf.Options{BPFFS: a.opts.BPFFS, AllowedOnly: allowedOnly, Unattended: a.opts.Unattended, Logger: a.log})
	switch {
	case err != nil && wanted == KernelCacheOn:
		return fmt.Errorf("%w; or give --kernel-cache off", err)
	case err != nil:
		a.log.Info("the kernel remembers no verdicts", event.KernelCacheOff.Attr(), "because", err)
		return nil
	}
	a.kernel = c // from here on, a.close releases the cache
	a.opts.Rules.AllowPin, a.opts.Rules.DenyPin = c.AllowPin(), c.DenyPin()
	a.opts.Rules.ForwardedPin, a.opts.Rules.OthersPin = c.ForwardedPin(), c.OthersPin()
	a.opts.Rules.LaterPin, a.opts.Rules.RejectPin = c.LaterPin(), c.RejectPin()
	if err := a.opts.Rules.Validate(); err != nil {
		return err
	}
	a.log.Info("the kernel remembers verdicts", "programs", filepath.Dir(c.AllowPin()), "denied_too", !allowedOnly)
	return nil
}

// setKernelStarting passes the addresses of starting pods to the kernel's flow cache.
func (a *agent) setKernelStarting(addrs []netip.Prefix) {
	if a.kernel == nil {
		return
	}
	if err := a.kernelError(a.kernel.SetStarting(addrs)); err != nil {
		a.fail(err)
	}
}

// setKernelDevices passes the interface of each pod address to the kernel's flow cache.
func (a *agent) setKernelDevices(devices map[netip.Addr]uint32) {
	if a.kernel == nil {
		return
	}
	if err := a.kernelError(a.kernel.SetDevices(devices)); err != nil {
		a.fail(err)
	}
}

// attend writes a heartbeat to the kernel's flow cache at intervals, until ctx ends. If the last
// heartbeat is older than --unattended, the cache stops answering for those pods of this node
// that have no interface of their own.
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

// avoidKernel returns the reason not to use the kernel's flow cache, or an empty string.
//
// One of the reasons is a legacy table. Every change of a legacy table replaces the whole table,
// so the process that makes the change must open all pinned programs that rules of the table
// call. kube-proxy may run in a container without /sys/fs/bpf. It cannot open the agent's pinned
// programs there, and could not change the table any more.
func (a *agent) avoidKernel() string {
	if strings.HasSuffix(a.tableNames(), "-"+string(iptables.Legacy)) {
		return "programs that do not see the pins could not change the legacy tables"
	}
	return ""
}

// applyWhatWorks writes the rules. Three parts of the rules each need a match that iptables or
// the kernel may lack: the overflow queue, the kernel's flow cache, and the rules against forged
// sources. Only writing them shows whether they work. If a part fails twice, applyWhatWorks
// writes the rules without it, and the agent omits that part until it ends.
func (a *agent) applyWhatWorks(ctx context.Context) error {
	a.manager.MustPin(a.kernel != nil && a.opts.KernelCache == KernelCacheOn)
	if err := a.manager.Apply(ctx); err != nil {
		return err
	}
	// Later repairs may omit the BPF programs: rules without them are better than no rules.
	a.manager.MustPin(false)
	if less, _ := a.manager.Lacks(); less != (iptables.Less{}) {
		// Try all parts once more: the first attempt may have failed for another reason.
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

// without logs the parts in less, which the rules lack, with the reason. It leaves Less.Reject to
// the manager, which logs it. If the check of sources is missing, without also records that in
// a.network. If the calls of the BPF programs are missing, it stops the kernel's flow cache.
func (a *agent) without(less iptables.Less, because string) error {
	if less.Overflow {
		a.log.Info("sources over --source-share do not go to the overflow queue", event.SourceLimitOff.Attr(), "because", because)
	}
	if less.Sources {
		a.log.Warn("packets with a source of this node or of their receiver are not dropped", event.SourceCheckOff.Attr(), "because", because)
		a.network.setUncheckedSources()
	}
	if less.Pins {
		a.log.Info("the kernel remembers no verdicts after all", event.KernelCacheOff.Attr(), "because", because)
		return a.kernel.Stop()
	}
	return nil
}

// kernelError returns err if the kernel may still answer by an older snapshot, so that the agent
// ends. It logs any other error and returns nil, because the cache has disabled itself and all
// packets are queued.
func (a *agent) kernelError(err error) error {
	if err == nil || errors.Is(err, bpf.ErrStillAnswering) {
		return err
	}
	a.log.Error("the kernel's flow cache is disabled until the next change succeeds", "err", err)
	return nil
}

// kernelStats returns the counters of the kernel's flow cache, or nil if it is not used.
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

// removePins removes the programs that earlier agents have pinned. Call it only when no rule
// calls those programs any longer.
func (a *agent) removePins() {
	removed, err := a.leftovers.RemovePins()
	for _, dir := range removed {
		a.log.Info("removed the pinned programs of an earlier agent", event.PinsRemoved.Attr(), "dir", dir)
	}
	if err != nil {
		a.log.Warn("pinned programs of earlier agents may remain", "err", err)
	}
}

// closeKernel releases the kernel's flow cache. If the rules stay, the programs that they call
// keep answering; otherwise closeKernel removes the programs.
func (a *agent) closeKernel() error {
	switch {
	case a.kernel == nil:
		return nil
	case a.rulesStay:
		return a.kernel.Close()
	}
	return a.kernel.Remove()
}
