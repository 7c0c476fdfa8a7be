package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sluice/filter/event"
)

// Manager keeps the rules in the tables. Its methods may be called concurrently;
// they wait for each other.
type Manager struct {
	// OnRepair, if set, is called after each repair: until then, packets may have
	// passed unjudged. It must not wait. Set it before Run.
	OnRepair func()
	// EnsurePins, if set, puts programs back whose names are gone: a rule can be written
	// only while the programs that it calls have names. Set it before Run.
	EnsurePins func() error

	opts     Options
	all      Options // with what Without has left out
	log      *slog.Logger
	repairs  atomic.Uint64
	failures atomic.Uint64

	mu     sync.Mutex
	tables []*keptTable
	keep   bool // Run is to restore the rules
	wrote  bool // there may be rules that Apply has written
	// mustPin forbids rules that do not call the pinned programs.
	mustPin bool
}

// keptTable is a table and what is known of it.
type keptTable struct {
	Table
	canonical canonicalForm
	changed   atomic.Bool               // the kernel has told of a change
	since     atomic.Pointer[time.Time] // when the work at the table began that goes on
	logged    string                    // the error that Run logged last, until it is over
	failing   int                       // how many times in a row Run has failed
	failed    atomic.Pointer[string]    // why, from the second time on
	// lacks are the parts that could not be written, reduced why, and complete when to
	// try with them again.
	lacks    Less
	reduced  atomic.Pointer[string]
	complete time.Time
	// stuck are chains of older versions that something refers to. They were emptied, and
	// stay.
	stuck  []string
	forged forged
	// The table was right when its generation was this one.
	generation uint32
	right      bool
}

// New returns a Manager of the rules in tables, such as [Open] gives. The
// options are valid ones. A nil logger discards.
func New(opts Options, tables []Table, logger *slog.Logger) *Manager {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	m := &Manager{opts: opts, all: opts, log: logger}
	for _, t := range tables {
		m.tables = append(m.tables, &keptTable{Table: t, canonical: canonicalForm{}})
	}
	return m
}

// Repairs is how many times Run has found the rules of a table other than they
// should be, and restored them.
func (m *Manager) Repairs() uint64 { return m.repairs.Load() }

// RepairFailures is how many times Run has not been able to restore the rules of a
// table.
func (m *Manager) RepairFailures() uint64 { return m.failures.Load() }

// stuckTimeout is after how long work at a table counts as failed that has not ended:
// longer than any command may wait for a lock.
const stuckTimeout = time.Minute

// Failures says which tables Run cannot keep right at present, and why, one line
// each. One failure is none yet, because the next attempt comes at once.
func (m *Manager) Failures() []string {
	var lines []string
	for _, t := range m.tables {
		if failed := t.failed.Load(); failed != nil {
			lines = append(lines, fmt.Sprintf("%s: %s", t, *failed))
		} else if since := t.since.Load(); since != nil && time.Since(*since) > stuckTimeout {
			lines = append(lines, fmt.Sprintf("%s: reading or writing the rules has not ended since %s", t, since.Format(time.RFC3339)))
		}
	}
	return lines
}

// Reduced says which tables have rules that lack a part, and why, one line each.
func (m *Manager) Reduced() []string {
	var lines []string
	for _, t := range m.tables {
		if reduced := t.reduced.Load(); reduced != nil {
			lines = append(lines, fmt.Sprintf("%s: %s", t, *reduced))
		}
	}
	return lines
}

// Apply brings all tables to the wanted rules, and lets Run keep them so. It
// writes nothing where all is right. Parts that cannot be written are left out, see
// Lacks. With an error some tables may lack the rules; Run goes on to try.
func (m *Manager) Apply(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keep, m.wrote = true, true
	return m.each(func(t *keptTable) error {
		t.complete = time.Time{} // what was lacking may be there now
		wrong, err := m.ensure(ctx, t)
		if err == nil && len(wrong) > 0 {
			m.log.Info("rules applied", event.RulesApplied.Attr(), "table", t.String(), "because", strings.Join(wrong, "; "))
		}
		return err
	})
}

// Without leaves something out of the rules from the next Apply on. What an earlier
// call has left out is back.
func (m *Manager) Without(less Less) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.opts = m.all.without(less)
	for _, t := range m.tables {
		t.reduce(Less{}, nil, 0)
	}
}

// Guarded sets whether the guard drops forged sources, so that the rules need not. Rules
// that are kept are brought to that before it returns. With an error, Run goes on to try.
func (m *Manager) Guarded(ctx context.Context, guarded bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.opts.Guarded != guarded {
		m.opts.Guarded, m.all.Guarded = guarded, guarded
		for _, t := range m.tables {
			t.right, t.complete = false, time.Time{}
		}
	}
	if !m.keep {
		return nil
	}
	return m.each(func(t *keptTable) error {
		if t.right {
			return nil
		}
		_, err := m.ensure(ctx, t)
		return err
	})
}

// DropsSources reports whether the rules in all tables drop forged sources, as far as
// that can be read.
func (m *Manager) DropsSources(ctx context.Context) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.tables {
		rules, err := t.Jumps(ctx, entries[0].name)
		if err != nil || !slices.ContainsFunc(rules, func(r string) bool {
			return leadsTo(r, func(chain string) bool { return chain == sourceChain })
		}) {
			return false
		}
	}
	return true
}

// Unqueued is what happens during a pause to packets that would be queued.
type Unqueued uint8

// The values of Unqueued.
const (
	DropUnqueued Unqueued = iota
	PassUnqueued
)

