package agent

import (
	"net/netip"
	"time"

	"k8s.io/client-go/rest"

	"sluice/cmd/sluice/agent/hubble"
	"sluice/filter"
	"sluice/filter/iptables"
	"sluice/filter/policy"
)

// Options are the settings of an agent.
type Options struct {
	// Manifests are directories of manifests, or single files. If there are none, the agent
	// reads from the API server, and Cluster configures the connection.
	Manifests []string
	Cluster   *rest.Config
	NodeName  string
	// StartupTaint is the key of the taint that the agent removes from its Node when it is
	// ready; empty disables this.
	StartupTaint string

	Rules  iptables.Options
	OnExit OnExit
	// Denial is how packets are denied (drop or reject) if neither the policy nor its namespace
	// specifies it.
	Denial filter.Denial

	PodCIDRs       []netip.Prefix
	SysctlProblems SysctlProblems
	Hold           time.Duration // bounds the time for which a packet is held until its pod is known
	MaxHeld        int           // bounds the number of held packets
	Limits         policy.Limits

	KernelCache KernelCache
	Unattended  time.Duration // see bpf.Options.Unattended
	BPFFS       string
	Guard       GuardMode

	QueueLen, CopyRange, CacheSize int
	Overflow                       Overflow
	GSO                            bool

	// TuneMemory lets the agent adjust the garbage collector.
	TuneMemory  bool
	HTTPAddress string
	Socket      string // path of the socket for sluice status and for the agent that takes over

	Hubble       hubble.Listen
	FlowBuffer   int             // number of records of flows that the log keeps for watchers
	Verdicts     filter.LogLevel // of namespaces and policies without the annotation
	VerdictsRate int
	Version      string
}

// OnExit is what happens to the rules when the agent ends.
type OnExit string

// The values of OnExit.
const (
	KeepRules   OnExit = "keep"
	RemoveRules OnExit = "remove"
)

// Overflow is what happens to packets that arrive while their queue is full.
type Overflow string

// The values of Overflow.
const (
	DropPackets Overflow = "drop"
	PassPackets Overflow = "pass"
)

// KernelCache selects whether the kernel remembers verdicts.
type KernelCache string

// The values of KernelCache. With auto, the kernel remembers verdicts if it supports this and
// avoidKernel returns no objection.
const (
	KernelCacheAuto KernelCache = "auto"
	KernelCacheOn   KernelCache = "on"
	KernelCacheOff  KernelCache = "off"
)

// GuardMode selects whether the guard (filter/guard) drops forged frames at pods' interfaces.
type GuardMode string

// The values of GuardMode. With auto, interfaces are guarded if the kernel supports it.
const (
	GuardAuto GuardMode = "auto"
	GuardOn   GuardMode = "on"
	GuardOff  GuardMode = "off"
)

// SysctlProblems selects how the agent treats sysctls that let packets bypass iptables.
type SysctlProblems string

// The values of SysctlProblems.
const (
	ReportSysctls  SysctlProblems = "report"
	UnreadySysctls SysctlProblems = "unready"
)
