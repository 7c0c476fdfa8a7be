package main

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"sluice/bench/load"
	"sluice/bench/result"
	"sluice/bench/testbed/agenttest"
	"sluice/filter/event"
)

// extras are the measurements after the loads. Each applies only to some rows.
var extras = []result.Load{
	{Name: "start", Label: "Start of the agent to ready, and its memory then"},
	{Name: "effect", Label: "From the write of a policy to its effect on packets"},
	{Name: "churn", Label: "New TCP connections, 16 clients at once, while policies change"},
	{Name: "flood", Label: "New TCP connections, 1 client, while another pod floods"},
}

// Figures of the extras.
var (
	toReady   = result.Metric{Name: "ready", Unit: "ms", Better: result.Less}
	denyNew   = result.Metric{Name: "deny new", Unit: "ms", Better: result.Less}
	denyLive  = result.Metric{Name: "deny live", Unit: "ms", Better: result.Less}
	allowNew  = result.Metric{Name: "allow new", Unit: "ms", Better: result.Less}
	quietP99  = result.Metric{Name: "p99 quiet", Unit: "µs", Better: result.Less}
	changeP99 = result.Metric{Name: "p99 changing", Unit: "µs", Better: result.Less}
	floodP99  = result.Metric{Name: "p99 flooded", Unit: "µs", Better: result.Less}
	times     = result.Metric{Name: "ratio of p99", Unit: "×", Better: result.Less}
	changes   = result.Metric{Name: "changes", Unit: "/s"}
	floodSent = result.Metric{Name: "flood", Unit: "packets/s"}
	// deniedObserved is the share of a flood's packets that an observer has printed.
	deniedObserved = result.Metric{Name: "denied observed", Unit: "/packet"}
	quietRate      = result.Metric{Name: "connections quiet", Unit: "/s"}
	changeRate     = result.Metric{Name: "connections", Unit: "/s", Better: result.More}
)

// extrasOf measures the selected extras.
func (s *testbed) extrasOf(ctx context.Context, b *bench, r *result.Result) error {
	for _, x := range []struct {
		name string
		run  func(context.Context, *bench, *result.Result) error
	}{{"effect", s.effects}, {"churn", s.churn}, {"flood", s.floods}, {"start", s.starts}} {
		if !b.extras[x.name] {
			continue
		}
		if err := x.run(ctx, b, r); err != nil {
			return err
		}
	}
	return nil
}

// adder returns a function that adds a contender's figures for one extra to the result.
func (s *testbed) adder(r *result.Result, t *contender, name string) func(result.Metric, float64) {
	return func(m result.Metric, v float64) {
		r.Add(result.Key{Scenario: s.Scenario, Row: t.Name, Load: name, Metric: m}, v)
	}
}

// agents returns the contenders with an agent whose policies can be changed.
func (s *testbed) agents() (contenders []*contender) {
	for _, t := range s.contenders {
		if t.agent != nil && t.hasExtras() {
			contenders = append(contenders, t)
		}
	}
	return contenders
}

// unobservedOf returns the contenders whose rows are not observed. The extras about the start of an agent
// and about policies that take effect measure only these.
func unobservedOf(contenders []*contender) []*contender {
	return slices.DeleteFunc(contenders, func(t *contender) bool { return t.observed })
}

