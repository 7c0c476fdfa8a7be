//go:build linux

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
	"sluice/cmd/sluice/agent/status"
	"sluice/cmd/sluice/agent/telemetry"
	"sluice/filter"
	"sluice/filter/flow"
	"sluice/filter/policy"
	"sluice/filter/queue"
	"sluice/filter/verdictlog"
)

func addTaintFlags(fs *pflag.FlagSet, opts *runOptions) {
	fs.Var((*taintFlag)(&opts.StartupTaint), "startup-taint", `KEY of a taint that new nodes have until an agent enforces on them, such as
sluice.dev/agent-not-ready. When ready, the agent removes it from its Node, with any
value and effect; it must be allowed to patch nodes`)
}

// taintFlag is the key of a taint; it may be empty.
type taintFlag string

func (f *taintFlag) String() string { return string(*f) }
func (f *taintFlag) Type() string   { return "KEY" }

func (f *taintFlag) Set(text string) error {
	if strings.ContainsAny(text, "=:") {
		return errors.New("give only the key, such as sluice.dev/agent-not-ready, without value and effect")
	}
	if wrong := validation.IsQualifiedName(text); text != "" && len(wrong) > 0 {
		return fmt.Errorf("this is not the key of a taint: %s", strings.Join(wrong, "; "))
	}
	*f = taintFlag(text)
	return nil
}

func addNetworkFlags(fs *pflag.FlagSet, opts *runOptions) {
	opts.SysctlProblems = agent.ReportSysctls
	fs.Var(newChoiceFlag(&opts.SysctlProblems, agent.ReportSysctls, agent.UnreadySysctls), "sysctl-problems",
		`what the agent does about sysctls that let packets between pods on a bridge bypass iptables,
such as net.bridge.bridge-nf-call-iptables=0: report them in log, status and metrics, or be
unready as well`)
}

func addKernelFlags(fs *pflag.FlagSet, opts *runOptions) {
	opts.KernelCache = agent.KernelCacheAuto
	fs.Var(newChoiceFlag(&opts.KernelCache, agent.KernelCacheAuto, agent.KernelCacheOn, agent.KernelCacheOff), "kernel-cache", `whether the kernel answers flows that were judged before, and those that no policy
concerns. auto is on where the kernel supports it, except with iptables-legacy, whose tables
only programs that see --bpffs could change then`)
	opts.Unattended = bpf.DefaultUnattended
	fs.DurationVar(&opts.Unattended, "unattended", opts.Unattended, `how long the kernel (--kernel-cache) keeps answering after the agent has ended, for pods
of this node that share an interface, as on a bridge. Later, other pods may have their
addresses; 0 for no limit`)
	addBPFFSFlag(fs, &opts.BPFFS)
}

func addBPFFSFlag(fs *pflag.FlagSet, path *string) {
	fs.StringVar(path, "bpffs", bpf.DefaultBPFFS, "`DIR` where the BPF file system is, or where the agent mounts it")
}

func addGuardFlag(fs *pflag.FlagSet, opts *runOptions) {
	opts.Guard = agent.GuardAuto
	fs.Var(newChoiceFlag(&opts.Guard, agent.GuardAuto, agent.GuardOn, agent.GuardOff), "guard", `whether programs on the node's ends of pods' interfaces drop packets with a source
that is not the pod's, router advertisements of pods, and packets of isolated pods that
iptables cannot check; at the node's other interfaces, they drop packets with a source
that is the node's own (Linux 6.6). auto is on where the kernel supports it`)
}

func addServeFlags(fs *pflag.FlagSet, opts *runOptions) {
	opts.HTTPAddress = telemetry.DefaultAddress
	fs.Var((*addressFlag)(&opts.HTTPAddress), "http-address", "the address of /metrics, /healthz, /readyz and, for callers on this node, /debug/; empty disables it")
	fs.StringVar(&opts.Socket, "socket", status.DefaultSocket, "`PATH` of the unix socket for sluice status, and for the agent that takes over; empty disables it")
}

