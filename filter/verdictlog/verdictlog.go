// Package verdictlog logs a line for each verdict, to show why a connection was denied. A flag of the
// agent and annotations of namespaces and policies select the verdicts (see [policy.Logging]). Verdicts
// for which none of them asks are not watched, and cost nothing.
//
// The rate limit applies before a line is formatted, so that a flood of denied packets costs little.
// Suppressed lines are counted, and their number is logged.
package verdictlog

import (
	"context"
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

// DefaultRate is the default limit in lines per second.
const DefaultRate = 100

// summaryInterval is the time between two reports of the number of suppressed lines.
const summaryInterval = 5 * time.Second

// Log logs the verdicts of the agent and those of the kernel: it reads both from a flow.Log.
type Log struct {
	level      filter.LogLevel // of the node
	flows      *flow.Log
	log        *slog.Logger
	limit      *rate.Limiter
	suppressed atomic.Uint64
	total      atomic.Uint64

	annotations atomic.Pointer[policy.Logging]

	mu       sync.Mutex
	watching filter.LogLevel // the highest level of node and annotations
	watcher  *flow.Watcher   // nil while nothing is to be logged
	changed  chan struct{}   // closed when watcher is replaced
	ended    bool
}

// New returns a log of the verdicts of a level. Annotations may set another level (see Follow). It logs at
// most perSecond lines a second, with a burst of as many lines. If perSecond is 0, there is no limit.
// Unless the level is LogNone, it watches flows from now on. The caller must call Run.
func New(level filter.LogLevel, perSecond int, flows *flow.Log, logger *slog.Logger) *Log {
	limit := rate.NewLimiter(rate.Inf, 0)
	if perSecond > 0 {
		limit = rate.NewLimiter(rate.Limit(perSecond), perSecond)
	}
	l := &Log{level: level.Or(filter.LogNone), watching: filter.LogNone, flows: flows, log: logger, limit: limit, changed: make(chan struct{})}
	l.watch(l.level)
	return l
}

// Follow makes the log follow annotations: it watches what the annotations or the level of the node ask
// for. When Follow returns, the log gets all records about what happens from now on.
func (l *Log) Follow(annotations *policy.Logging) {
	if l.annotations.Swap(annotations) == annotations {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	wanted := max(l.level, annotations.Most())
	if wanted == l.watching || l.ended {
		return
	}
	l.watch(wanted)
	namespaces, policies := annotations.Annotated()
	l.log.Info("annotations have changed which verdicts are watched, to be logged", event.VerdictsWatched.Attr(),
		"watched", wanted.String(), "namespaces", namespaces, "policies", policies)
}

// watch watches what a level needs: nothing, only denials, or denials and connections. Connections cost
// the most.
func (l *Log) watch(level filter.LogLevel) {
	l.watching = level
	switch {
	case level == filter.LogNone && l.watcher != nil:
		l.watcher.Close()
		l.replace(nil)
	case level == filter.LogNone:
	case l.watcher == nil:
		l.replace(l.flows.Watch(0, level == filter.LogAll))
	default:
		l.watcher.WatchConnections(level == filter.LogAll)
	}
}

func (l *Log) replace(w *flow.Watcher) {
	l.watcher = w
	close(l.changed)
	l.changed = make(chan struct{})
}

// current returns the watcher, which may be nil, and a channel that is closed when it is replaced.
func (l *Log) current() (*flow.Watcher, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.watcher, l.changed
}

// record logs one record, if its level and the rate allow it.
func (l *Log) record(e *flow.Entry) {
	switch {
	case e.Kind == flow.LeftOut:
		l.suppress(e.Count)
		return
	case e.Kind == flow.Ended, e.Kind == flow.Unrecorded, !l.wants(e):
		return
	case !l.limit.Allow():
		l.suppress(1)
		return
	}
	l.log.LogAttrs(context.Background(), slog.LevelInfo, "verdict", attrs(e)...)
}

func (l *Log) wants(e *flow.Entry) bool {
	level := l.annotations.Load().Level(&e.Verdict, e.Src, e.Dst, l.level)
	return level == filter.LogAll || level == filter.LogDenied && e.Kind == flow.Denied
}

func (l *Log) suppress(n uint64) {
	l.suppressed.Add(n)
	l.total.Add(n)
}

// Suppressed returns the number of lines that the rate limit has suppressed.
func (l *Log) Suppressed() uint64 { return l.total.Load() }

// Run logs verdicts, and every few seconds the number of suppressed lines, until ctx ends.
func (l *Log) Run(ctx context.Context) {
	defer l.reportSuppressed()
	var summaries sync.WaitGroup
	defer summaries.Wait()
	summaries.Go(func() { l.summarize(ctx) })
	for ctx.Err() == nil {
		w, changed := l.current()
		for w != nil && l.next(ctx, w, true) {
		}
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
	l.end(ctx)
}

// end logs the records that are still to be read, and ends watching.
func (l *Log) end(ctx context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	if l.watcher == nil {
		return
	}
	for l.next(ctx, l.watcher, false) {
	}
	l.watch(filter.LogNone)
}

// next logs the next records of a watcher, and reports whether there were any.
func (l *Log) next(ctx context.Context, w *flow.Watcher, wait bool) bool {
	var entries [64]flow.Entry
	n := w.Next(ctx, entries[:], wait)
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

// attrs returns the attributes of a line: the event, the verdict, the reason, the flow, and the attributes
// that appendWhy appends. A line about a malformed packet has only the first three.
func attrs(e *flow.Entry) []slog.Attr {
	v, k := &e.Verdict, &e.Key
	attrs := make([]slog.Attr, 0, 24)
	attrs = append(attrs, event.Verdict.Attr(), slog.String("verdict", v.Action.String()), slog.String("reason", v.Reason.String()))
	if v.Reject {
		attrs = append(attrs, slog.String("answer", filter.Reject.String()))
	}
	if e.Revoked {
		attrs = append(attrs, slog.Bool("revoked", true)) // not a new attempt: see flow.Record
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

// appendWhy appends the cause of a verdict. For a denial, this is the direction, and the rule that denies
// the flow or all policies that isolate the pod in this direction. For an allowed flow, it is the rule
// that allows the flow, for each end that is isolated.
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
