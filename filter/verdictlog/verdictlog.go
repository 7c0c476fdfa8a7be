// Package verdictlog logs a line for each verdict, to show why a connection was denied.
//
// The rate limit applies before anything is looked up or formatted, so that a flood of
// denied packets costs little. Suppressed lines are counted, and their number is logged.
package verdictlog

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"sluice/filter"
	"sluice/filter/event"
	"sluice/filter/flow"
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

// Log logs the verdicts of the agent and those of the kernel: it reads both from a flow.Log.
type Log struct {
	level      Level
	log        *slog.Logger
	limit      *rate.Limiter
	watcher    *flow.Watcher // nil with level None
	suppressed atomic.Uint64
	total      atomic.Uint64
}

// New returns a log of the verdicts of a level. It logs at most perSecond lines a second,
// with a burst of as many; 0 disables the limit. Unless the level is None, it watches flows from now
// on, and the caller must call Run.
func New(level Level, perSecond int, flows *flow.Log, logger *slog.Logger) *Log {
	limit := rate.NewLimiter(rate.Inf, 0)
	if perSecond > 0 {
		limit = rate.NewLimiter(rate.Limit(perSecond), perSecond)
	}
	l := &Log{level: level, log: logger, limit: limit}
	if level != None {
		l.watcher = flows.Watch(0, level == All)
	}
	return l
}

// record logs one record, if the level and the rate allow it.
func (l *Log) record(e *flow.Entry) {
	switch {
	case e.Kind == flow.LeftOut:
		l.suppress(e.Count)
		return
	case e.Kind == flow.Ended, e.Kind == flow.Unrecorded, e.Kind == flow.Opened && l.level != All:
		return
	case !l.limit.Allow():
		l.suppress(1)
		return
	}
	l.log.LogAttrs(context.Background(), slog.LevelInfo, "verdict", attrs(e)...)
}

func (l *Log) suppress(n uint64) {
	l.suppressed.Add(n)
	l.total.Add(n)
}

// Suppressed returns the number of lines that the rate limit has suppressed.
func (l *Log) Suppressed() uint64 { return l.total.Load() }

// Run logs verdicts, and every few seconds the number of suppressed lines, until ctx ends.
func (l *Log) Run(ctx context.Context) {
	if l.watcher == nil {
		<-ctx.Done()
		return
	}
	defer l.reportSuppressed()
	var summaries sync.WaitGroup
	defer summaries.Wait()
	summaries.Go(func() { l.summarize(ctx) })
	defer l.watcher.Close()
	for l.next(ctx, true) {
	}
	for l.next(ctx, false) { // the records from before the end
	}
}

// next logs the next records, and reports whether there were any.
func (l *Log) next(ctx context.Context, wait bool) bool {
	var entries [64]flow.Entry
	n := l.watcher.Next(ctx, entries[:], wait)
	for i := range entries[:n] {
		l.record(&entries[i])
	}
	return n > 0
}

func (l *Log) summarize(ctx context.Context) {
	tick := time.NewTicker(summaryInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
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
func attrs(e *flow.Entry) []slog.Attr {
	v, k := &e.Verdict, &e.Key
	attrs := make([]slog.Attr, 0, 24)
	attrs = append(attrs, event.Verdict.Attr(), slog.String("verdict", v.Action.String()), slog.String("reason", v.Reason.String()))
	if v.Reject {
		attrs = append(attrs, slog.String("answer", filter.Reject.String()))
	}
	if v.Reason == filter.Malformed && (k.Src == [16]byte{} || k.Dst == [16]byte{}) {
		return attrs // the addresses are not known
	}
	attrs = append(attrs, slog.String("src", k.SrcAddr().String()), slog.String("dst", k.DstAddr().String()), slog.String("proto", k.Protocol.String()))
	switch k.Transport {
	case filter.Ported:
		attrs = append(attrs, slog.Int("sport", int(e.SrcPort)), slog.Int("dport", int(k.Port)))
	case filter.Opaque:
		attrs = append(attrs, slog.String("transport", "opaque"))
	}
	for _, end := range []struct {
		key string
		*policy.Endpoint
	}{{"from", e.Src}, {"to", e.Dst}} {
		if end.Endpoint != nil {
			attrs = append(attrs, slog.String(end.key, end.String()))
		}
	}
	return appendWhy(attrs, *v)
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
