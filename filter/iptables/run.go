package iptables

import (
	"context"
	"errors"
	"strings"
	"time"

	"sluice/filter/event"
)

const (
	// checkInterval is the time between two periodic checks of the rules. It bounds how long a
	// change without a notification may go unnoticed. A check costs about 8 runs of iptables, of
	// 1 to 2 ms each. It is skipped if the generation of nf_tables, which each change of its
	// rules increases, is still that of the last check.
	checkInterval = time.Second
	// retryDelay is the wait before a failed repair is tried again.
	retryDelay = 100 * time.Millisecond
	// checkBurst and checksPerSecond bound the rate of checks after notifications. If every check
	// leads to a repair, the checks take up to a fifth of one CPU.
	checkBurst      = 10
	checksPerSecond = 10
)

// Run restores the rules of Apply after another program has changed them, until ctx ends. It
// logs the differences. After an error it keeps trying, and logs the same error only once.
//
// It checks the rules every checkInterval, and after each notification of a change to owned
// chains or hooks. Run's own changes cause notifications too. The check after such a notification
// does not read the rules: the generation of the table is still the one that Run recorded.
func (m *Manager) Run(ctx context.Context) {
	changed := make(chan struct{}, 1)
	for _, t := range m.tables { // before the first check, so that no change is missed
		m.watch(ctx, t, changed)
	}
	tick := time.NewTicker(checkInterval)
	defer tick.Stop()
	checks := budget{burst: checkBurst, rate: checksPerSecond}
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
			failedOnce = m.check(ctx, (*keptTable).changedOrFailing)
		case <-changed:
			if soon != nil {
				continue // a check is already scheduled, and will find the change
			}
			if wait := checks.take(time.Now()); wait > 0 {
				soon = time.After(wait)
				continue
			}
			failedOnce = m.check(ctx, (*keptTable).changedOrFailing)
		}
	}
}

// watch subscribes to changes of a table.
func (m *Manager) watch(ctx context.Context, t *keptTable, changed chan<- struct{}) {
	err := t.Watch(ctx, func() {
		t.changed.Store(true)
		select {
		case changed <- struct{}{}:
		default: // a notification is pending already
		}
	})
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		m.log.Warn("no notifications about changes to the rules; checking at an interval", "table", t.String(), "interval", checkInterval, "err", err)
	}
}

// changedOrFailing reports whether a table needs a check before the next interval.
func (t *keptTable) changedOrFailing() bool { return t.changed.Load() || t.failing > 0 }

// reconcile checks all tables, and repairs their rules. It returns true if this failed for a
// table for which the previous check succeeded.
func (m *Manager) reconcile(ctx context.Context) (failedOnce bool) {
	return m.check(ctx, func(*keptTable) bool { return true })
}

// check is like reconcile, but only for the tables for which needed() returns true.
func (m *Manager) check(ctx context.Context, needed func(*keptTable) bool) (failedOnce bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.keep {
		return false
	}
	for _, t := range m.tables {
		if !needed(t) {
			continue
		}
		t.begin()
		m.restore(ctx, t)
		t.end()
		failedOnce = failedOnce || t.failing == 1
	}
	return failedOnce
}

// restore checks one table, and repairs its rules.
func (m *Manager) restore(ctx context.Context, t *keptTable) {
	t.changed.Store(false)
	if !t.due() {
		if generation, known := t.Generation(); known && t.current(generation) {
			_ = m.ensurePins() // an error matters only when rules are written
			return
		}
	}
	wrong, err := m.ensure(ctx, t)
	if ctx.Err() != nil {
		return // the error only means that the command was cancelled
	}
	if err != nil {
		m.failed(t, wrong, err)
		return
	}
	if t.logged != "" {
		m.log.Info("rules restored again after failures", event.RulesRecovered.Attr(), "table", t.String())
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
		m.log.Warn("rules changed by another program; restored", attrs...)
	}
}

// failed records a failed repair.
func (m *Manager) failed(t *keptTable, wrong []string, err error) {
	m.failures.Add(1)
	t.failing++
	text := err.Error()
	if text != t.logged {
		m.log.Error("cannot restore the rules; retrying", event.RulesFailing.Attr(), "table", t.String(), "wrong", strings.Join(wrong, "; "), "err", err)
	}
	t.logged = text
	if t.failing > 1 {
		t.failed.Store(&text)
	}
}

// budget is a token bucket that limits checks.
type budget struct {
	burst, rate float64
	left        float64   // number of tokens; negative while callers wait for tokens
	at          time.Time // time of the last take
}

// take takes a token, and returns how long to wait until it is available.
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
