package main

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"

	"sluice/cache"
	"sluice/cache/bpf"
	"sluice/cmd/sluice/agent"
	"sluice/cmd/sluice/agent/telemetry"
	"sluice/filter/policy"
	"sluice/filter/queue"
	"sluice/filter/verdictlog"
)

func addTaintFlags(fs *pflag.FlagSet, opts *runOptions) {
	fs.Var((*taintFlag)(&opts.StartupTaint), "startup-taint", `KEY of a taint that new nodes bear until an agent enforces on them, such as
sluice.dev/agent-not-ready: once ready, the agent removes it from its Node, whatever
its value and effect, for which it must be allowed to patch nodes`)
}

// taintFlag is the key of a taint, or nothing.
type taintFlag string

func (f *taintFlag) String() string { return string(*f) }
func (f *taintFlag) Type() string   { return "KEY" }

func (f *taintFlag) Set(text string) error {
	if strings.ContainsAny(text, "=:") {
		return errors.New("give the key alone, such as sluice.dev/agent-not-ready, without value and effect")
	}
	if wrong := validation.IsQualifiedName(text); text != "" && len(wrong) > 0 {
		return fmt.Errorf("it is not the key of a taint: %s", strings.Join(wrong, "; "))
	}
	*f = taintFlag(text)
	return nil
}

func addNetworkFlags(fs *pflag.FlagSet, opts *runOptions) {
	opts.SysctlProblems = agent.ReportSysctls
	fs.Var(newChoiceFlag(&opts.SysctlProblems, agent.ReportSysctls, agent.UnreadySysctls), "sysctl-problems",
		`what becomes of sysctls by which packets between pods on a bridge pass iptables by, such as
net.bridge.bridge-nf-call-iptables=0: report (in log, status and metrics) or unready (that too,
and the agent is not ready)`)
}

func addKernelFlags(fs *pflag.FlagSet, opts *runOptions) {
	opts.KernelCache = agent.KernelCacheAuto
	fs.Var(newChoiceFlag(&opts.KernelCache, agent.KernelCacheAuto, agent.KernelCacheOn, agent.KernelCacheOff), "kernel-cache", `whether the kernel itself answers what was answered before, and what no policy
concerns. It logs nothing, and so leaves denials to the agent with --log-verdicts
denied. auto is on where that works, but not with --log-verdicts all, and not in
iptables' legacy tables: none can change those then who does not see --bpffs`)
	opts.Unattended = bpf.DefaultUnattended
	fs.DurationVar(&opts.Unattended, "unattended", opts.Unattended, `how long the kernel (--kernel-cache) goes on to answer, when the agent is gone, for pods
of this node that share an interface, as on a bridge: later, other pods may have their
addresses; 0 for no limit`)
	addBPFFSFlag(fs, &opts.BPFFS)
}

func addBPFFSFlag(fs *pflag.FlagSet, path *string) {
	fs.StringVar(path, "bpffs", bpf.DefaultBPFFS, "`DIR` where the BPF file system is mounted, or is to be")
}

func addGuardFlag(fs *pflag.FlagSet, opts *runOptions) {
	opts.Guard = agent.GuardAuto
	fs.Var(newChoiceFlag(&opts.Guard, agent.GuardAuto, agent.GuardOn, agent.GuardOff), "guard", `whether programs on the node's ends of pods' interfaces drop packets with a source
that is not the pod's, router advertisements of pods, and what isolated pods must not
send or get although iptables cannot tell; auto is on where the kernel takes them`)
}

func addServeFlags(fs *pflag.FlagSet, opts *runOptions) {
	opts.HTTPAddress = telemetry.DefaultAddress
	fs.Var((*addressFlag)(&opts.HTTPAddress), "http-address", "where to answer /metrics, /healthz, /readyz and, for callers on this node, /debug/; empty for nowhere")
	fs.StringVar(&opts.Socket, "socket", telemetry.DefaultSocket, "`PATH` of the unix socket on which sluice status asks, and an agent that takes over; empty for none")
}

// addressFlag is an address to listen on, or nothing.
type addressFlag string

func (f *addressFlag) String() string { return string(*f) }
func (f *addressFlag) Type() string   { return "address:port" }

func (f *addressFlag) Set(text string) error {
	if text != "" {
		if err := telemetry.CheckAddress(text); err != nil {
			return err
		}
	}
	*f = addressFlag(text)
	return nil
}

func addHoldFlags(fs *pflag.FlagSet, opts *runOptions) {
	opts.Hold, opts.MaxHeld = queue.DefaultHold, queue.DefaultMaxHeld
	fs.Var((*prefixesFlag)(&opts.PodCIDRs), "pod-cidrs", `the ranges of this node's pods, such as 10.1.2.0/24,fd00:1:2::/64: a packet from or to
an address there waits until its pod is known; if not given, those of its Node and
what follows from its routes`)
	fs.DurationVar(&opts.Hold, "hold", opts.Hold, "how long a packet waits at most for its pod to become known; then --fail decides")
	fs.Var(newNumberFlag(&opts.MaxHeld, 0, 1<<20), "hold-max", "how many packets wait so at most. When all places are taken, the sender that has most gives way to others")
}

func addQueueFlags(fs *pflag.FlagSet, opts *runOptions) {
	opts.QueueLen, opts.CopyRange, opts.CacheSize, opts.GSO = queue.DefaultMaxLen, queue.DefaultCopyRange, cache.DefaultSize, true
	fs.Var(newNumberFlag(&opts.QueueLen, 1, 1<<20), "queue-len", "how many packets may wait in each queue")
	fs.Var(newNumberFlag(&opts.CopyRange, 64, 65535), "copy-range", "how many bytes of a packet are read; IPv6 extension headers beyond are not understood")
	fs.Var(newChoiceFlag(&opts.Overflow, agent.DropPackets, agent.PassPackets), "queue-overflow", "what packets get that find their queue full: drop or pass (a flood then opens what policies close)")
	fs.BoolVar(&opts.GSO, "queue-gso", opts.GSO, "take packets that are not yet cut up to the size of the wire")
	fs.Var(newNumberFlag(&opts.CacheSize, 0, 1<<24), "cache-size", "how many flows each worker remembers; 0 turns the cache off")
}

func addLogFlags(fs *pflag.FlagSet, opts *runOptions) {
	fs.Var(newChoiceFlag(&opts.Verdicts, verdictlog.None, verdictlog.Denied, verdictlog.All), "log-verdicts", "which verdicts to log: none, denied or all")
	opts.VerdictsRate = verdictlog.DefaultRate
	fs.Var(newNumberFlag(&opts.VerdictsRate, 0, 1<<20), "log-verdicts-rate", "how many verdicts to log a second; 0 for no limit")
	fs.Var(newChoiceFlag(&opts.logFormat, "text", "json"), "log-format", "text or json")
	fs.TextVar(&opts.logLevel, "log-level", slog.LevelInfo, "`LEVEL`: debug, info, warn or error")
}

func addLimitFlags(fs *pflag.FlagSet, opts *runOptions) {
	l := policy.DefaultLimits()
	opts.policyMemory, opts.policiesMemory = int(l.Policy>>20), int(l.Policies>>20)
	fs.Var(newNumberFlag(&opts.policyMemory, 0, 1<<20), "policy-memory", `how many MiB a policy may take compiled, as estimated from its size; one beyond allows
nothing for the pods that it selects, and is reported; 0 for no limit`)
	fs.Var(newNumberFlag(&opts.policiesMemory, 0, 1<<20), "policies-memory", `how many MiB all policies may take so; beyond, the largest of the namespace whose policies
take most are treated like this; 0 for no limit`)
}