// starts measures the start of an agent: it stops the last contender's agent and starts it
// again, several times.
func (s *testbed) starts(ctx context.Context, b *bench, r *result.Result) error {
	agents := unobservedOf(s.agents())
	if len(agents) == 0 {
		return nil
	}
	t := agents[len(agents)-1]
	add := s.adder(r, t, "start")
	for i := range b.rounds {
		if err := ctx.Err(); err != nil {
			return err
		}
		b.progress.step(b.startTime(s.Pods), "%s: start %d of %d", t.Label, i+1, b.rounds)
		err := t.agent.Stop()
		t.agent, t.pid = nil, 0
		if err != nil {
			return err
		}
		began := time.Now()
		if err := s.startAgent(ctx, t); err != nil {
			return err
		}
		add(toReady, millis(time.Since(began)))
		mib, err := rss(t.pid)
		if err != nil {
			return err
		}
		add(resident, mib)
	}
	return nil
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// allowing writes a file with one policy, which lets clients reach a UDP port of the server.
func (s *testbed) allowing(t *contender, name string, number int32) error {
	ports := []networkingv1.NetworkPolicyPort{port(corev1.ProtocolUDP, number)}
	return writeObjects(t.dir, name+".json", policyFor(labNamespace(s.cluster), name, ports))
}

// The times of a probe (see testbed.probe). The client sends datagrams for the time probeTime.
// The policy is written when the time probeBefore has passed. So the policy has the time
// probeTime - probeBefore to take effect.
const (
	probeBefore = 200 * time.Millisecond
	probeTime   = 1200 * time.Millisecond
)

// effects measures the time from the write of a policy's file to its effect on packets. Two
// versions of the file alternately allow and deny the datagrams that a client keeps sending.
func (s *testbed) effects(ctx context.Context, b *bench, r *result.Result) error {
	for round := range b.rounds {
		for _, t := range unobservedOf(s.agents()) {
			if err := ctx.Err(); err != nil {
				return err
			}
			add := s.adder(r, t, "effect")
			b.progress.step(2*probeTime, "%s: effect of a policy, %d of %d", t.Label, round+1, b.rounds)
			allowed, wrote, err := s.probe(t, probePort)
			if err != nil {
				return err
			}
			if first := slices.IndexFunc(allowed.New, func(at int64) bool { return at > wrote }); first >= 0 {
				add(allowNew, millis(time.Duration(allowed.New[first]-wrote)))
			} else {
				r.Note("%s, %s: a policy that allows had no effect within %v", s.Scenario, t.Label, probeTime-probeBefore)
				continue
			}
			denied, wrote, err := s.probe(t, probePort+1)
			if err != nil {
				return err
			}
			for _, of := range []struct {
				m    result.Metric
				seen []int64
			}{{denyNew, denied.New}, {denyLive, denied.Live}} {
				took := time.Duration(0)
				if n := len(of.seen); n > 0 {
					took = max(0, time.Duration(of.seen[n-1]-wrote))
				}
				if took > probeTime-probeBefore-100*time.Millisecond {
					r.Note("%s, %s: %s had no effect within %v", s.Scenario, t.Label, of.m.Name, took)
					continue
				}
				add(of.m, millis(took))
			}
		}
	}
	return nil
}

// probe lets the client of t send datagrams to probePort for the time probeTime. After the time
// probeBefore, probe writes a policy that allows only one port, whose number is the parameter
// "allow". It returns the times at which the answered datagrams were sent (seen), and the time
// of the write (wrote) in Unix nanoseconds.
func (s *testbed) probe(t *contender, allow int32) (seen load.Seen, wrote int64, err error) {
	type answer struct {
		load.Answer
		err error
	}
	answered := make(chan answer, 1)
	to := s.target(t)
	to.Ports = load.Ports{First: probePort}
	go func() {
		a, err := t.traffic.Do(load.Order{Do: "probe", Target: to, For: probeTime})
		answered <- answer{a, err}
	}()
	time.Sleep(probeBefore)
	wrote = time.Now().UnixNano()
	err = s.allowing(t, "effect", allow)
	a := <-answered // wait even after an error, because the driver carries out one load.Order at a time
	if err == nil {
		err = a.err
	}
	return a.Seen, wrote, err
}

// changeEvery is the time between two changes of policy.
const changeEvery = 100 * time.Millisecond

// churn measures connections, alternately while policies do not change and while one policy
// keeps changing. This policy selects the server, so that each change invalidates the
// remembered verdicts about the server.
func (s *testbed) churn(ctx context.Context, b *bench, r *result.Result) error {
	l := loads[1]
	for round := range b.churnRounds {
		for _, t := range s.agents() {
			if err := ctx.Err(); err != nil {
				return err
			}
			add := s.adder(r, t, "churn")
			b.progress.step(2*b.churn, "%s: changes of policy, round %d of %d", t.Label, round+1, b.churnRounds)
			quiet, _, err := s.window(ctx, t, l, b.churn)
			if err != nil {
				return err
			}
			mark := t.agent.Mark()
			changing, stop := context.WithCancel(ctx)
			changed := make(chan error, 1)
			go func() { changed <- s.change(changing, t) }()
			busy, used, err := s.window(ctx, t, l, b.churn)
			stop()
			if e := <-changed; err == nil {
				err = e
			}
			if err != nil {
				return err
			}
			published := t.agent.Since(mark, agenttest.Event(event.Published))
			add(changeP99, float64(busy.P99))
			add(quietP99, float64(quiet.P99))
			add(times, float64(busy.P99)/float64(quiet.P99))
			add(changes, float64(len(published))/busy.Took.Seconds())
			add(changeRate, busy.Rate())
			add(quietRate, quiet.Rate())
			add(queued, float64(used.queued)/float64(busy.Done))
			if t.observed {
				recordObserved(add, l, busy, used)
			}
			add(dropped, float64(used.dropped))
			add(failed, float64(busy.Failed))
			add(late, float64(busy.Late))
		}
	}
	return nil
}

// change writes a new version of a policy every changeEvery, until ctx ends.
func (s *testbed) change(ctx context.Context, t *contender) error {
	tick := time.NewTicker(changeEvery)
	defer tick.Stop()
	for i := int32(0); ; i++ {
		select {
		case <-ctx.Done():
			if err := os.Remove(filepath.Join(t.dir, "churn.json")); err != nil && !os.IsNotExist(err) {
				return fmt.Errorf("remove the policy that changes: %w", err)
			}
			return nil
		case <-tick.C:
		}
		if err := s.allowing(t, "churn", 10000+i%1000); err != nil {
			return err
		}
	}
}

// floods measures one client's connections, alternately without and with a flood: another
// pod on the same node sends first packets of new flows as fast as it can.
func (s *testbed) floods(ctx context.Context, b *bench, r *result.Result) error {
	l := loads[0]
	for round := range b.rounds {
		for i := range s.contenders {
			t := s.contenders[(i+round)%len(s.contenders)]
			if !t.hasExtras() {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			add := s.adder(r, t, "flood")
			b.progress.step(2*b.window+floodLead, "%s: flood, round %d of %d", t.Label, round+1, b.rounds)
			quiet, _, err := s.window(ctx, t, l, b.window)
			if err != nil {
				return err
			}
			flood, busy, used, err := s.flooded(ctx, t, l, b.window)
			if err != nil {
				return err
			}
			if busy.Done == 0 || quiet.Done == 0 { // there is no latency without an answer
				r.Note("%s, %s: beside the flood %d connections were answered and %d were not", s.Scenario, t.Label, busy.Done, busy.Failed)
			} else {
				add(floodP99, float64(busy.P99))
				add(quietP99, float64(quiet.P99))
				add(times, float64(busy.P99)/float64(quiet.P99))
			}
			add(floodSent, flood.Rate())
			if t.observed && busy.Done > 0 {
				recordObserved(add, l, busy, used)
				add(deniedObserved, float64(used.watched.denied)/float64(flood.Done))
			}
			if t.pid != 0 {
				add(dropped, float64(used.dropped))
			}
			add(failed, float64(busy.Failed))
			add(late, float64(busy.Late))
		}
	}
	return nil
}

// floodLead is the time for which a flood runs before the client begins. After this time,
// queues and tables do not fill any further.
const floodLead = 200 * time.Millisecond

// flooded runs a load on a contender while its hostile pod floods the server, the other pods of its
// node, and the whole cluster.
func (s *testbed) flooded(ctx context.Context, t *contender, l loadSpec, during time.Duration) (flood, a load.Answer, used usage, err error) {
	type answer struct {
		load.Answer
		err error
	}
	answered := make(chan answer, 1)
	order := load.Order{Do: "flood", For: during + floodLead, Ranges: []netip.Prefix{
		netip.PrefixFrom(t.server.IPv4, 32), t.node.Pods4, netip.MustParsePrefix("10.1.0.0/16"),
	}}
	seen, err := s.observing(ctx, t, l, func() (load.Answer, error) {
		go func() {
			a, err := t.flood.Do(order)
			answered <- answer{a, err}
		}()
		time.Sleep(floodLead)
		var err error
		a, used, err = s.measure(t, l, during)
		f := <-answered
		flood = f.Answer
		return a, cmp.Or(err, f.err)
	})
	used.watched = seen
	return flood, a, used, err
}
