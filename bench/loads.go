package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"sluice/bench/load"
	"sluice/bench/result"
)

// loadSpec is a load that runs on each contender for a window of time in each round.
type loadSpec struct {
	result.Load
	do      string // see load.Order.Do
	clients int
	seen    bool // the load has a single connection, and thus a single key; it skips rows with the flag row.fresh
}

var loads = []loadSpec{
	{Load: result.Load{Name: "tcp-1", Label: "New TCP connections, 1 client"}, do: "tcp", clients: 1},
	{Load: result.Load{Name: "tcp-16", Label: "New TCP connections, 16 clients at once"}, do: "tcp", clients: 16},
	{Load: result.Load{Name: "tcp-64", Label: "New TCP connections, 64 clients at once"}, do: "tcp", clients: 64},
	{Load: result.Load{Name: "udp-16", Label: "UDP requests from new sockets, 16 clients at once"}, do: "udp", clients: 16},
	{Load: result.Load{Name: "stream", Label: "One TCP stream"}, do: "stream", seen: true},
}

// Figures of the loads.
var (
	connections  = result.Metric{Name: "connections", Unit: "/s", Better: result.More}
	requests     = result.Metric{Name: "requests", Unit: "/s", Better: result.More}
	throughput   = result.Metric{Name: "throughput", Unit: "Gbit/s", Better: result.More}
	p50          = result.Metric{Name: "p50", Unit: "µs", Better: result.Less}
	p99          = result.Metric{Name: "p99", Unit: "µs", Better: result.Less}
	p999         = result.Metric{Name: "p99.9", Unit: "µs", Better: result.Less}
	agentCPU     = result.Metric{Name: "agent CPU", Unit: "µs/conn", Better: result.Less}
	agentPerCPU  = result.Metric{Name: "agent CPU", Unit: "µs/queued", Better: result.Less}
	machineCPU   = result.Metric{Name: "all CPU", Unit: "µs/conn", Better: result.Less}
	queued       = result.Metric{Name: "queued", Unit: "/conn"}
	dropped      = result.Metric{Name: "dropped", Better: result.Less}
	failed       = result.Metric{Name: "failed", Better: result.Less}
	late         = result.Metric{Name: "late", Better: result.Less}
	resident     = result.Metric{Name: "agent RSS", Unit: "MiB", Better: result.Less}
	recordCPU    = result.Metric{Name: "agent CPU", Unit: "µs/record", Better: result.Less}
	observerCPU  = result.Metric{Name: "observer CPU", Unit: "µs/conn", Better: result.Less}
	observed     = result.Metric{Name: "observed", Unit: "/conn"}
	endsObserved = result.Metric{Name: "ends observed", Unit: "/conn"}
	leftOut      = result.Metric{Name: "left out", Unit: "/conn"}
	unobserved   = result.Metric{Name: "not observed", Better: result.Less}
	streamedCPU  = result.Metric{Name: "all CPU", Unit: "s/GB", Better: result.Less}
	streamQueued = result.Metric{Name: "queued"}
	// queuedPackets counts the queued packets of rows whose verdicts the kernel knows.
	queuedPackets = result.Metric{Name: "queued packets", Better: result.Less}
)

// target returns the server and ports to which a contender's clients connect.
func (s *testbed) target(t *contender) load.Target {
	if t.ends != fewPods {
		return t.between()
	}
	to := load.Target{To: t.server.IPv4, From: t.sources, Ports: load.Ports{First: seenPort}}
	if t.fresh {
		to.Ports = freshPorts(s.Scenario)
	}
	return to
}

// window runs a load on a contender for the given time. It returns the result of the load
// and its cost. If the row is observed, an observer runs meanwhile.
func (s *testbed) window(ctx context.Context, t *contender, l loadSpec, during time.Duration) (a load.Answer, used usage, err error) {
	seen, err := s.observing(ctx, t, l, func() (load.Answer, error) {
		var err error
		a, used, err = s.measure(t, l, during)
		return a, err
	})
	used.watched = seen
	return a, used, err
}

// measure runs a load on a contender for the given time. It returns the result of the load
// and its cost.
func (s *testbed) measure(t *contender, l loadSpec, during time.Duration) (a load.Answer, used usage, err error) {
	before, err := t.usage()
	if err != nil {
		return a, used, err
	}
	o := load.Order{Do: l.do, Target: s.target(t), Clients: l.clients, For: during}
	if l.do == "stream" {
		o.Ports = load.Ports{First: streamPort}
	}
	if a, err = t.traffic.Do(o); err != nil {
		return a, used, err
	}
	after, err := t.usage()
	if err != nil {
		return a, used, err
	}
	return a, usage{
		agent: after.agent - before.agent, machine: after.machine - before.machine,
		queued: after.queued - before.queued, dropped: after.dropped - before.dropped,
	}, nil
}

