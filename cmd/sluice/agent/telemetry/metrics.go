package telemetry

import (
	"math"
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	corev1 "k8s.io/api/core/v1"

	"sluice/cmd/sluice/agent/status"
	"sluice/filter"
	"sluice/filter/engine"
	"sluice/filter/policy"
)

// number is a metric with one value and no labels.
type number struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*State) float64
}

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("sluice_"+name, help, labels, nil)
}

func counter(name, help string, value func(*State) uint64) number {
	return number{describe(name, help), prometheus.CounterValue, func(s *State) float64 { return float64(value(s)) }}
}

func gauge(name, help string, value func(*State) float64) number {
	return number{describe(name, help), prometheus.GaugeValue, value}
}

var numbers = []number{
	gauge("ready", "1 if the agent has read all lists, has its rules in place and can keep both; otherwise 0.",
		func(s *State) float64 { return boolToFloat(s.Unready() == "") }),
	gauge("snapshot_age_seconds", "Time since the snapshot in force was published. It grows while nothing changes.",
		func(s *State) float64 { return s.since(s.Published).Seconds() }),
	gauge("snapshot_number", "Number of the snapshot in force. It grows by one with each change.",
		func(s *State) float64 { return s.count(func(s *State) int { return int(s.Snapshot.Number()) }) }),
	gauge("policies", "Policies in force, of all tiers.",
		func(s *State) float64 { return s.count(func(s *State) int { return s.Snapshot.Counts().Policies }) }),
	gauge("pods", "Known pods of the whole cluster.",
		func(s *State) float64 { return s.count(func(s *State) int { return s.Snapshot.Counts().Pods }) }),
	gauge("namespaces", "Known namespaces.",
		func(s *State) float64 { return s.count(func(s *State) int { return s.Snapshot.Counts().Namespaces }) }),
	gauge("endpoints", "Known addresses of pods and of this node.",
		func(s *State) float64 { return s.count(func(s *State) int { return s.Snapshot.Counts().Endpoints }) }),
	gauge("sysctl_problems", "Settings of the kernel that let packets between pods on a bridge of this node bypass iptables.",
		func(s *State) float64 { return float64(s.SysctlProblems) }),
	gauge("pods_outside_ranges", "Addresses of this node's pods outside of its pod ranges. A pod that starts at such an address is open until the API reports it.",
		func(s *State) float64 { return float64(s.PodsOutside) }),

	gauge("flow_cache_entries", "Flows with a remembered verdict, of all workers.",
		func(s *State) float64 { return float64(s.Flows.Size) }),
	gauge("queue_waiting", "Packets in the kernel's queues that wait for a verdict.",
		func(s *State) float64 { return float64(s.Waiting) }),
	counter("queue_dropped_total", "Packets that the kernel dropped because a queue or its socket was full.",
		func(s *State) uint64 { return s.Queue.Dropped }),
	counter("overflow_queue_packets_total", "Packets that were judged in the overflow queue because their source was over its limit.",
		func(s *State) uint64 { return s.Queue.Overflow }),
	counter("overflow_queue_dropped_total", "Packets that the kernel dropped because the overflow queue was full. sluice_queue_dropped_total does not include them.",
		func(s *State) uint64 { return s.Queue.OverflowDropped }),
	counter("queue_late_total", "Verdicts on packets that the kernel had already dropped.",
		func(s *State) uint64 { return s.Queue.Stale }),
	counter("queue_panics_total", "Packets that were denied because judging them panicked.",
		func(s *State) uint64 { return s.Queue.Panics }),
	counter("queue_restarts_total", "Restarts of queue workers after a failure.",
		func(s *State) uint64 { return s.Queue.Restarts }),
	gauge("held_packets", "Packets that are held until their pod is known.",
		func(s *State) float64 { return float64(s.Queue.Pending) }),
	counter("held_packets_total", "Packets that were held until their pod was known.",
		func(s *State) uint64 { return s.Queue.Held }),
	counter("held_packets_expired_total", "Held packets whose pod did not become known in time. The fail mode decided about them.",
		func(s *State) uint64 { return s.Queue.HoldExpired }),
	counter("held_packets_refused_total", "Packets that were not held, or were released early, because there was no room. The fail mode decided about them.",
		func(s *State) uint64 { return s.Queue.HoldRejected }),
	counter("rule_repairs_total", "Times that the rules of a table had been changed and were restored.",
		func(s *State) uint64 { return s.Repairs }),
	counter("rule_repair_failures_total", "Failed attempts to restore the rules of a table.",
		func(s *State) uint64 { return s.RepairFailures }),
	gauge("rule_tables_failing", "Tables whose rules cannot be kept at present: a repair has failed twice.",
		func(s *State) float64 { return float64(len(s.Failing)) }),
	gauge("http_connections", "Open connections to the agent's HTTP server and socket.",
		func(s *State) float64 { return float64(s.Connections.Open) }),
	counter("http_connections_displaced_total", "Connections that were closed to make room for others. They belonged to the source with the most connections.",
		func(s *State) uint64 { return s.Connections.Displaced }),
	gauge("rule_tables_reduced", "Tables whose rules lack a part that cannot be written at present, such as the calls of the kernel's flow cache.",
		func(s *State) float64 { return float64(len(s.Reduced)) }),
	gauge("nodes", "Known Nodes of the cluster whose operating system is Linux, by their label kubernetes.io/os. 0 without an API server.",
		func(s *State) float64 { return s.count(linuxNodes) }),
	counter("flow_records_total", "Flows that were recorded for those who watch them: sluice observe, Hubble's API and the log of verdicts. Nothing is recorded while nothing watches.",
		func(s *State) uint64 { return s.FlowRecords }),
	counter("flow_records_left_out_total", "Flows that something watched and did not get: beyond the rate limits, or because it read too slowly.",
		func(s *State) uint64 { return s.FlowsLeftOut }),
	counter("verdicts_unlogged_total", "Verdicts that were not logged because of the rate limit.",
		func(s *State) uint64 { return s.Unlogged }),
	counter("queue_overflows_total", "Times that a queue may have been full and let packets pass unjudged (--queue-overflow pass). The kernel does not count these packets.",
		func(s *State) uint64 { return s.Queue.Full }),
	counter("connections_unjudged_total", "Live connections that had passed without a verdict, while rules were missing or a queue was full, and were judged afterwards.",
		func(s *State) uint64 { return uint64(s.Rejudged.Unjudged) }),
	{describe("rejudge_seconds_total", "Time spent on judging live connections after changes."), prometheus.CounterValue,
		func(s *State) float64 { return s.Rejudged.Duration.Seconds() }},
}

