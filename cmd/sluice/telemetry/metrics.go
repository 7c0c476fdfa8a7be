package telemetry

import (
	"math"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"sluice/cache"
	"sluice/filter"
)

// number is a metric without labels.
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
	gauge("ready", "1 when the agent has all lists, has its rules in place and can keep both; else 0.",
		func(s *State) float64 { return truth(s.Unready() == "") }),
	gauge("snapshot_age_seconds", "Time since the policies in force were put in force. It grows while nothing changes.",
		func(s *State) float64 { return s.since(s.Published).Seconds() }),
	gauge("snapshot_number", "Number of the snapshot in force: it grows by one with each change.",
		func(s *State) float64 { return s.count(func(s *State) int { return int(s.Snapshot.Number()) }) }),
	gauge("policies", "NetworkPolicies in force.",
		func(s *State) float64 { return s.count(func(s *State) int { return s.Snapshot.Counts().Policies }) }),
	gauge("pods", "Pods that are known, in the whole cluster.",
		func(s *State) float64 { return s.count(func(s *State) int { return s.Snapshot.Counts().Pods }) }),
	gauge("namespaces", "Namespaces that are known.",
		func(s *State) float64 { return s.count(func(s *State) int { return s.Snapshot.Counts().Namespaces }) }),
	gauge("endpoints", "Addresses of pods and of this node that are known.",
		func(s *State) float64 { return s.count(func(s *State) int { return s.Snapshot.Counts().Endpoints }) }),
	gauge("sysctl_problems", "Settings of the kernel by which packets between pods on a bridge of this node pass iptables by.",
		func(s *State) float64 { return float64(s.SysctlProblems) }),
	gauge("pods_outside_ranges", "Addresses of this node's pods that none of its pod ranges holds. A pod that starts at such an address is open until the API tells of it.",
		func(s *State) float64 { return float64(s.PodsOutside) }),

	gauge("flow_cache_entries", "Flows that are remembered with their verdict, by all workers.",
		func(s *State) float64 { return float64(s.Flows.Size) }),
	gauge("queue_waiting", "Packets that wait in the kernel's queues for their verdict.",
		func(s *State) float64 { return float64(s.Waiting) }),
	counter("queue_dropped_total", "Packets that the kernel dropped because a queue or its socket was full.",
		func(s *State) uint64 { return s.Queue.Dropped }),
	counter("crowd_packets_total", "Packets that were judged in the crowd's queue, because their source sends more than its share.",
		func(s *State) uint64 { return s.Queue.Crowd }),
	counter("crowd_dropped_total", "Packets that the kernel dropped because the crowd's queue was full. They are not among sluice_queue_dropped_total.",
		func(s *State) uint64 { return s.Queue.CrowdDropped }),
	counter("queue_late_total", "Verdicts about packets that the kernel had given up.",
		func(s *State) uint64 { return s.Queue.Late }),
	counter("queue_panics_total", "Packets whose judgement failed. They were denied.",
		func(s *State) uint64 { return s.Queue.Panics }),
	counter("queue_restarts_total", "Times that a queue worker failed and was started again.",
		func(s *State) uint64 { return s.Queue.Restarts }),
	gauge("held_packets", "Packets that wait for their pod to become known.",
		func(s *State) float64 { return float64(s.Queue.Holding) }),
	counter("held_packets_total", "Packets that have waited for their pod to become known.",
		func(s *State) uint64 { return s.Queue.Held }),
	counter("held_packets_expired_total", "Packets whose pod did not become known in time. They got what the fail mode says.",
		func(s *State) uint64 { return s.Queue.HoldExpired }),
	counter("held_packets_refused_total", "Packets that found no place to wait for their pod, or lost it to a packet of a sender that has fewer. They got what the fail mode says.",
		func(s *State) uint64 { return s.Queue.HoldRefused }),
	counter("rule_repairs_total", "Times that a table's rules were other than they should be, and were restored.",
		func(s *State) uint64 { return s.Repairs }),
	counter("rule_repair_failures_total", "Attempts to restore the rules of a table that have failed.",
		func(s *State) uint64 { return s.RepairFailures }),
	gauge("rule_tables_failing", "Tables whose rules cannot be kept at present: a repair has failed twice.",
		func(s *State) float64 { return float64(len(s.Failing)) }),
	gauge("http_connections", "Connections of those who ask the agent over HTTP and its socket.",
		func(s *State) float64 { return float64(s.Connections.Open) }),
	counter("http_connections_displaced_total", "Connections that were closed because others needed their place: of the source that had most.",
		func(s *State) uint64 { return s.Connections.Displaced }),
	gauge("rule_tables_reduced", "Tables whose rules were restored without a part that cannot be written at present, such as the calls of the kernel's flow cache.",
		func(s *State) float64 { return float64(len(s.Reduced)) }),
	counter("verdicts_unlogged_total", "Verdicts that were not logged, to keep to the rate.",
		func(s *State) uint64 { return s.Unlogged }),
	counter("queue_overflows_total", "Times that a queue may have been full and let packets pass unjudged (--queue-overflow pass). The kernel does not count the packets.",
		func(s *State) uint64 { return s.Queue.Overflows }),
	counter("connections_unjudged_total", "Live connections that had passed without a verdict, while rules were restored or past a full queue, and were judged afterwards.",
		func(s *State) uint64 { return uint64(s.Rejudged.Unjudged) }),
	{describe("rejudge_seconds_total", "Time spent on judging live connections anew after changes."), prometheus.CounterValue,
		func(s *State) float64 { return s.Rejudged.Duration.Seconds() }},
}

