package rules

import (
	"context"
	"strings"
	"time"
)

// period is how often Run looks at the rules: as long as somebody's flush may
// leave the node open. A look costs some 8 runs of iptables, of 1 to 2 ms each,
// and is left out where the kernel can say that nothing has changed.
const period = time.Second

// Run restores the rules that Apply has put in place, whenever somebody has
// flushed, changed or reordered them, until ctx ends. It logs what was wrong. An
// error is logged once for as long as it stays the same, and all is tried again.
func (m *Manager) Run(ctx context.Context) {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			m.reconcile(ctx)
		}
	}
}

// reconcile looks at all tables once.
func (m *Manager) reconcile(ctx context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.keep {
		return
	}
	for _, t := range m.tables {
		m.restore(ctx, t)
	}
}

// restore brings one table back to the wanted rules.
func (m *Manager) restore(ctx context.Context, t *keptTable) {
	generation, known := t.Generation() // before the look, lest it miss a change
	if known && t.right && generation == t.generation {
		return
	}
	wrong, err := t.bring(ctx, m.opts.chains(t.Family()))
	// After a write it is another generation, and one more look will do.
	t.generation, t.right = generation, known && err == nil && len(wrong) == 0
	if ctx.Err() != nil {
		return // the command was cut short, which says nothing about the table
	}
	failed := t.failed.Load()
	switch {
	case err != nil && (failed == nil || err.Error() != *failed):
		m.log.Error("rules cannot be kept; trying on", "table", t.String(), "wrong", strings.Join(wrong, "; "), "err", err)
		text := err.Error()
		t.failed.Store(&text)
	case err == nil && failed != nil:
		m.log.Info("rules can be kept again", "table", t.String())
		t.failed.Store(nil)
	}
	if err == nil && len(wrong) > 0 {
		m.repairs.Add(1)
		if m.OnRepair != nil {
			m.OnRepair()
		}
		m.log.Warn("somebody changed the rules; restored", "table", t.String(), "wrong", strings.Join(wrong, "; "))
	}
}
