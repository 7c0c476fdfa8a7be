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

// Manager keeps the rules in the tables. Its methods may be called concurrently; a lock
// serializes them.
type Manager struct {
	// OnRepair, if set, is called after each repair: until the repair, packets may have passed
	// without a verdict. OnRepair must not block. Set it before Run.
	OnRepair func()
	// EnsurePins, if set, restores missing names of pinned programs: iptables can write a
	// rule only while the programs that the rule calls have names. Set it before Run.
	EnsurePins func() error

	opts     Options
	all      Options // the options with all parts; opts lacks the parts that Without has removed
	log      *slog.Logger
	repairs  atomic.Uint64
	failures atomic.Uint64

	rejects atomic.Bool // see Rejects

	mu     sync.Mutex
	tables []*keptTable
	keep   bool // Run restores the rules
	wrote  bool // rules that Apply wrote may exist
	// mustPin forbids rules that do not call the pinned programs.
	mustPin bool
}

// keptTable is a table with its status.
type keptTable struct {
	Table
	entries   []entry
	canonical canonicalForm
	changed   atomic.Bool               // a notification of a change is pending
	since     atomic.Pointer[time.Time] // start of the work in progress, see begin; nil if there is none
	logged    string                    // the last error that Run logged, until the next success
	failing   int                       // number of consecutive failures of Run
	failed    atomic.Pointer[string]    // the error for Failures; set by the second consecutive failure
	lacks     Less                      // the parts that the rules omit
	reduced   atomic.Pointer[string]    // these parts and the reason, as text; nil if there are none
	complete  time.Time                 // time of the next attempt to add the omitted parts
	// stuck lists chains of older versions that were emptied but not deleted, because an object of
	// another program refers to them.
	stuck  []string
	forged forged
	// filter is the table filter of the same family and backend; nil if there is none. rejects is
	// set if filter rejects the packets that this table marks, and rejectOff if the log says that
	// it cannot. used is set in a table filter that may have owned rules.
	filter                   *keptTable
	used, rejects, rejectOff bool
	// right is set if the rules were right at the last check; generation is the generation of
	// the table at that time.
	generation uint32
	right      bool
}

// New returns a Manager of the rules in tables, such as those of [Open]. The options must be
// valid. A nil logger disables logging.
func New(opts Options, tables []Table, logger *slog.Logger) *Manager {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	m := &Manager{opts: opts, all: opts, log: logger}
	for _, t := range tables {
		kept := &keptTable{Table: t, entries: opts.entries(t.layout()), canonical: canonicalForm{}}
		if filter := t.companion(); filter != nil {
			// An earlier agent may have left rules.
			kept.filter = &keptTable{Table: filter, entries: opts.entries(filter.layout()), canonical: canonicalForm{}, used: filter.exists()}
		}
		m.tables = append(m.tables, kept)
	}
	return m
}

// Repairs returns the number of repairs by Run. A repair restores the rules of one table.
func (m *Manager) Repairs() uint64 { return m.repairs.Load() }

// RepairFailures returns the number of failed attempts of Run to check or restore a table.
func (m *Manager) RepairFailures() uint64 { return m.failures.Load() }

// stuckTimeout is the time after which unfinished work at a table counts as failed. It exceeds the
// longest wait of a command for a lock.
const stuckTimeout = time.Minute

// Failures returns a line for each table that Run currently cannot keep right. A single failure
// does not count, because the next attempt follows after retryDelay.
func (m *Manager) Failures() []string {
	var lines []string
	for _, t := range m.tables {
		if failed := t.failed.Load(); failed != nil {
			lines = append(lines, fmt.Sprintf("%s: %s", t, *failed))
		} else if since := t.since.Load(); since != nil && time.Since(*since) > stuckTimeout {
			lines = append(lines, fmt.Sprintf("%s: reading or writing the rules began at %s and has not ended", t, since.Format(time.RFC3339)))
		}
	}
	return lines
}

// Reduced returns a line for each table whose rules omit a part, with the reason.
func (m *Manager) Reduced() []string {
	var lines []string
	for _, t := range m.tables {
		if reduced := t.reduced.Load(); reduced != nil {
			lines = append(lines, fmt.Sprintf("%s: %s", t, *reduced))
		}
	}
	return lines
}

// Apply writes the wanted rules to every table whose rules differ, and lets Run keep them in
// place. It omits parts that cannot be written, see Lacks. After an error, the rules may be
// missing in some tables; Run keeps trying to write them.
func (m *Manager) Apply(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keep, m.wrote = true, true
	return m.each(func(t *keptTable) error {
		t.complete = time.Time{} // try omitted parts at once: their requirements may be met now
		wrong, err := m.ensure(ctx, t)
		if err == nil && len(wrong) > 0 {
			m.log.Info("rules applied", event.RulesApplied.Attr(), "table", t.String(), "because", strings.Join(wrong, "; "))
		}
		return err
	})
}

// Without sets the parts that the rules omit. The next Apply writes the rules without these
// parts, and with those that an earlier call of Without had removed.
//
// Without ignores less.Reject: Run itself omits the rules that reject while they cannot be
// written, and keeps trying to add them.
func (m *Manager) Without(less Less) {
	m.mu.Lock()
	defer m.mu.Unlock()
	less.Reject = false
	m.opts = m.all.without(less)
	for _, t := range m.tables {
		t.reduce(Less{}, nil, 0)
	}
}

// SetGuarded sets whether the guard drops forged sources, so that the rules need not do so. It
// updates existing rules before it returns. After an error, Run keeps trying.
func (m *Manager) SetGuarded(ctx context.Context, guarded bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	changed := m.opts.Guarded != guarded
	m.opts.Guarded, m.all.Guarded = guarded, guarded
	return m.rewrite(ctx, changed)
}