func addHubbleFlags(fs *pflag.FlagSet, opts *runOptions) {
	h := &opts.Hubble
	fs.StringVar(&h.Socket, "hubble-socket", "", "`PATH` of the unix socket of Hubble's API, which shows the flows of this node to hubble; the\ndefault is hubble.sock beside --socket; empty disables it")
	fs.Var((*addressFlag)(&h.Address), "hubble-address", `the address of Hubble's API for hubble-relay, such as :4244; the agents of all nodes must
have the same port. Without TLS it must be loopback; empty disables it`)
	fs.StringVar(&h.TLS.Cert, "hubble-tls-cert", "", "`FILE` with the certificate of --hubble-address in PEM, which is read again when it changes. Its\nfirst DNS name is that of all agents; in *.NAME, the node's replaces the asterisk")
	fs.StringVar(&h.TLS.Key, "hubble-tls-key", "", "`FILE` with the key of --hubble-tls-cert")
	fs.StringVar(&h.TLS.ClientCA, "hubble-tls-client-ca", "", "`FILE` with the authority that signs the certificates of clients, such as hubble-relay")
	fs.BoolVar(&h.DisableTLS, "hubble-disable-tls", false, "let --hubble-address show the flows to all who reach it")
}

// addressFlag is an address to listen on; it may be empty.
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
	fs.Var((*prefixesFlag)(&opts.PodCIDRs), "pod-cidrs", `the ranges of this node's pods, such as 10.1.2.0/24,fd00:1:2::/64. A packet from or to
such an address is held until its pod is known. The default is the ranges of the Node
and those that follow from its routes`)
	fs.DurationVar(&opts.Hold, "hold", opts.Hold, "the longest time that a packet is held until its pod is known; then --fail decides")
	fs.Var(newNumberFlag(&opts.MaxHeld, 0, 1<<20), "hold-max", "the largest number of packets that are held. If there are more, those of the sender with the most are released first")
}

func addQueueFlags(fs *pflag.FlagSet, opts *runOptions) {
	opts.QueueLen, opts.CopyRange, opts.CacheSize, opts.GSO = queue.DefaultMaxLen, queue.DefaultCopyRange, cache.DefaultSize, true
	fs.Var(newNumberFlag(&opts.QueueLen, 1, 1<<20), "queue-len", "the largest number of packets in each queue")
	fs.Var(newNumberFlag(&opts.CopyRange, 64, 65535), "copy-range", "the number of bytes of a packet that are read; IPv6 extension headers beyond them are not understood")
	fs.Var(newChoiceFlag(&opts.Overflow, agent.DropPackets, agent.PassPackets), "queue-overflow", "what happens to packets if their queue is full: drop, or pass (a flood then opens what policies close)")
	fs.BoolVar(&opts.GSO, "queue-gso", opts.GSO, "read packets before the kernel splits them to the size of the link")
	fs.Var(newNumberFlag(&opts.CacheSize, 0, 1<<24), "cache-size", "the number of verdicts that each worker remembers; 0 disables the cache")
}

func addLogFlags(fs *pflag.FlagSet, opts *runOptions) {
	opts.FlowBuffer = flow.DefaultBuffer
	fs.Var(newNumberFlag(&opts.FlowBuffer, 1, 1<<20), "flow-buffer", "the number of flows that are kept for sluice observe; they take no memory before it is used")
	fs.Var((*logLevelFlag)(&opts.Verdicts), "log-verdicts", `which verdicts to log, unless the annotation sluice/log of a policy or a namespace
decides: none, denied or all`)
	opts.VerdictsRate = verdictlog.DefaultRate
	fs.Var(newNumberFlag(&opts.VerdictsRate, 0, 1<<20), "log-verdicts-rate", "the number of verdicts to log per second; 0 for no limit")
	fs.Var(newChoiceFlag(&opts.logFormat, "text", "json"), "log-format", "text or json")
	fs.TextVar(&opts.logLevel, "log-level", slog.LevelInfo, "`LEVEL`: debug, info, warn or error")
}

func addLimitFlags(fs *pflag.FlagSet, opts *runOptions) {
	l := policy.DefaultLimits()
	opts.policyMemory, opts.policiesMemory = int(l.Policy>>20), int(l.Policies>>20)
	fs.Var(newNumberFlag(&opts.policyMemory, 0, 1<<20), "policy-memory", `the memory of a compiled policy in MiB, as estimated from its size. A policy over this
limit allows nothing for the pods that it selects, and is reported; 0 for no limit`)
	fs.Var(newNumberFlag(&opts.policiesMemory, 0, 1<<20), "policies-memory", `the memory of all compiled policies in MiB. Over this limit, the largest policies of the
namespace that takes the most allow nothing, and are reported; 0 for no limit`)
}

// logLevelFlag selects verdicts.
type logLevelFlag filter.LogLevel

func (f *logLevelFlag) String() string { return filter.LogLevel(*f).String() }
func (f *logLevelFlag) Type() string   { return "none|denied|all" }

func (f *logLevelFlag) Set(text string) error {
	level, ok := filter.ParseLogLevel(text)
	if !ok {
		return errors.New("give one of none, denied, all")
	}
	*f = logLevelFlag(level)
	return nil
}
