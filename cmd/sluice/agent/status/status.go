// Package status has the answer of an agent to "sluice status": its fields, its text, and the request
// for it. Unlike the agent, the package builds on every system.
package status

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"sluice/filter/policy"
)

// Status is the answer of an agent to sluice status.
type Status struct {
	Settings
	Started time.Time `json:"started"`
	Ready   bool      `json:"ready"`
	Unready string    `json:"unready,omitempty"` // why the agent is not ready

	Enforcing *Enforcing `json:"enforcing,omitempty"` // nil before the first snapshot
	// Policies are the policies in force, sorted by tier and name. They are set by AskAll, and not by Ask.
	Policies []PolicyInForce `json:"policies,omitempty"`
	Packets  Packets         `json:"packets"`
	Kernel   *InKernel       `json:"kernel,omitempty"` // nil if the kernel remembers no verdicts
	Forged   Forged          `json:"forged"`
	Live     Live            `json:"live"`
	Repairs  uint64          `json:"ruleRepairs"`
	Failed   uint64          `json:"ruleRepairFailures"`
	Watches  []Watch         `json:"watches"`
	Problems []Problem       `json:"problems"`
	// LogAnnotations is nil if no object has an annotation about which verdicts are logged.
	LogAnnotations *LogAnnotations `json:"logAnnotations,omitempty"`
	NotRead        string          `json:"notRead,omitempty"` // objects that the agent does not read, but that may change what is allowed

	Now time.Time `json:"now"`
	// Process is the PID of the agent in the PID namespace of the caller of Ask. It differs
	// from PID if the agent is in a container, and is 0 if the caller is in another container.
	Process int `json:"-"`
}

// Settings are the options of an agent that sluice status shows.
type Settings struct {
	Version string   `json:"version"`
	Node    string   `json:"node,omitempty"` // name of the node
	PID     int      `json:"pid"`
	Sources []string `json:"sources"` // sources of policies and pods
	Tables  string   `json:"tables"`  // tables that hold the rules
	Queues  int      `json:"queues"`
	Fail    string   `json:"fail"`
	OnExit  string   `json:"onExit"`
	// DenyWith is how the node denies packets: drop, or reject.
	DenyWith string `json:"denyWith"`
	// LogVerdicts is which verdicts the node logs: none, denied or all. Annotations may set another level.
	LogVerdicts string `json:"logVerdicts"`
}

// LogAnnotations counts the objects that have an annotation about which verdicts are logged.
type LogAnnotations struct {
	Namespaces int `json:"namespaces"`
	Policies   int `json:"policies"`
	// Most is the highest level that one of them sets: none, denied or all.
	Most string `json:"most"`
}

// verdictLog describes which verdicts the node logs. It returns "" if the flag --log-verdicts is none and
// no annotation sets a level.
func (s *Status) verdictLog() string {
	a := s.LogAnnotations
	if a == nil && (s.LogVerdicts == "none" || s.LogVerdicts == "") {
		return ""
	}
	text := s.LogVerdicts + " (--log-verdicts)"
	if a != nil {
		text += fmt.Sprintf("; up to %s by the annotation of %s and %s", a.Most, count(a.Namespaces, "namespace"), count(a.Policies, "policy"))
	}
	return text
}

// Watch is the state of the watch for one kind of object.
type Watch struct {
	Kind string `json:"kind"`
	// Optional reports that a cluster may lack the kind. Version is then the version of the
	// API that the agent follows; it is empty if the kind is not installed.
	Optional bool      `json:"optional,omitempty"`
	Version  string    `json:"version,omitempty"`
	Synced   bool      `json:"synced"` // the list has been read
	Broken   string    `json:"broken,omitempty"`
	Since    time.Time `json:"since"` // when the watch broke or recovered
	Events   uint64    `json:"events"`
	Restarts uint64    `json:"restarts"`
	Errors   uint64    `json:"errors"`
}

// Kinds returns the kind in the plural.
func (w Watch) Kinds() string { return plural(w.Kind) }

// Problem is a condition that the user should correct.
type Problem struct {
	Kind   string `json:"kind"`  // policy, namespace, address, manifest, watch, rules, taint, sysctl, ranges, listen or hubble
	Where  string `json:"where"` // an object of that kind, and the field in it
	Detail string `json:"detail"`
	Hint   string `json:"hint,omitempty"` // how to correct it
	// InForce names what stays in force because of a broken manifest.
	InForce string `json:"inForce,omitempty"`
}

func (p Problem) String() string {
	text := fmt.Sprintf("%s %s: %s", p.Kind, p.Where, p.Detail)
	if p.Hint != "" {
		text += ": " + p.Hint
	}
	if p.InForce != "" {
		text += " (in force: " + p.InForce + ")"
	}
	return text
}

