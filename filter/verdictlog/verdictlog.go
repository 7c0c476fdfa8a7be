// Package verdictlog logs a line for each verdict, to show why a connection was denied.
//
// The rate limit applies before anything is looked up or formatted, so that a flood of
// denied packets costs little. Suppressed lines are counted, and their number is logged.
package verdictlog

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"sluice/filter"
	"sluice/filter/event"
	"sluice/filter/packet"
	"sluice/filter/policy"
)

// Level selects the verdicts that are logged.
type Level string

// The levels, as the flag accepts them.
const (
	None   Level = "none"
	Denied Level = "denied"
	All    Level = "all"
)

// ParseLevel returns the level with the given name, or an error that lists the valid ones.
func ParseLevel(text string) (Level, error) {
	switch l := Level(text); l {
	case None, Denied, All:
		return l, nil
	}
	return None, fmt.Errorf("%q is not a level: give none, denied or all", text)
}

// DefaultRate is the default limit in lines per second.
const DefaultRate = 100

// summaryInterval is the time between two reports of the number of suppressed lines.
const summaryInterval = 5 * time.Second

// Log logs verdicts. It is safe for concurrent use.
type Log struct {
	level      Level
	log        *slog.Logger
	limit      *rate.Limiter
	names      *policy.Published
	suppressed atomic.Uint64
	total      atomic.Uint64
}

// New returns a log of the verdicts of a level. It logs at most perSecond lines a second,
// with a burst of as many; 0 disables the limit. It takes the names of pods from
// the snapshot in force.
func New(level Level, perSecond int, names *policy.Published, logger *slog.Logger) *Log {
	limit := rate.NewLimiter(rate.Inf, 0)
	if perSecond > 0 {
		limit = rate.NewLimiter(rate.Limit(perSecond), perSecond)
	}
	return &Log{level: level, log: logger, limit: limit, names: names}
}

// Observe logs one verdict, if the level and the rate allow it.
func (l *Log) Observe(p packet.Packet, v filter.Verdict) {
	if l.level == None || l.level == Denied && v.Action == filter.Allow {
		return
	}
	if !l.limit.Allow() {
		l.suppressed.Add(1)
		l.total.Add(1)
		return
	}
	l.log.LogAttrs(context.Background(), slog.LevelInfo, "verdict", l.attrs(p, v)...)
}

// Suppressed returns the number of lines that the rate limit has suppressed.
func (l *Log) Suppressed() uint64 { return l.total.Load() }

// Run logs the number of suppressed lines every few seconds, until ctx ends.
func (l *Log) Run(ctx context.Context) {
	tick := time.NewTicker(summaryInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			l.reportSuppressed()
			return
		case <-tick.C:
			l.reportSuppressed()
		}
	}
}

func (l *Log) reportSuppressed() {
	if n := l.suppressed.Swap(0); n > 0 {
		l.log.Warn("verdicts not logged, to keep to the rate", "suppressed", n, "per_second", float64(l.limit.Limit()))
	}
}

// attrs returns the attributes of a line: the event, the verdict, the reason, the flow, and
// what appendWhy appends. A line about a malformed packet has only the first three.
func (l *Log) attrs(p packet.Packet, v filter.Verdict) []slog.Attr {
	attrs := make([]slog.Attr, 0, 24)
	attrs = append(attrs, event.Verdict.Attr(), slog.String("verdict", v.Action.String()), slog.String("reason", v.Reason.String()))
	if v.Reject {
		attrs = append(attrs, slog.String("answer", filter.Reject.String()))
	}
	if v.Reason == filter.Malformed && (p.Key.Src == [16]byte{} || p.Key.Dst == [16]byte{}) {
		return attrs // the addresses are not known
	}
	src, dst := p.Key.SrcAddr(), p.Key.DstAddr()
	attrs = append(attrs, slog.String("src", src.String()), slog.String("dst", dst.String()), slog.String("proto", p.Key.Protocol.String()))
	switch p.Key.Transport {
	case filter.Ported:
		attrs = append(attrs, slog.Int("sport", int(p.SrcPort)), slog.Int("dport", int(p.Key.Port)))
	case filter.Opaque:
		attrs = append(attrs, slog.String("transport", "opaque"))
	}
	if s := l.names.Snapshot(); s != nil {
		attrs = appendName(attrs, "from", s, src)
		attrs = appendName(attrs, "to", s, dst)
	}
	return appendWhy(attrs, v)
}

func appendName(attrs []slog.Attr, key string, s *policy.Snapshot, addr netip.Addr) []slog.Attr {
	if e := s.Endpoint(addr); e != nil {
		return append(attrs, slog.String(key, e.String()))
	}
	return attrs
}

// appendWhy appends the cause of a verdict: for a denial, the direction and all policies
// that isolate the pod in this direction; for an allowed flow, the rule of each isolated end.
func appendWhy(attrs []slog.Attr, v filter.Verdict) []slog.Attr {
	switch v.Reason {
	case filter.EgressDenied:
		return appendSide(attrs, "", filter.Egress, v.Egress)
	case filter.IngressDenied:
		return appendSide(attrs, "", filter.Ingress, v.Ingress)
	}
	if v.Ingress == (filter.Side{}) {
		return appendSide(attrs, "", filter.Egress, v.Egress)
	}
	attrs = appendSide(attrs, "", filter.Ingress, v.Ingress)
	return appendSide(attrs, "egress_", filter.Egress, v.Egress)
}

func appendSide(attrs []slog.Attr, prefix string, d filter.Direction, s filter.Side) []slog.Attr {
	if s == (filter.Side{}) {
		return attrs
	}
	if prefix == "" {
		attrs = append(attrs, slog.String("direction", d.String()))
	}
	switch r := s.Rule; {
	case r != nil:
		attrs = append(attrs, slog.String(prefix+"policy", r.PolicyTitle()), slog.String(prefix+"tier", r.Tier.String()), slog.String(prefix+"rule", r.Field()))
		if r.Name != "" {
			attrs = append(attrs, slog.String(prefix+"rule_name", r.Name))
		}
		attrs = append(attrs, slog.String(prefix+"action", r.Action.String()))
	case s.Isolation != nil:
		attrs = append(attrs, slog.String(prefix+"policy", strings.Join(s.Isolation.Policies, ",")), slog.String(prefix+"tier", filter.NetworkPolicyTier.String()))
	}
	if s.Passed != nil {
		attrs = append(attrs, slog.String(prefix+"passed", passed(s.Passed)))
	}
	return attrs
}

// passed names a rule that left a flow to the next tiers, as in "admin/platform ingress[1]
// to-teams".
func passed(r *filter.Rule) string {
	return strings.TrimSuffix(r.PolicyTitle()+" "+r.Field()+" "+r.Name, " ")
}