// Pause takes the queues out of the rules, so that no new packet enters them while the
// workers answer those that are queued. It leaves the rest as it is. Run restores nothing
// until Apply, which ends the pause. Before Apply and after Remove, Pause does nothing.
func (m *Manager) Pause(ctx context.Context, packets Unqueued) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keep = false
	if !m.wrote {
		return nil
	}
	return m.each(func(t *keptTable) error {
		return m.pause(ctx, t, packets)
	})
}

// Yield leaves the rules to another agent, which is about to write its own in
// their place: until Apply they are not for this one to keep, pause or remove.
func (m *Manager) Yield() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keep, m.wrote = false, false
}

// Remove takes the jump and all chains of ours away, and leaves everything else,
// the kernel's hook included, apart from that of a table of our own. Run restores nothing
// until Apply.
//
// Packets should no longer wait in the queues: Pause, let the workers answer
// what waits, and Remove then. If ours are the last rules of the network
// namespace that look at connections, the kernel unhooks connection tracking
// with them, and that drops what waits. A table of our own does the same. Otherwise nothing
// is lost.
func (m *Manager) Remove(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keep = false
	err := m.each(func(t *keptTable) error {
		if _, err := cleanTable(ctx, t); err != nil {
			return err
		}
		return t.Leave()
	})
	m.wrote = err != nil
	return err
}

// each does something with all tables, whatever comes of the others.
func (m *Manager) each(do func(*keptTable) error) error {
	var errs []error
	for _, t := range m.tables {
		t.begin()
		if err := do(t); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", t, err))
		}
		t.end()
	}
	return errors.Join(errs...)
}

// begin and end enclose work at a table.
func (t *keptTable) begin() { now := time.Now(); t.since.Store(&now) }
func (t *keptTable) end()   { t.since.Store(nil) }

// bring gives a table the wanted chains and the jump to them, and says what was
// wrong. What comes out is read back: a version of iptables may spell a rule in
// another way than we do, and must not look changed for ever. That spelling is
// taken for ours once the table has answered two writes with the same one, in
// case that somebody changed it in between.
func (t *keptTable) ensure(ctx context.Context, want map[string][]string) (wrong []string, err error) {
	var before tableState
	t.right = false
	for try := 0; ; try++ {
		generation, known := t.Generation() // before the look, lest it miss a change
		if err := t.Choose(); err != nil {
			return wrong, err
		}
		now, diff, err := t.compare(ctx, want, try == 0)
		if err != nil && try == 0 && ctx.Err() == nil {
			now, diff, err = t.compare(ctx, want, false) // a chain may go between two questions
		}
		if err != nil {
			return wrong, err
		}
		if len(diff) > 0 && try >= 2 && now.equal(before) {
			t.canonical.learn(now, want)
			diff = t.diff(now, want)
		}
		switch {
		case len(diff) == 0:
			t.generation, t.right = generation, known
			t.Tidy(ctx)
			return wrong, nil
		case try == 0:
			wrong = diff
		case try == 3:
			return wrong, fmt.Errorf("the rules do not stay as they are written (%s): see who else changes %s", strings.Join(diff, "; "), table)
		}
		// A chain to be deleted may be gone since compare read the table, so a failed
		// first write is tried again. If the second fails too, something may refer to
		// an outdated chain: empty those chains without deleting them.
		err = t.write(ctx, now, want)
		if err != nil && try > 0 && len(t.outdated(now, want)) > 0 {
			t.stuck = t.outdated(now, want)
			err = t.write(ctx, now, want)
		}
		if err != nil && (try > 0 || ctx.Err() != nil) {
			return wrong, err
		}
		before = now
	}
}

// compare reads a table and says what is wrong with it. If it is allowed to be quick,
// what is obviously wrong suffices.
func (t *keptTable) compare(ctx context.Context, want map[string][]string, quick bool) (tableState, []string, error) {
	if quick {
		if now, err := readOutline(ctx, t); err == nil {
			if diff := t.obviousDiff(ctx, now, want); len(diff) > 0 {
				return now, diff, nil
			}
		}
	}
	now, err := readTable(ctx, t)
	if err != nil {
		return now, nil, err
	}
	return now, t.diff(now, want), nil
}

// errWrite says that rules could be read and not be written.
var errWrite = errors.New("write the rules")

// write makes what a table holds into what is wanted, in one transaction. The
// hook is touched only if the jump is not right.
func (t *keptTable) write(ctx context.Context, now tableState, want map[string][]string) error {
	c := change{fill: want, drop: t.outdated(now, want)}
	c.keepDropped = len(c.drop) > 0 && slices.Equal(c.drop, t.stuck)
	if len(c.drop) > 0 {
		// Rare, so that only now all chains are searched for rules that lead there.
		refs, err := leading(ctx, t, now, func(chain string) bool { return slices.Contains(c.drop, chain) })
		if err != nil {
			return err
		}
		c.stale = slices.DeleteFunc(refs, func(rule string) bool {
			return slices.ContainsFunc(entries, func(e entry) bool { return strings.HasPrefix(rule, "-A "+e.name+" ") })
		})
	}
	for _, e := range entries {
		_, needed := want[e.chain]
		if len(t.jumpDiff(e, now.hooks[e.name], needed)) == 0 {
			continue
		}
		if needed {
			c.hooked = append(c.hooked, e)
		}
		for _, rule := range now.hooks[e.name] {
			if leadsTo(rule, isOwned) {
				c.stale = append(c.stale, rule)
			}
		}
	}
	err := t.Restore(ctx, c.text())
	switch {
	case err != nil && now.inactive != "":
		return fmt.Errorf("%w: %s: %w", errWrite, now.inactive, err)
	case err != nil:
		return fmt.Errorf("%w: %w", errWrite, err)
	}
	return nil
}