// rewrite writes the wanted rules to the tables, if Run keeps the rules. changed reports that
// the wanted rules have changed, so that no table has them yet. Otherwise rewrite skips the
// tables that are known to have them.
func (m *Manager) rewrite(ctx context.Context, changed bool) error {
	if changed {
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

// DropsSources reports whether the rules in all tables drop forged sources. It returns false if
// a table cannot be read.
func (m *Manager) DropsSources(ctx context.Context) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.tables {
		rules, err := t.Jumps(ctx, mangle.entries[0].name)
		if err != nil || !slices.ContainsFunc(rules, func(r string) bool {
			return leadsTo(r, func(chain string) bool { return chain == sourceChain })
		}) {
			return false
		}
	}
	return true
}

// Unqueued is the treatment, during a pause, of packets that would otherwise be queued.
type Unqueued uint8

// The values of Unqueued.
const (
	DropUnqueued Unqueued = iota
	PassUnqueued
)

// Pause removes the queues from the rules, so that no new packet enters them while the
// workers answer the queued packets. It leaves all other rules unchanged. Run restores
// nothing until Apply, which ends the pause. Before Apply and after Remove, Pause does
// nothing.
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

// Yield leaves the rules to another agent, which is about to replace them. Until Apply, this
// Manager does not restore, pause or remove them.
func (m *Manager) Yield() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keep, m.wrote = false, false
}

// Remove deletes the jumps and all owned chains, and a separate table with its hooks. Everything
// else stays, such as the hooks of iptables. Run restores nothing until Apply.
//
// The queues should be empty: call Pause, let the workers answer the queued packets, then call
// Remove. The kernel drops queued packets in two cases: if these rules were the last in the
// network namespace that use conntrack, because it then unhooks connection tracking; and if a
// separate table is deleted. Otherwise no packet is lost.
func (m *Manager) Remove(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keep = false
	err := m.each(func(t *keptTable) error {
		if _, err := cleanTable(ctx, t); err != nil {
			return err
		}
		t.rejects = false
		if t.clearRejects(ctx); t.filter != nil && t.filter.used {
			return fmt.Errorf("%s: the rules that reject packets could not be removed", t.filter)
		}
		return t.Leave()
	})
	m.noteRejects()
	m.wrote = err != nil
	return err
}

// each calls do for every table, even if it fails for one, and returns all errors.
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

// begin records that work at the table starts now: if end is not called within stuckTimeout,
// Failures reports the table.
func (t *keptTable) begin() { now := time.Now(); t.since.Store(&now) }

// end records that the work has ended.
func (t *keptTable) end() { t.since.Store(nil) }

// ensure compares a table with the wanted chains and the jumps to them. It writes them if they
// differ, and returns the differences that it found first. After a write, it compares again: some
// versions of iptables print a rule in another form than Sluice writes it, and this form must not
// count as a difference in every later check. ensure records the printed form as the canonical one
// only if two writes have the same result. After a single write, the difference may be a change by
// another program.
func (t *keptTable) ensure(ctx context.Context, want map[string][]string) (wrong []string, err error) {
	var before tableState
	t.right = false
	for try := 0; ; try++ {
		generation, known := t.Generation() // before reading, so that no change is missed
		if err := t.Choose(); err != nil {
			return wrong, err
		}
		now, diff, err := t.compare(ctx, want, try == 0)
		if err != nil && try == 0 && ctx.Err() == nil {
			now, diff, err = t.compare(ctx, want, false) // a chain may disappear between two reads
		}
		if err != nil {
			return wrong, err
		}
		if len(diff) > 0 && try >= 2 && now.equal(before) {
			t.canonical.record(now, want, t.entries)
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
			return wrong, fmt.Errorf("the rules do not stay as they are written (%s): find the program that changes %s", strings.Join(diff, "; "), t.layout().table)
		}
		// The first write may fail because a chain that it deletes has already gone. In that
		// case, read the table and write again. The second write may fail because an object of
		// another program refers to an outdated chain. In that case, write a third time, and
		// only empty the outdated chains.
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

// compare reads a table, and returns its state and its differences from the wanted rules. If
// the parameter "quick" is set, compare calls readOutline first, and returns at once if that
// shows a difference.
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

// errWrite marks errors in writing the rules, as opposed to reading them.
var errWrite = errors.New("write the rules")

// write replaces the owned chains of a table by the wanted chains, in one transaction. It changes a
// hook only if its jump is wrong.
func (t *keptTable) write(ctx context.Context, now tableState, want map[string][]string) error {
	c := change{fill: want, drop: t.outdated(now, want)}
	c.keepDropped = len(c.drop) > 0 && slices.Equal(c.drop, t.stuck)
	if len(c.drop) > 0 {
		// Search all chains for rules that lead to the outdated chains. The search is expensive,
		// but outdated chains are rare.
		refs, err := leading(ctx, t, now, func(chain string) bool { return slices.Contains(c.drop, chain) })
		if err != nil {
			return err
		}
		c.stale = slices.DeleteFunc(refs, func(rule string) bool {
			return slices.ContainsFunc(t.entries, func(e entry) bool { return strings.HasPrefix(rule, "-A "+e.name+" ") })
		})
	}
	for _, e := range t.entries {
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
	err := t.Restore(ctx, c.text(t.layout()))
	switch {
	case err != nil && now.inactive != "":
		return fmt.Errorf("%w: %s: %w", errWrite, now.inactive, err)
	case err != nil:
		return fmt.Errorf("%w: %w", errWrite, err)
	}
	return nil
}
