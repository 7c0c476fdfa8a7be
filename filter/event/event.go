// Package event names the log lines that programs wait for. A log message may be reworded
// at any time. The name of an event does not change, and neither do the attributes that
// cmd/sluice/agent/telemetry/README.md lists for it.
package event

import "log/slog"

// Key is the key of the log attribute that holds the name of the event.
const Key = "event"

// Name is the name of an event: the value of the attribute "event".
type Name string

// Attr returns the attribute for a log line.
func (n Name) Attr() slog.Attr { return slog.String(Key, string(n)) }

// Events of the agent's start and end.
const (
	Ready          Name = "ready"
	SourceLimitOff Name = "source-limit-off"
	SourceCheckOff Name = "source-check-off"
	RejectOff      Name = "reject-off"
	KernelCacheOff Name = "kernel-cache-off"
	PinsRemoved    Name = "pins-removed"
	AddressInUse   Name = "address-in-use"
	Resumed        Name = "resumed"
)

// Events about packets.
const (
	Verdict Name = "verdict"
	// VerdictsWatched: annotations have changed which verdicts are watched, to be logged.
	VerdictsWatched Name = "verdicts-watched"
	PacketHeld      Name = "packet-held"
	PacketsDropped  Name = "packets-dropped"
	// FlowsIncomplete: watchers of flows do not see all of them.
	FlowsIncomplete Name = "flows-incomplete"
)

// Events about changes of policies and pods.
const (
	Published Name = "published"
	Swept     Name = "swept"
)

// Events about the rules in iptables.
const (
	RulesApplied   Name = "rules-applied"
	RulesRestored  Name = "rules-restored"
	RulesFailing   Name = "rules-failing"
	RulesRecovered Name = "rules-recovered"
	RulesComplete  Name = "rules-complete"
)

// Events about the guard of the pods' interfaces.
const (
	GuardFailing      Name = "guard-failing"
	GuardRecovered    Name = "guard-recovered"
	GuardNotPinned    Name = "guard-not-pinned"
	GuardUnrecognized Name = "guard-unrecognized"
)

// Events about the sources of policies and pods.
const (
	ManifestBroken        Name = "manifest-broken"
	ManifestRepaired      Name = "manifest-repaired"
	ManifestsUnreadable   Name = "manifests-unreadable"
	ManifestsReadable     Name = "manifests-readable"
	APIUnreachable        Name = "api-unreachable"
	APIReachable          Name = "api-reachable"
	KindServed            Name = "kind-served"
	KindNotServed         Name = "kind-not-served"
	KindSkipped           Name = "kind-skipped"
	AddressShared         Name = "address-shared"
	NodeUnknown           Name = "node-unknown"
	NodeRangeUnreadable   Name = "node-range-unreadable"
	NodeAddressUnreadable Name = "node-address-unreadable"
	TaintRemoved          Name = "taint-removed"
	TaintKept             Name = "taint-kept"
)

// Events about the network of the node.
const (
	SettingWrong  Name = "setting-wrong"
	SettingRight  Name = "setting-right"
	RangesDerived Name = "ranges-derived"
)
