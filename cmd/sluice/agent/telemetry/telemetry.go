// Package telemetry tells people and machines how an agent stands: metrics,
// health and debugging over HTTP, and sluice status over a unix socket.
//
// All of it is drawn from a [State], which is read when somebody asks. The parts
// of the agent count for themselves, and the packet's way pays nothing for being
// watched.
//
// Enforcing comes first: an address or a socket that cannot be had is said in the
// log and tried again, and ends nothing. If it stays so it is a problem.
package telemetry

import (
	"fmt"
	"time"

	"sluice/cache"
	"sluice/cache/bpf"
	"sluice/cache/conntrack"
	"sluice/filter/engine"
	"sluice/filter/guard"
	"sluice/filter/policy"
	"sluice/filter/queue"
)

// State is how an agent stands at one moment.
type State struct {
	Settings
	Now     time.Time
	Started time.Time
	Ready   time.Time // when it was ready first; zero before

	Snapshot  *policy.Snapshot // in force; nil before the first
	Published time.Time        // when it was put in force
	Tally     engine.Tally     // of all judges
	Flows     cache.Stats      // likewise
	Kernel    *bpf.Stats       // nil where verdicts are not remembered in the kernel
	Guard     *guard.Stats     // nil where pods' interfaces are not guarded
	Forged    uint64           // packets that the rules have dropped because of their source
	Queue     queue.Stats
	Waiting   int // packets that wait for their answer
	Rejudged  conntrack.Result
	Repairs   uint64 // of the rules
	// RepairFailures are attempts at one that have failed.
	RepairFailures uint64
	Unlogged       uint64 // verdicts that the log's rate kept back

	Connections Connections // of those who ask over HTTP

	// Unguarded says why the guard of pods' interfaces is not up to date.
	Unguarded string

	Watches []Watch
	Failing []string // tables whose rules cannot be kept, and why
	Reduced []string // tables whose rules lack a part, and why
	// Bypassed are the settings by which packets pass iptables by, where the agent
	// is to be not ready for them.
	Bypassed       []string
	SysctlProblems int // such settings, in any case
	PodsOutside    int // addresses of this node's pods that no pod range holds
	Problems       []Problem
	NotRead        string // objects of other kinds that may change what is allowed
}

// Settings are what an agent was told to do, as far as users ask about it.
type Settings struct {
	Version string   `json:"version"`
	PID     int      `json:"pid"`
	Sources []string `json:"sources"` // of policies and pods
	Tables  string   `json:"tables"`  // that hold the rules
	Queues  int      `json:"queues"`
	Fail    string   `json:"fail"`
	OnExit  string   `json:"onExit"`
}

// Watch is how it is with one kind of objects that is followed.
type Watch struct {
	Kind     string    `json:"kind"`
	Synced   bool      `json:"synced"` // all there are have come
	Broken   string    `json:"broken,omitempty"`
	Since    time.Time `json:"since"` // when it broke, or came back
	Events   uint64    `json:"events"`
	Restarts uint64    `json:"restarts"`
	Errors   uint64    `json:"errors"`
}

// Problem is something that is not as the user wants it.
type Problem struct {
	Kind   string `json:"kind"`  // what it is about: policy, address, manifest, watch, rules, taint, sysctl, ranges or listen
	Where  string `json:"where"` // which one, and where in it
	Detail string `json:"detail"`
	Mend   string `json:"mend,omitempty"`
}

func (p Problem) String() string {
	text := fmt.Sprintf("%s %s: %s", p.Kind, p.Where, p.Detail)
	if p.Mend != "" {
		text += ": " + p.Mend
	}
	return text
}

// grace is for how long a watch may be broken before the agent counts as not
// ready: an API server that is restarted is no reason.
const grace = time.Minute

// Unready says what keeps the agent from being ready; empty if nothing does.
func (s *State) Unready() string {
	if s.Ready.IsZero() {
		for _, w := range s.Watches {
			if !w.Synced {
				return fmt.Sprintf("the list of %s has not come yet%s", plural(w.Kind), because(w.Broken))
			}
		}
		return "the rules are not in place yet"
	}
	for _, table := range s.Failing {
		return "rules cannot be kept: " + table
	}
	for _, setting := range s.Bypassed {
		return "packets between pods pass iptables by: " + setting
	}
	for _, w := range s.Watches {
		if w.Broken != "" && s.Now.Sub(w.Since) > grace {
			return fmt.Sprintf("%s have not been heard of since %s%s", plural(w.Kind), w.Since.Format(time.RFC3339), because(w.Broken))
		}
	}
	return ""
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

// AllProblems are those that were found in what the agent was given, and those
// that it meets itself.
func (s *State) AllProblems() []Problem {
	all := append([]Problem{}, s.Problems...)
	for _, w := range s.Watches {
		if w.Broken != "" {
			all = append(all, Problem{Kind: "watch", Where: w.Kind, Detail: w.Broken})
		}
	}
	for _, table := range append(append([]string{}, s.Failing...), s.Reduced...) {
		all = append(all, Problem{Kind: "rules", Where: "of the node", Detail: table})
	}
	if s.Unguarded != "" {
		all = append(all, Problem{Kind: "rules", Where: "of pods' interfaces", Detail: s.Unguarded})
	}
	return all
}