// Metrics with labels.
var (
	buildInfo  = describe("build_info", "1, with the versions of the agent and of Go.", "version", "goversion")
	verdicts   = describe("verdicts_total", "Verdicts of the agent and of the kernel's flow cache: in general one for each connection that is allowed, and one for each packet that is denied. The reason kernel means that the kernel decided, and that neither reason nor direction is known.", "direction", "verdict", "reason")
	rejects    = describe("rejected_total", "Denied packets that were rejected: their sender got a TCP reset or an ICMP error, as far as the kernel sends one. sluice_verdicts_total includes them, with the verdict deny. The verdict is of the agent, or one that the kernel remembers.", "by")
	digest     = describe("policies_digest", "The first 12 digits of the digest in sluice status, as a number: it identifies the policies and namespaces in force, and is equal on all nodes that enforce the same ones. There is no series before the first snapshot.")
	tiers      = describe("tier_policies", "Policies in force, by tier: Admin and Baseline for ClusterNetworkPolicies, NetworkPolicy for the others.", "tier")
	byTier     = describe("tier_denied_total", "Denied packets by the tier that denied them. sluice_verdicts_total includes them. Denials of the kernel's flow cache are included, except those with the reason kernel.", "tier")
	byPolicy   = describe("policy_denied_total", "The packets of sluice_tier_denied_total by the policy that denied them: of a ClusterNetworkPolicy with the rule that denied, as its field and its name; of NetworkPolicies without one. If several NetworkPolicies isolate a pod, a packet counts for each of them. A policy has no series before its first denial and after its deletion. At most 1,000 policies have series, with 4,000 rules at most; all others count as the policy (other).", "tier", "policy", "direction", "rule", "rule_name")
	decision   = describe("decision_seconds", "Time from the bytes of a packet to its verdict, without the queue. One packet of 64 is timed.")
	lookups    = describe("flow_cache_lookups_total", "Lookups in the agent's flow cache: a hit or a miss.", "result")
	inKernel   = describe("kernel_cache_packets_total", "Packets that the kernel answered by itself: open because no policy concerns them, or allowed, denied (dropped) or rejected by a remembered verdict. sluice_verdicts_total includes them.", "answer")
	unkept     = describe("kernel_cache_failures_total", "Verdicts that could not be stored in the kernel.")
	forged     = describe("forged_dropped_total", "Frames that were dropped because their source is missing or wrong, or because no policy can be applied to them: by the iptables rules (reason rule), or at interfaces (all other reasons).", "reason")
	guarded    = describe("guarded_interfaces", "Guarded interfaces, by whether their pod is known or unknown.", "pod")
	rejudged   = describe("connections_rejudged_total", "Live connections that were judged after a change, by result: unchanged, allowed (for the first time), revoked or restored. sluice status shows the same numbers.", "result")
	problems   = describe("problems", "Problems at present, by kind. sluice status has the details.", "kind")
	synced     = describe("watch_synced", "1 if the list of the kind has been read.", "kind")
	broken     = describe("watch_broken", "1 while the watch of the kind is broken. What is known stays in force.", "kind")
	events     = describe("watch_events_total", "Objects that were added, changed or deleted.", "kind")
	restarts   = describe("watch_restarts_total", "Watches that were started again.", "kind")
	failures   = describe("watch_errors_total", "Requests that failed, and watches that ended with an error.", "kind")
	withLabels = []*prometheus.Desc{buildInfo, digest, verdicts, rejects, tiers, byTier, byPolicy, decision, lookups, inKernel, unkept, forged, guarded, rejudged, problems, synced, broken, events, restarts, failures}
)

