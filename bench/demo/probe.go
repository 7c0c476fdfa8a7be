package main

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"time"

	"sluice/bench/lab"
	"sluice/bench/running"
)

// networks are what each door is asked by.
var networks = []string{"tcp", "udp"}

const (
	// patience is how long an answer may take. In the lab it takes a few
	// milliseconds; it is below the second after which TCP tries again.
	patience = 700 * time.Millisecond
	// secondThought is for what got neither an answer nor a verdict.
	secondThought = 5 * time.Second
	// logPatience is how long a verdict may take from the agent to its log.
	logPatience = 2 * time.Second
)

// probe is one attempt: a connection or an exchange of datagrams.
type probe struct {
	from    *host
	to      door
	network string
	family  int // index in Addrs
}

func (p probe) String() string {
	family := [...]string{"IPv4", "IPv6"}[p.family]
	return p.from.name + " -> " + p.to.String() + "/" + strings.ToUpper(p.network) + " over " + family
}

// flow is the probe as the agent's log names it.
func (p probe) flow() flow {
	return flow{p.from.Addrs()[p.family], p.to.host.Addrs()[p.family], strings.ToUpper(p.network), p.to.port}
}

// outcome is what came of a probe.
type outcome struct {
	probe
	lab.Result
	denial *verdict // what the agent said, if it denied
}

// reached also looks at who has answered: translation or a mixed-up route would
// show there.
func (o outcome) reached() bool {
	return o.Outcome == lab.Reached && o.By == o.to.host.name
}

// probes are all attempts between all hosts, those excepted whose packets would
// not come by the node.
func (c *cluster) probes() (ps []probe) {
	for _, from := range c.hosts {
		for _, to := range c.doors() {
			if from.away() && to.host.away() {
				continue
			}
			for _, network := range networks {
				for family := range 2 {
					ps = append(ps, probe{from, to, network, family})
				}
			}
		}
	}
	return ps
}

// ask makes all attempts at the same time, and finds the agent's verdict for each
// that fails in its log after a mark. What has failed without a verdict may have
// been lost on a busy machine, and gets a second chance.
func ask(ctx context.Context, probes []probe, a *running.Agent, mark int) []outcome {
	outcomes := attempt(ctx, probes, patience)
	explain(ctx, outcomes, a, mark)
	var again []probe
	var at []int
	for i, o := range outcomes {
		if !o.reached() && o.denial == nil {
			again, at = append(again, o.probe), append(at, i)
		}
	}
	if len(again) == 0 || ctx.Err() != nil {
		return outcomes
	}
	second := attempt(ctx, again, secondThought)
	explain(ctx, second, a, mark)
	for i, o := range second {
		outcomes[at[i]] = o
	}
	return outcomes
}

func attempt(ctx context.Context, probes []probe, timeout time.Duration) []outcome {
	outcomes := make([]outcome, len(probes))
	var wg sync.WaitGroup
	for i, p := range probes {
		wg.Go(func() {
			to := netip.AddrPortFrom(p.to.host.Addrs()[p.family], p.to.port)
			outcomes[i] = outcome{probe: p, Result: p.from.Connect(ctx, p.network, to, timeout)}
		})
	}
	wg.Wait()
	return outcomes
}

// explain adds the agent's verdicts to the attempts that failed. Its log may be
// a little behind.
func explain(ctx context.Context, outcomes []outcome, a *running.Agent, mark int) {
	missing := make(map[flow]*outcome)
	for i := range outcomes {
		if o := &outcomes[i]; !o.reached() {
			missing[o.flow()] = o
		}
	}
	if len(missing) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, logPatience)
	defer cancel()
	// That a verdict is missing at the end shows in the outcome.
	_, _ = a.Await(ctx, mark, func(l running.Line) bool {
		if f, v, ok := denial(l); ok && missing[f] != nil {
			missing[f].denial = &v
			delete(missing, f)
		}
		return len(missing) == 0
	})
}
