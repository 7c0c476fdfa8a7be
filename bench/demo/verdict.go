package main

import (
	"net/netip"
	"strings"

	"sluice/bench/running"
	"sluice/filter/event"
)

// flow is a connection as the agent's log names it.
type flow struct {
	src, dst netip.Addr
	proto    string
	port     uint16
}

// verdict is why a flow was denied.
type verdict struct{ reason, policy string }

func (v verdict) String() string {
	if v.policy == "" {
		return v.reason
	}
	return v.reason + ": no rule of " + strings.ReplaceAll(v.policy, ",", " or ") + " allows it"
}

// denial reads a line of the agent's log; ok if it tells of a denial.
func denial(l running.Line) (f flow, v verdict, ok bool) {
	if !l.Is(event.Verdict) || l.Text("verdict") != "deny" {
		return f, v, false
	}
	f.src, _ = netip.ParseAddr(l.Text("src")) // a malformed packet has no addresses
	f.dst, _ = netip.ParseAddr(l.Text("dst"))
	f.proto, f.port = l.Text("proto"), uint16(l.Number("dport"))
	return f, verdict{l.Text("reason"), l.Text("policy")}, true
}