// The kernel's flow cache does not store the direction and the reason of a verdict. So the packets that
// it allows have these values of the labels "direction" (notKnown) and "reason" (byKernel). The packets
// that it denies have them only if no verdict can be attributed to them: see State.KernelUnknown.
const (
	notKnown = "unknown"
	byKernel = "kernel"
	byAgent  = "agent"
)

// problemKinds are the kinds of problems that have a series from the start, so that an alert
// sees the first problem as an increase. Any other kind has a series only while it has
// problems.
var problemKinds = []string{"policy", "address", "manifest", "watch", "rules", "sysctl", "ranges", "taint", "listen", "hubble"}

// collector reads a State for each scrape.
type collector struct{ read func() *State }

// Registry returns the metrics of an agent and of its process.
func Registry(read func() *State) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collector{read}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, n := range numbers {
		out <- n.desc
	}
	for _, d := range withLabels {
		out <- d
	}
}

func (c collector) Collect(out chan<- prometheus.Metric) {
	s := c.read()
	for _, n := range numbers {
		out <- prometheus.MustNewConstMetric(n.desc, n.kind, n.value(s))
	}
	out <- prometheus.MustNewConstMetric(buildInfo, prometheus.GaugeValue, 1, s.Version, runtime.Version())
	if n, ok := digestNumber(s.Digest); ok {
		out <- prometheus.MustNewConstMetric(digest, prometheus.GaugeValue, n)
	}
	denied := s.denied()
	for labels, n := range byDirection(&denied.Verdicts) {
		out <- prometheus.MustNewConstMetric(verdicts, prometheus.CounterValue, float64(n), labels.direction, labels.action.String(), labels.reason.String())
	}
	for t := policy.Admin; t < filter.NumTiers; t++ {
		n := s.count(func(s *State) int { return s.Snapshot.Counts().Tiers[t] })
		out <- prometheus.MustNewConstMetric(tiers, prometheus.GaugeValue, n, t.String())
	}
	collectDenials(out, &denied.Denials)
	out <- latency(&s.Tally.Latency)
	count := func(d *prometheus.Desc, label string, n uint64) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), label)
	}
	count(rejects, byAgent, s.Tally.Rejected)
	count(lookups, "hit", s.Flows.Hits)
	count(lookups, "miss", s.Flows.Misses)
	if k := s.Kernel; k != nil {
		// The agent counts verdicts about queued packets. The kernel counts the packets that its
		// flow cache answered, which were not queued. So no packet is in both counts.
		out <- prometheus.MustNewConstMetric(verdicts, prometheus.CounterValue, float64(k.Open+k.Allowed), notKnown, filter.Allow.String(), byKernel)
		out <- prometheus.MustNewConstMetric(verdicts, prometheus.CounterValue, float64(s.KernelUnknown), notKnown, filter.Deny.String(), byKernel)
		count(inKernel, "open", k.Open)
		count(inKernel, "allowed", k.Allowed)
		count(inKernel, "denied", k.Denied)
		count(inKernel, "rejected", k.Rejected)
		count(rejects, byKernel, k.Rejected)
		out <- prometheus.MustNewConstMetric(unkept, prometheus.CounterValue, float64(k.Failed))
	}
	count(forged, "rule", s.Forged)
	if g := s.Guard; g != nil {
		for reason, n := range g.Dropped {
			count(forged, reason, n)
		}
		out <- prometheus.MustNewConstMetric(guarded, prometheus.GaugeValue, float64(g.Ports), "known")
		out <- prometheus.MustNewConstMetric(guarded, prometheus.GaugeValue, float64(g.Unknown), "unknown")
	}
	live := liveOf(s.Rejudged)
	count(rejudged, "unchanged", uint64(live.Unchanged))
	count(rejudged, "allowed", uint64(live.Allowed))
	count(rejudged, "revoked", uint64(live.Revoked))
	count(rejudged, "restored", uint64(live.Restored))
	for _, w := range s.Watches {
		out <- prometheus.MustNewConstMetric(synced, prometheus.GaugeValue, boolToFloat(w.Synced), w.Kind)
		out <- prometheus.MustNewConstMetric(broken, prometheus.GaugeValue, boolToFloat(w.Broken != ""), w.Kind)
		count(events, w.Kind, w.Events)
		count(restarts, w.Kind, w.Restarts)
		count(failures, w.Kind, w.Errors)
	}
	found := make(map[string]int)
	for _, kind := range problemKinds {
		found[kind] = 0
	}
	for _, p := range s.AllProblems() {
		found[p.Kind]++
	}
	for kind, n := range found {
		out <- prometheus.MustNewConstMetric(problems, prometheus.GaugeValue, float64(n), kind)
	}
}

