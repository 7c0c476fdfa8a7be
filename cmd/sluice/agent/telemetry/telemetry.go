// Package telemetry serves the state of an agent: metrics, health and debugging over HTTP,
// and sluice status over a unix socket.
//
// Each request reads a [State], and all pages are made from it. The parts of the agent keep
// their own counters, so telemetry adds no cost to a packet.
//
// Enforcement comes first: if the agent cannot listen, it logs the reason, keeps trying, and
// reports a problem after a while. It never ends because it cannot listen.
package telemetry

import (
	"fmt"
	"time"

	"sluice/cache"
	"sluice/cache/bpf"
	"sluice/cache/conntrack"
	"sluice/cmd/sluice/agent/status"
	"sluice/filter/engine"
	"sluice/filter/guard"
	"sluice/filter/policy"
	"sluice/filter/queue"
)

// State is the state of an agent at one moment.
type State struct {
	status.Settings
	Now     time.Time
	Started time.Time
	Ready   time.Time // when the agent was first ready; zero before

	Snapshot  *policy.Snapshot // the snapshot in force; nil before the first one
	Published time.Time        // when the snapshot came into force
	// Digest and DigestSince are the fields of status.Enforcing with these names.
	Digest      string
	DigestSince time.Time

	Tally  engine.Tally // sum of all evaluators
	Flows  cache.Stats  // sum of all evaluators' flow caches
	Kernel *bpf.Stats   // nil if the kernel remembers no verdicts
	// KernelDenied counts the kernel's denied packets by verdict, as far as their flow is known and the
	// policies in force deny it. KernelUnknown is the number of the others.
	KernelDenied  engine.Tally
	KernelUnknown uint64
	Guard         *guard.Stats // nil if pods' interfaces are not guarded
	Forged        uint64       // packets that the rules dropped because of their source
	Queue         queue.Stats
	Waiting       int // packets that wait in the queues
	Rejudged      conntrack.Result
	Repairs       uint64 // repairs of the rules
	// RepairFailures is the number of repairs that failed.
	RepairFailures uint64
	Unlogged       uint64 // verdicts that were not logged because of the rate limit

	FlowRecords  uint64 // flows that were recorded for watchers
	FlowsLeftOut uint64 // flows that watchers did not get

	Connections Connections // connections of the HTTP server and the socket

	// Unguarded is the reason why the guard of pods' interfaces is not up to date; empty if
	// the guard is up to date.
	Unguarded string

	Watches []status.Watch
	Failing []string // tables in which the rules cannot be kept in place, each with the reason
	Reduced []string // tables in which the rules lack a part, each with the reason
	// Bypassed lists those kernel settings that let packets bypass iptables and make the agent
	// unready.
	Bypassed       []string
	SysctlProblems int // number of settings that let packets bypass iptables, whether or not they make the agent unready
	PodsOutside    int // number of addresses outside of all pod ranges that belong to this node's pods
	Problems       []status.Problem
	NotRead        string // objects that the agent does not read, but that may change what is allowed
}

// watchTimeout is the time after which a broken watch makes the agent unready. A restart of
// the API server takes less.
const watchTimeout = time.Minute

// Unready returns the reason why the agent is not ready; empty if it is ready.
func (s *State) Unready() string {
	for _, w := range s.Watches {
		if !w.Synced { // also after a start without an optional kind
			return fmt.Sprintf("the list of %s has not been read yet%s", w.Kinds(), because(w.Broken))
		}
	}
	if s.Ready.IsZero() {
		return "the rules are not in place yet"
	}
	if unready, _ := s.NotApplied(); unready != "" {
		return unready
	}
	for _, w := range s.Watches {
		if w.Broken != "" && s.Now.Sub(w.Since) > watchTimeout {
			return fmt.Sprintf("the watch of %s has been broken since %s%s", w.Kinds(), w.Since.Format(time.RFC3339), because(w.Broken))
		}
	}
	return ""
}

// NotApplied returns why policies in force do not apply to some packets: a reason that makes the agent
// unready, or otherwise a problem with a kernel setting. Both are empty if there is none.
func (s *State) NotApplied() (unready, bypass string) {
	for _, table := range s.Failing {
		return "rules cannot be kept: " + table, ""
	}
	for _, setting := range s.Bypassed {
		return "packets between pods bypass iptables: " + setting, ""
	}
	for _, p := range s.Problems {
		if p.Kind == "sysctl" {
			return "", p.String()
		}
	}
	return "", ""
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

// AllProblems returns Problems and those that follow from other fields: broken watches, and
// rules or a guard that cannot be kept up to date.
func (s *State) AllProblems() []status.Problem {
	all := append([]status.Problem{}, s.Problems...)
	for _, w := range s.Watches {
		if w.Broken != "" {
			all = append(all, status.Problem{Kind: "watch", Where: w.Kind, Detail: w.Broken})
		}
	}
	for _, table := range append(append([]string{}, s.Failing...), s.Reduced...) {
		all = append(all, status.Problem{Kind: "rules", Where: "of the node", Detail: table})
	}
	if s.Unguarded != "" {
		all = append(all, status.Problem{Kind: "rules", Where: "of pods' interfaces", Detail: s.Unguarded})
	}
	return all
}