// Metrics with labels.
var (
	buildInfo  = describe("build_info", "1, with the version of the agent and of Go.", "version", "goversion")
	verdicts   = describe("verdicts_total", "Verdicts about packets: one for each new connection that is allowed, and one for each packet of a connection that is denied, repetitions included. The direction is the one that decided: where a rule allowed, which ends were isolated. What the kernel answered by itself has the reason kernel: it remembers verdicts without their reason and direction.", "direction", "verdict", "reason")
	decision   = describe("decision_seconds", "Time from a packet's bytes to its verdict, without the queue. One of 64 is timed.")
	lookups    = describe("flow_cache_lookups_total", "Decisions of the agent by what its flow cache had: a hit, a miss, or a stale verdict that no longer held.", "result")
	inKernel   = describe("kernel_cache_packets_total", "Packets that the kernel answered by itself: open to all because no policy concerns them, or allowed or denied by a verdict that it remembered. They are among sluice_verdicts_total.", "answer")
	unkept     = describe("kernel_cache_failures_total", "Verdicts that the kernel could not be told to remember.")
	forged     = describe("forged_dropped_total", "Frames that were dropped because they do not say, or say wrongly, whose they are, or because no policy can be applied to them: by the rules (rule), or at interfaces, by what was wrong.", "reason")
	guarded    = describe("guarded_interfaces", "Interfaces that are guarded: known to be a pod's, or not known whose.", "pod")
	rejudged   = describe("connections_rejudged_total", "Live connections that were checked after a change, by result: unchanged, allowed (for the first time), revoked or restored. sluice status shows the same numbers.", "result")
	problems   = describe("problems", "What is wrong at present, by what it is about. sluice status tells more.", "kind")
	synced     = describe("watch_synced", "1 when all objects of the kind have come.", "kind")
	broken     = describe("watch_broken", "1 while nothing is heard of the kind. What is known stays in force.", "kind")
	events     = describe("watch_events_total", "Objects that came, changed or went.", "kind")
	restarts   = describe("watch_restarts_total", "Watches that were begun again.", "kind")
	failures   = describe("watch_errors_total", "Requests that failed, and watches that broke off with an error.", "kind")
	withLabels = []*prometheus.Desc{buildInfo, verdicts, decision, lookups, inKernel, unkept, forged, guarded, rejudged, problems, synced, broken, events, restarts, failures}
)

