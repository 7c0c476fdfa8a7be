package iptables

import (
	"context"
	"errors"
	"strings"
	"time"

	"sluice/filter/event"
)

const (
	// period is how often Run looks at the rules without being told of a change. It
	// bounds how long a change may go unnoticed of which the kernel does not tell. A
	// look costs some 8 runs of iptables, of 1 to 2 ms each, and is left out where the
	// kernel says that nothing has changed.
	checkInterval = time.Second
	// retryDelay is how soon a repair is tried again that failed once.
	retryDelay = 100 * time.Millisecond
	// checkBurst and checksPerSecond bound the looks that changes of others cause, and
	// so their cost: with a repair each, up to a fifth of one CPU.
	checkBurst      = 10
	checksPerSecond = 10
)

// Run restores the rules that Apply has put in place, whenever somebody has
// flushed, changed or reordered them, until ctx ends. It logs what was wrong. An
// error is logged once for as long as it stays the same, and all is tried again.
//
// It looks when the kernel tells of a change to what is ours, and otherwise once in
// a period. Its own changes cause no look, because it knows their generation.
func (m *Manager) Run(ctx context.Context) {
	changed := make(chan struct{}, 1)
	for _, t := range m.tables { // before the first look, lest one miss a change
		m.watch(ctx, t, changed)
	}
	tick := time.NewTicker(checkInterval)
	defer tick.Stop()
	looks := budget{burst: checkBurst, rate: checksPerSecond}
	var soon <-chan time.Time
	for failedOnce := m.reconcile(ctx); ; {
		if failedOnce {
			soon = time.After(retryDelay)
		}
		failedOnce = false
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			failedOnce = m.reconcile(ctx)
		case <-soon:
			soon = nil
			failedOnce = m.check(ctx, (*keptTable).toldOrFailing)
		case <-changed:
			if soon != nil {
				continue // the change will be found then
			}
			if wait := looks.take(time.Now()); wait > 0 {
				soon = time.After(wait)
				continue
			}
			failedOnce = m.check(ctx, (*keptTable).toldOrFailing)
		}
	}
}

// watch has the kernel tell of changes to a table.
func (m *Manager) watch(ctx context.Context, t *keptTable, changed chan<- struct{}) {
	err := t.Watch(ctx, func() {
		t.changed.Store(true)
		select {
		case changed <- struct{}{}:
		default: // it has not been seen yet that there was one
		}
	})
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		m.log.Warn("changes to the rules are looked for once in a while only", "table", t.String(), "interval", checkInterval, "err", err)
	}
}

// toldOrFailing reports whether there is something to do about a table before the
// next period.
func (t *keptTable) toldOrFailing() bool { return t.changed.Load() || t.failing > 0 }

// reconcile looks at all tables once. It reports whether one has failed that had not
// failed before.
func (m *Manager) reconcile(ctx context.Context) (failedOnce bool) {
	return m.check(ctx, func(*keptTable) bool { return true })
}

func (m *Manager) check(ctx context.Context, which func(*keptTable) bool) (failedOnce bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.keep {
		return false
	}
	for _, t := range m.tables {
		if !which(t) {
			continue
		}
		t.begin()
		m.restore(ctx, t)
		t.end()
		failedOnce = failedOnce || t.failing == 1
	}
	return failedOnce
}

// restore brings one table back to the wanted rules.
func (m *Manager) restore(ctx context.Context, t *keptTable) {
	t.changed.Store(false)
	if t.right && !t.due() {
		if generation, known := t.Generation(); known && generation == t.generation {
			_ = m.ensurePins() // an error is reported when a rule needs them
			return
		}
	}
	wrong, err := m.ensure(ctx, t)
	if ctx.Err() != nil {
		return // the command was cut short, which says nothing about the table
	}
	if err != nil {
		m.failed(t, wrong, err)
		return
	}
	if t.logged != "" {
		m.log.Info("rules can be kept again", event.RulesRecovered.Attr(), "table", t.String())
	}
	t.failing, t.logged = 0, ""
	t.failed.Store(nil)
	if len(wrong) > 0 {
		m.repairs.Add(1)
		if m.OnRepair != nil {
			m.OnRepair()
		}
		attrs := []any{event.RulesRestored.Attr(), "table", t.String(), "wrong", strings.Join(wrong, "; ")}
		if reduced := t.reduced.Load(); reduced != nil {
			attrs = append(attrs, "lacking", *reduced)
		}
		m.log.Warn("somebody changed the rules; restored", attrs...)
	}
}

// failed records a repair that has failed.
func (m *Manager) failed(t *keptTable, wrong []string, err error) {
	m.failures.Add(1)
	t.failing++
	text := err.Error()
	if text != t.logged {
		m.log.Error("rules cannot be kept; trying on", event.RulesFailing.Attr(), "table", t.String(), "wrong", strings.Join(wrong, "; "), "err", err)
	}
	t.logged = text
	if t.failing > 1 {
		t.failed.Store(&text)
	}
}

// budget bounds how often something is done.
type budget struct {
	burst, rate float64
	left        float64
	at          time.Time
}

// take takes one from the budget and says how long to wait until it is there.
func (b *budget) take(now time.Time) (wait time.Duration) {
	if b.at.IsZero() {
		b.left = b.burst
	} else {
		b.left = min(b.burst, b.left+now.Sub(b.at).Seconds()*b.rate)
	}
	b.at = now
	b.left--
	return time.Duration(max(0, -b.left) / b.rate * float64(time.Second))
}