// Enforcing describes the snapshot in force.
type Enforcing struct {
	Since      time.Time `json:"since"` // when the agent was first ready; zero before that
	Snapshot   uint64    `json:"snapshot"`
	Published  time.Time `json:"published"`
	Policies   int       `json:"policies"` // number of policies of all tiers
	Pods       int       `json:"pods"`
	Namespaces int       `json:"namespaces"`
	Endpoints  int       `json:"endpoints"`

	Tiers map[string]int `json:"tiers"` // the policies of each tier

	// Digest is the digest of the last snapshot that every part of the agent has applied, and DigestSince
	// is since when it is. All nodes that enforce the same policies and namespaces have the same Digest:
	// see policy.Digest.
	Digest      string    `json:"digest,omitempty"`
	DigestSince time.Time `json:"digestSince,omitzero"`
}

// policies counts the policies as text: "3 NetworkPolicies", and ClusterNetworkPolicies with
// their tiers if there are any.
func (e *Enforcing) policies() string {
	admin, baseline := e.Tiers[policy.Admin.String()], e.Tiers[policy.Baseline.String()]
	text := count(e.Policies-admin-baseline, "NetworkPolicy")
	if admin+baseline > 0 {
		text += fmt.Sprintf(", %s (%d Admin, %d Baseline)", count(admin+baseline, "ClusterNetworkPolicy"), admin, baseline)
	}
	return text
}

// Packets counts packets and restarts since the agent started. Only Waiting is a current
// number.
type Packets struct {
	Allowed         uint64            `json:"allowed"`
	Denied          uint64            `json:"denied"`
	Rejected        uint64            `json:"rejected"`        // denied, and answered with a reset or an ICMP error
	Reasons         map[string]uint64 `json:"reasons"`         // verdicts by reason
	Waiting         int               `json:"waiting"`         // packets in the queues now
	Held            uint64            `json:"held"`            // packets held because their pod was not known, including those in Expired
	Expired         uint64            `json:"expired"`         // packets held for the maximum time, without their pod becoming known
	Refused         uint64            `json:"refused"`         // packets not held, or displaced by a packet of another sender, because the table of held packets was full
	Dropped         uint64            `json:"dropped"`         // packets dropped by the kernel because a queue was full
	Overflow        uint64            `json:"overflow"`        // packets judged in the overflow queue because their source was over its limit
	OverflowDropped uint64            `json:"overflowDropped"` // packets dropped by the kernel because the overflow queue was full
	Panics          uint64            `json:"panics"`          // packets denied because judging them panicked
	Restart         uint64            `json:"restarts"`        // restarts of queue workers
	Cached          uint64            `json:"cached"`          // packets answered from the flow cache
}

// Forged counts the frames that were dropped because their source is missing or wrong, or
// because no policy can be applied to them.
type Forged struct {
	Rules   uint64            `json:"rules"`             // frames dropped by iptables: the source address is this node's, or equals the destination
	Reasons map[string]uint64 `json:"reasons,omitempty"` // frames dropped by the guard at pods' interfaces, by reason
	Guarded bool              `json:"guarded"`           // the guard checks frames at pods' interfaces
	Ports   int               `json:"ports"`             // guarded interfaces whose pod is known
	Unknown int               `json:"unknown"`           // guarded interfaces whose pod is not known
}

func (f Forged) text() string {
	text := fmt.Sprintf("%d dropped by the rules", f.Rules)
	if !f.Guarded {
		return text + "; pods' interfaces are not guarded"
	}
	var sum uint64
	for _, n := range f.Reasons {
		sum += n
	}
	return fmt.Sprintf("%s, %d at interfaces; guards %s of known pods, and %d of unknown pods", text, sum, count(f.Ports, "interface"), f.Unknown)
}

// InKernel counts packets that the kernel answered without the agent.
type InKernel struct {
	Open    uint64 `json:"open"` // packets allowed because no policy concerns them
	Allowed uint64 `json:"allowed"`
	Denied  uint64 `json:"denied"` // includes Rejected

	Rejected uint64 `json:"rejected"`
}

// Live counts the verdicts about live connections after changes. Judged is the sum of
// Unchanged, Allowed, Revoked and Restored.
type Live struct {
	Judged    int `json:"judged"`
	Unchanged int `json:"unchanged"`
	Allowed   int `json:"allowed"` // connections marked as allowed for the first time
	Revoked   int `json:"revoked"`
	Restored  int `json:"restored"`
	Unjudged  int `json:"unjudged"` // connections that had no verdict before; counted only in sweeps after a gap (see recordGap in package agent)
}

// Good reports whether the agent is ready and has no problems.
func (s *Status) Good() bool { return s.Ready && len(s.Problems) == 0 }