// The labels of verdicts that the kernel gives: it knows neither direction nor reason.
const (
	notKnown = "unknown"
	byKernel = "kernel"
)

// problemKinds have a series each, so that an alert sees them begin. Other kinds have one
// while there are problems of them.
var problemKinds = []string{"policy", "address", "manifest", "watch", "rules", "sysctl", "ranges", "taint", "listen"}

// collector reads a State for each scrape.
type collector struct{ read func() *State }

// Registry gives the metrics of an agent, and those of its process.
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
	for labels, n := range byDirection(&s.Tally.Verdicts) {
		out <- prometheus.MustNewConstMetric(verdicts, prometheus.CounterValue, float64(n), labels.direction, labels.action.String(), labels.reason.String())
	}
	out <- latency(&s.Tally.Latency)
	count := func(d *prometheus.Desc, label string, n uint64) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), label)
	}
	count(lookups, "hit", s.Flows.Hits)
	count(lookups, "miss", s.Flows.Misses)
	count(lookups, "stale", s.Flows.Stale)
	if k := s.Kernel; k != nil {
		// Without these a denial that repeats would count once, however often it does.
		out <- prometheus.MustNewConstMetric(verdicts, prometheus.CounterValue, float64(k.Open+k.Allowed), notKnown, filter.Allow.String(), byKernel)
		out <- prometheus.MustNewConstMetric(verdicts, prometheus.CounterValue, float64(k.Denied), notKnown, filter.Deny.String(), byKernel)
		count(inKernel, "open", k.Open)
		count(inKernel, "allowed", k.Allowed)
		count(inKernel, "denied", k.Denied)
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
		out <- prometheus.MustNewConstMetric(synced, prometheus.GaugeValue, truth(w.Synced), w.Kind)
		out <- prometheus.MustNewConstMetric(broken, prometheus.GaugeValue, truth(w.Broken != ""), w.Kind)
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

// series are the labels of one count of verdicts.
type series struct {
	direction string
	action    filter.Action
	reason    filter.Reason
}

// expected are there from the start, so that the first denial is a rise.
var expected = []series{
	{"none", filter.Allow, filter.NotIsolated},
	{"egress", filter.Allow, filter.RuleAllows},
	{"ingress", filter.Allow, filter.RuleAllows},
	{"egress", filter.Deny, filter.EgressDenied},
	{"ingress", filter.Deny, filter.IngressDenied},
	{"none", filter.Deny, filter.UnknownPod},
	{"none", filter.Deny, filter.Malformed},
}

// byDirection adds up verdicts by the direction that decided.
func byDirection(v *cache.Verdicts) map[series]uint64 {
	sums := make(map[series]uint64)
	for _, s := range expected {
		sums[s] = 0
	}
	for action := range v {
		for reason := range v[action] {
			for sides, n := range v[action][reason] {
				if n > 0 {
					r := filter.Reason(reason)
					sums[series{direction(r, cache.Sides(sides)), filter.Action(action), r}] += n
				}
			}
		}
	}
	return sums
}

// direction is the one that decided.
func direction(r filter.Reason, s cache.Sides) string {
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

// latency makes the histogram of decisions. What is quicker than 2^6 ns is one
// bucket: no decision is.
func latency(l *cache.Latency) prometheus.Metric {
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

// since is how long ago something was; 0 if it has not been.
func (s *State) since(t time.Time) time.Duration {
	if t.IsZero() {
		return 0
	}
	return s.Now.Sub(t)
}

// count asks about the snapshot in force; without one it holds nothing.
func (s *State) count(of func(*State) int) float64 {
	if s.Snapshot == nil {
		return 0
	}
	return float64(of(s))
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