// digestNumber returns the digits of a digest that sluice status shows, as a number: a float64 holds them
// exactly. As a label, the digits would make a new series with each change.
func digestNumber(digest string) (n float64, ok bool) {
	bits, err := strconv.ParseUint(status.ShortDigest(digest), 16, 64)
	return float64(bits), err == nil
}

// linuxNodes returns the number of Nodes that can have an agent. It counts a Node without the label of the
// operating system, because old kubelets do not set it.
func linuxNodes(s *State) (n int) {
	for node := range s.Snapshot.Nodes() {
		if os := node.Labels[corev1.LabelOSStable]; os == "" || os == "linux" {
			n++
		}
	}
	return n
}

// denied returns the sum of the agent's verdicts and those denials of the kernel that have a verdict.
func (s *State) denied() *engine.Tally {
	var sum engine.Tally
	sum.Add(&s.Tally)
	sum.Add(&s.KernelDenied)
	return &sum
}

// collectDenials collects the denials by tier and by policy.
func collectDenials(out chan<- prometheus.Metric, denials *engine.Denials) {
	for t := policy.Admin; t < filter.NumTiers; t++ {
		out <- prometheus.MustNewConstMetric(byTier, prometheus.CounterValue, float64(denials.ByTier[t]), t.String())
	}
	for d, n := range denials.ByPolicy {
		out <- prometheus.MustNewConstMetric(byPolicy, prometheus.CounterValue, float64(n), d.Tier.String(), d.Policy, d.Direction.String(), d.Rule, d.Name)
	}
}