// WriteText writes the status as text. If all is true, it writes all policies of the status. Otherwise it
// writes a bounded number of those that select pods of the node.
func (s *Status) WriteText(out io.Writer, all bool) error {
	var b strings.Builder
	fmt.Fprintf(&b, "sluice %s, process %d, %s\n\n", s.Version, s.PID, s.headline())
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "follows\t%s\n", strings.Join(s.Sources, ", "))
	if e := s.Enforcing; e != nil {
		fmt.Fprintf(w, "in force\t%s; %s and %s known\n", e.policies(), count(e.Pods, "pod"), count(e.Namespaces, "namespace"))
		if e.Digest != "" {
			fmt.Fprintf(w, "digest\t%s, for %s\n", ShortDigest(e.Digest), s.Ago(e.DigestSince))
		}
		fmt.Fprintf(w, "last change\tsnapshot %d, %s ago\n", e.Snapshot, s.Ago(e.Published))
	}
	fmt.Fprintf(w, "rules\t%s; %s, fail %s, on exit %s, deny with %s; repaired %s, %d failed\n", s.Tables, count(s.Queues, "queue"), s.Fail, s.OnExit, s.DenyWith, count(int(s.Repairs), "time"), s.Failed)
	p := s.Packets
	fmt.Fprintf(w, "packets\t%d allowed, %d denied%s, %d queued; %d answered from the flow cache\n", p.Allowed, p.Denied, rejectedText(p.Rejected), p.Waiting, p.Cached)
	if k := s.Kernel; k != nil {
		fmt.Fprintf(w, "in the kernel\t%s without a policy; by remembered verdicts %d allowed, %d denied%s\n", count(int(k.Open), "packet"), k.Allowed, k.Denied, rejectedText(k.Rejected))
	}
	fmt.Fprintf(w, "forged\t%s\n", s.Forged.text())
	fmt.Fprintf(w, "held for pods\t%d; expired %d; rejected or displaced (no room) %d\n", p.Held, p.Expired, p.Refused)
	fmt.Fprintf(w, "overflow\t%d judged in the overflow queue, from sources over their limit; %d dropped because it was full\n", p.Overflow, p.OverflowDropped)
	fmt.Fprintf(w, "lost\t%d dropped by a full queue, %d denied after a panic; %s of workers\n", p.Dropped, p.Panics, count(int(p.Restart), "restart"))
	fmt.Fprintf(w, "live connections\t%d judged after changes: %d unchanged, %d newly allowed, %d revoked, %d restored; %d had passed unjudged\n",
		s.Live.Judged, s.Live.Unchanged, s.Live.Allowed, s.Live.Revoked, s.Live.Restored, s.Live.Unjudged)
	if text := s.verdictLog(); text != "" {
		fmt.Fprintf(w, "verdict log\t%s\n", text)
	}
	if s.NotRead != "" {
		fmt.Fprintf(w, "not read\t%s\n", s.NotRead)
	}
	for _, watch := range s.Watches {
		fmt.Fprintf(w, "watch %s\t%s\n", watch.Kind, s.watchText(watch))
	}
	_ = w.Flush() // writing to a strings.Builder never fails
	s.writePolicies(&b, all)
	switch {
	case s.Good():
		b.WriteString("\nNo problems.\n")
	case len(s.Problems) > 0:
		b.WriteString("\nProblems:\n")
	}
	for _, p := range s.Problems {
		fmt.Fprintf(&b, "  %s\n", p)
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// rejectedText tells how many of the denied packets were rejected, if any were.
func rejectedText(n uint64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(" (%d of them rejected)", n)
}

// headline summarizes the state in one line.
func (s *Status) headline() string {
	switch {
	case s.Ready:
		return fmt.Sprintf("enforces since %s (%s)", s.Enforcing.Since.Format(time.RFC3339), s.Ago(s.Enforcing.Since))
	case s.Enforcing != nil && !s.Enforcing.Since.IsZero():
		return "enforces, but is not ready: " + s.Unready
	}
	return fmt.Sprintf("started %s ago and not ready: %s", s.Ago(s.Started), s.Unready)
}

// count returns n followed by the noun thing, which is in the plural unless n is 1.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %s", n, plural(thing))
}

func plural(thing string) string {
	if stem, ok := strings.CutSuffix(thing, "y"); ok {
		return stem + "ies"
	}
	return thing + "s"
}

func (s *Status) watchText(w Watch) string {
	switch {
	case w.Broken != "":
		return fmt.Sprintf("broken for %s", s.Ago(w.Since))
	case !w.Synced:
		return "the list has not been read yet"
	case w.Optional && w.Version == "":
		return "not installed"
	}
	text := fmt.Sprintf("connected; %s, %s", count(int(w.Events), "event"), count(int(w.Errors), "error"))
	if w.Version != "" {
		text = w.Version + ", " + text
	}
	return text
}

// Ago returns the time since t in short form, such as "3h2m" or "41s".
func (s *Status) Ago(t time.Time) string {
	d := s.Now.Sub(t)
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", int(d/(24*time.Hour)))
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", int(d/time.Hour), int(d%time.Hour/time.Minute))
	case d >= time.Minute:
		return fmt.Sprintf("%dm%ds", int(d/time.Minute), int(d%time.Minute/time.Second))
	}
	return fmt.Sprintf("%ds", int(d/time.Second))
}