// record adds a window's figures to the result.
func (s *testbed) record(r *result.Result, t *contender, l loadSpec, a load.Answer, used usage) error {
	add := func(m result.Metric, v float64) {
		r.Add(result.Key{Scenario: s.Scenario, Row: t.Name, Load: l.Name, Metric: m}, v)
	}
	if l.do == "stream" {
		add(throughput, float64(a.Bytes)*8/1e9/a.Took.Seconds())
		add(streamedCPU, used.machine.Seconds()/(float64(a.Bytes)/1e9))
		add(streamQueued, float64(used.queued))
		return nil
	}
	if a.Done == 0 {
		return fmt.Errorf("%s, %s: not one of %d attempts was answered", t.Label, l.Label, a.Failed)
	}
	each := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 / float64(a.Done) }
	add(map[string]result.Metric{"tcp": connections, "udp": requests}[l.do], a.Rate())
	add(p50, float64(a.P50))
	add(p99, float64(a.P99))
	add(p999, float64(a.P999))
	if t.pid != 0 {
		add(agentCPU, each(used.agent))
		if share := float64(used.queued) / float64(a.Done); share > 0.5 {
			add(agentPerCPU, each(used.agent)/share)
		}
	}
	add(machineCPU, each(used.machine))
	if t.pid != 0 {
		add(queued, float64(used.queued)/float64(a.Done))
		add(dropped, float64(used.dropped))
		if t.ends != fewPods {
			add(queuedPackets, float64(used.queued))
		}
	}
	if t.observed {
		recordObserved(add, l, a, used)
	}
	add(failed, float64(a.Failed))
	add(late, float64(a.Late))
	if t.agent == nil {
		return nil
	}
	mib, err := rss(t.pid)
	add(resident, mib)
	return err
}

// recordObserved adds the figures about the observer during a window to the result.
func recordObserved(add func(result.Metric, float64), l loadSpec, a load.Answer, used usage) {
	seen, done := used.watched, float64(a.Done)
	if n := seen.records(); n > 0 {
		add(recordCPU, float64(used.agent.Nanoseconds())/1000/float64(n))
	}
	add(observerCPU, float64(seen.cpu.Nanoseconds())/1000/done)
	add(observed, float64(seen.allowed)/done)
	add(endsObserved, float64(seen.ended)/done)
	add(leftOut, float64(seen.leftOut)/done)
	want := l.observable(a)
	add(unobserved, float64(want-min(want, seen.seen())))
}

// selectLoads returns the loads and extras with the given names, or all of them if there are
// no names.
func selectLoads(names []string) (selected []loadSpec, extra map[string]bool, err error) {
	extra = make(map[string]bool)
	known := make([]string, 0, len(loads)+len(extras))
	for _, l := range loads {
		known = append(known, l.Name)
		if len(names) == 0 || slices.Contains(names, l.Name) {
			selected = append(selected, l)
		}
	}
	for _, x := range extras {
		known = append(known, x.Name)
		extra[x.Name] = len(names) == 0 || slices.Contains(names, x.Name)
	}
	for _, n := range names {
		if !slices.Contains(known, n) {
			return nil, nil, fmt.Errorf("there is no load %q: give some of %s", n, strings.Join(known, ", "))
		}
	}
	return selected, extra, nil
}

// takesPart reports whether the load runs on a row.
func (l loadSpec) takesPart(r row) bool {
	if r.ends != fewPods {
		return l.do == "tcp"
	}
	return !l.seen || !r.fresh
}

// warmUpTime is the duration of a load that runs on each contender before the first round.
// After it, heaps and tables have grown, and the agents have seen the keys of all loads that use
// the same keys again and again. On a slow machine, it is repeated until warmUpCount connections
// have been made: then the agents have seen visitors of all kinds (see visitorBlocks).
const (
	warmUpTime  = 200 * time.Millisecond
	warmUpCount = 1024
)

// warmUp runs a load on a contender before the first round. An agent must decide about some of its
// connections: if it never does, it does not enforce the policies, and all figures are wrong.
func (s *testbed) warmUp(ctx context.Context, t *contender) error {
	before, err := t.usage()
	if err != nil {
		return err
	}
	for made := uint64(0); made < warmUpCount; {
		a, _, err := s.window(ctx, t, loads[1], warmUpTime)
		if err == nil && a.Done == 0 {
			err = fmt.Errorf("%s: not one of %d connections was answered before the first round", t.Label, a.Failed)
		}
		if err != nil {
			return err
		}
		made += a.Done
	}
	after, err := t.usage()
	if err == nil && t.pid != 0 && after.queued == before.queued {
		err = fmt.Errorf("%s: no packet was queued before the first round: nothing is enforced", t.Label)
	}
	return err
}

// rounds runs, in each round, each load on one contender after the other.
func (s *testbed) rounds(ctx context.Context, b *bench, r *result.Result) error {
	if len(b.loads) == 0 {
		return nil
	}
	for _, t := range s.contenders {
		if err := s.warmUp(ctx, t); err != nil {
			return err
		}
	}
	// The order of the contenders is random. In a fixed order, a contender would always find
	// the caches and tables as the same predecessor left them. The seed is fixed, so that
	// runs are alike.
	random := rand.New(rand.NewPCG(1, 1))
	for round := range b.rounds {
		for _, l := range b.loads {
			for _, i := range random.Perm(len(s.contenders)) {
				t := s.contenders[i]
				if !l.takesPart(t.row) {
					continue
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				b.progress.step(b.window, "%s: %s, round %d of %d", t.Label, l.Name, round+1, b.rounds)
				a, used, err := s.window(ctx, t, l, b.window)
				if err == nil {
					err = s.record(r, t, l, a, used)
				}
				if err != nil {
					return err
				}
			}
		}
	}
	return nil
}
