package main

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"time"

	"sluice/bench/testbed/agenttest"
	"sluice/bench/testbed/lab"
	"sluice/filter/event"
)

// networks are the protocols over which each port is probed.
var networks = []string{"tcp", "udp"}

const (
	// probeTimeout bounds the wait for an attempt that gets neither an answer nor a verdict,
	// because its packet was lost.
	probeTimeout = time.Minute
	// strayInterval is how long the demo still waits after every attempt has an answer or a
	// denial, to see answers to denied attempts. In the lab, an answer takes a few milliseconds.
	strayInterval = 300 * time.Millisecond
)

// probe is one attempt: a connection or an exchange of datagrams.
type probe struct {
	from    *host
	to      serverPort
	network string
	family  int // index in Host.Addrs: 0 is IPv4, 1 is IPv6
}

func (p probe) String() string {
	return p.from.name + " -> " + p.to.String() + "/" + strings.ToUpper(p.network) + " over " + familyNames[p.family]
}

var familyNames = [...]string{"IPv4", "IPv6"}

// flow returns the flow of the probe, as the agent logs it.
func (p probe) flow() flow {
	return flow{p.from.Addrs()[p.family], p.to.host.Addrs()[p.family], strings.ToUpper(p.network), p.to.port}
}

// outcome is the result of a probe.
type outcome struct {
	probe
	lab.Result
	denial *verdict // the agent's verdict; nil unless it denied the probe
}

// reached reports whether the target of the probe has answered. An answer of a different host
// means that the address was translated or that a route is wrong.
func (o outcome) reached() bool {
	return o.Outcome == lab.Reached && o.By == o.to.host.name
}

// probes returns all attempts between all hosts, except those between two outside hosts: their
// packets do not pass the node.
func (c *cluster) probes() (ps []probe) {
	for _, from := range c.hosts {
		for _, to := range c.serverPorts() {
			if from.isOutside() && to.host.isOutside() {
				continue
			}
			for _, network := range networks {
				for _, family := range c.families {
					ps = append(ps, probe{from, to, network, family})
				}
			}
		}
	}
	return ps
}

// probeAll makes all attempts at the same time. It waits until each attempt has an answer, or
// a denial in the agent's log after mark. Then it waits for strayInterval, to see answers that
// should not come.
func probeAll(ctx context.Context, probes []probe, a *agenttest.Agent, mark int) []outcome {
	ctx, stop := context.WithTimeout(ctx, probeTimeout)
	defer stop()
	open := newPendingProbes(probes)
	outcomes := make([]outcome, len(probes))
	var attempts, watch sync.WaitGroup
	for i, p := range probes {
		attempts.Go(func() {
			to := netip.AddrPortFrom(p.to.host.Addrs()[p.family], p.to.port)
			outcomes[i] = outcome{probe: p, Result: p.from.Connect(ctx, p.network, to, probeTimeout)}
			if outcomes[i].reached() {
				open.decide(p.flow(), nil)
			}
		})
	}
	watch.Go(func() {
		// Await returns when ctx or the agent ends. Its error is ignored, because missing
		// denials show in the outcomes.
		defer stop()
		_, _ = a.Await(ctx, mark, func(l agenttest.Line) bool {
			if f, v, ok := denial(l); ok {
				open.decide(f, &v)
			}
			return false
		})
	})
	select {
	case <-open.empty:
		time.Sleep(strayInterval)
	case <-ctx.Done():
	}
	stop()
	attempts.Wait()
	watch.Wait()
	for i := range outcomes {
		if o := &outcomes[i]; !o.reached() {
			o.denial = open.denials[o.flow()]
		}
	}
	return outcomes
}

// pendingProbes tracks the probes. flows holds those that are still pending: neither answered
// nor denied. denials holds the first denial of each denied flow.
type pendingProbes struct {
	mu      sync.Mutex
	flows   map[flow]bool
	denials map[flow]*verdict
	empty   chan struct{} // closed when no attempt is pending
}

func newPendingProbes(probes []probe) *pendingProbes {
	u := &pendingProbes{flows: make(map[flow]bool, len(probes)), denials: make(map[flow]*verdict), empty: make(chan struct{})}
	for _, p := range probes {
		u.flows[p.flow()] = true
	}
	return u
}

// decide records that a flow was answered, or, if v is not nil, denied.
func (u *pendingProbes) decide(f flow, v *verdict) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if v != nil && u.denials[f] == nil {
		u.denials[f] = v
	}
	if u.flows[f] {
		if delete(u.flows, f); len(u.flows) == 0 {
			close(u.empty)
		}
	}
}

// flow identifies a connection by the fields of the agent's log.
type flow struct {
	src, dst netip.Addr
	proto    string
	port     uint16
}

// verdict is the reason why a flow was denied, and the policies that denied it.
type verdict struct{ reason, policy string }

func (v verdict) String() string {
	if v.policy == "" {
		return v.reason
	}
	return v.reason + ": no rule of " + strings.ReplaceAll(v.policy, ",", " or ") + " allows it"
}

// denial returns the flow and the verdict of a line of the agent's log. ok reports whether
// the line is about a denial.
func denial(l agenttest.Line) (f flow, v verdict, ok bool) {
	if !l.Is(event.Verdict) || l.Text("verdict") != "deny" {
		return f, v, false
	}
	f.src, _ = netip.ParseAddr(l.Text("src")) // a malformed packet has no addresses
	f.dst, _ = netip.ParseAddr(l.Text("dst"))
	f.proto, f.port = l.Text("proto"), uint16(l.Number("dport"))
	return f, verdict{l.Text("reason"), l.Text("policy")}, true
}