// series is a set of labels of sluice_verdicts_total.
type series struct {
	direction string
	action    filter.Action
	reason    filter.Reason
}

// initialSeries are present from the start, so that an alert sees the first denial as an
// increase.
var initialSeries = []series{
	{"none", filter.Allow, filter.NotIsolated},
	{"egress", filter.Allow, filter.RuleAllows},
	{"ingress", filter.Allow, filter.RuleAllows},
	{"egress", filter.Deny, filter.EgressDenied},
	{"ingress", filter.Deny, filter.IngressDenied},
	{"none", filter.Deny, filter.PodNotKnown},
	{"none", filter.Deny, filter.NamespaceNotKnown},
	{"none", filter.Deny, filter.Malformed},
}

// byDirection sums up the verdicts of each series.
func byDirection(v *engine.Verdicts) map[series]uint64 {
	sums := make(map[series]uint64)
	for _, s := range initialSeries {
		sums[s] = 0
	}
	for action := range v {
		for reason := range v[action] {
			for sides, n := range v[action][reason] {
				if n > 0 {
					r := filter.Reason(reason)
					sums[series{direction(r, engine.Sides(sides)), filter.Action(action), r}] += n
				}
			}
		}
	}
	return sums
}

// direction returns the value of the label "direction". If policies deny the flow, the value
// is the direction that denies it: "egress" or "ingress". Otherwise the value names the
// directions in which policies isolate an end: "egress", "ingress", "both" or "none".
func direction(r filter.Reason, s engine.Sides) string {
	egress, ingress := s.Has(filter.Egress), s.Has(filter.Ingress)
	switch {
	case r == filter.EgressDenied:
		return filter.Egress.String()
	case r == filter.IngressDenied:
		return filter.Ingress.String()
	case egress && ingress:
		return "both"
	case egress:
		return filter.Egress.String()
	case ingress:
		return filter.Ingress.String()
	}
	return "none"
}

// latency returns the histogram of decisions. Times below 2^6 ns share one bucket, because no
// decision is that fast.
func latency(l *engine.Latency) prometheus.Metric {
	const first = 6
	buckets := make(map[float64]uint64)
	var sum uint64
	for i, n := range l.Buckets {
		sum += n
		if i >= first && i < len(l.Buckets)-1 {
			buckets[math.Ldexp(1e-9, i)] = sum
		}
	}
	return prometheus.MustNewConstHistogram(decision, sum, l.Sum.Seconds(), buckets)
}

// since returns the time since t, or 0 if t is zero.
func (s *State) since(t time.Time) time.Duration {
	if t.IsZero() {
		return 0
	}
	return s.Now.Sub(t)
}

// count returns the result of the function "of", which may use the snapshot. Without a
// snapshot, it returns 0.
func (s *State) count(of func(*State) int) float64 {
	if s.Snapshot == nil {
		return 0
	}
	return float64(of(s))
}

func boolToFloat(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
