package iptables

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"sluice/bench/testbed/syncbuf"
	"sluice/filter/event"
)

// foreign contains rules of other programs, which must not change.
const foreign = `*mangle
:KUBE-THEIRS - [0:0]
-A KUBE-THEIRS -m comment --comment "not -j SLUICE" -j RETURN
-A POSTROUTING -j KUBE-THEIRS
-A FORWARD -s 192.0.2.1/32 -j DROP
COMMIT`

// logs collects log lines.
type logs struct{ syncbuf.Buffer }

func (l *logs) count(level slog.Level) int {
	return strings.Count(l.String(), "level="+level.String())
}

// managed is a Manager of two fakes, each with the foreign rules.
type managed struct {
	*Manager
	t      *testing.T
	v4, v6 *Fake
	clean  string // the IPv4 table without owned rules
	logs   *logs
}

func newManaged(t *testing.T, opts Options) *managed {
	t.Helper()
	m := &managed{t: t, v4: NewFake(IPv4), v6: NewFake(IPv6), logs: &logs{}}
	m.Manager = New(opts, []Table{m.v4, m.v6}, slog.New(slog.NewTextHandler(m.logs, nil)))
	m.restore(m.v4, foreign)
	m.restore(m.v6, foreign)
	m.clean = m.v4.Dump()
	return m
}

func (m *managed) restore(f *Fake, text string) {
	m.t.Helper()
	if err := f.Restore(m.t.Context(), text); err != nil {
		m.t.Fatal(err)
	}
}

// change applies the lines to the IPv4 table, as another program would.
func (m *managed) change(lines ...string) {
	m.t.Helper()
	m.restore(m.v4, strings.Join(lines, "\n"))
}

func (m *managed) apply() {
	m.t.Helper()
	if err := m.Apply(m.t.Context()); err != nil {
		m.t.Fatal(err)
	}
}

// applied returns the wanted content of the IPv4 table: the owned and the foreign rules.
func (m *managed) applied() string {
	m.t.Helper()
	f := NewFake(IPv4)
	m.restore(f, foreign)
	m.restore(f, m.opts.Wanted(IPv4))
	return f.Dump()
}

func (m *managed) want(dump string) {
	m.t.Helper()
	if got := m.v4.Dump(); got != dump {
		m.t.Errorf("the table holds\n%s\nand should hold\n%s", got, dump)
	}
}

func TestApply(t *testing.T) {
	m := newManaged(t, Defaults)
	m.apply()
	m.want(m.applied())
	if rules, _ := m.v6.Rules(t.Context(), Chain); !slices.Equal(rules, Defaults.chains(IPv6)[Chain]) {
		t.Errorf("IPv6 has %q", rules)
	}
	v4, v6 := m.v4.Writes(), m.v6.Writes()
	m.apply()
	if m.v4.Writes() != v4 || m.v6.Writes() != v6 {
		t.Errorf("applying again wrote %d and %d times", m.v4.Writes()-v4, m.v6.Writes()-v6)
	}
	// newManaged made the first transaction of each table, to write the foreign rules.
	if v4 != 2 || v6 != 2 {
		t.Errorf("%d and %d transactions, want one each", v4-1, v6-1)
	}
}

// changes lists changes of other programs to the rules, each with the reason that is logged for
// its repair.
var changes = map[string]struct {
	lines  []string
	reason string
}{
	"flush all":        {[]string{"-F PREROUTING", "-F POSTROUTING", "-F SLUICE", "-F SLUICE-ALLOW", "-F SLUICE-SOURCE", "-X SLUICE", "-X SLUICE-ALLOW", "-X SLUICE-SOURCE", "-A POSTROUTING -j KUBE-THEIRS"}, "there is no chain SLUICE; "},
	"flush a chain":    {[]string{"-F SLUICE-ALLOW"}, "chain SLUICE-ALLOW is empty"},
	"flush the hook":   {[]string{"-F POSTROUTING", "-A POSTROUTING -j KUBE-THEIRS"}, "POSTROUTING does not jump to SLUICE"},
	"flush one of two": {[]string{"-F PREROUTING"}, "PREROUTING does not jump to SLUICE-SOURCE"},
	"flush sources":    {[]string{"-F SLUICE-SOURCE"}, "chain SLUICE-SOURCE is empty"},
	"the wrong hook":   {[]string{"-D PREROUTING -j SLUICE-SOURCE", "-I PREROUTING 1 -j SLUICE"}, "PREROUTING jumps to SLUICE-SOURCE by another rule"},
	"delete a rule":    {[]string{"-D SLUICE -m addrtype --src-type LOCAL -j RETURN"}, "chain SLUICE has other rules"},
	"insert a rule":    {[]string{"-I SLUICE 1 -j RETURN"}, "chain SLUICE has other rules"},
	"reorder":          {[]string{"-D POSTROUTING -j SLUICE", "-A POSTROUTING -j SLUICE"}, "is not the first rule of POSTROUTING"},
	"double the jump":  {[]string{"-A POSTROUTING -j SLUICE"}, "jumps to SLUICE 2 times"},
	"narrow the jump":  {[]string{"-D POSTROUTING -j SLUICE", "-I POSTROUTING 1 -p tcp -j SLUICE"}, "by another rule"},
	"older chains": {[]string{":SLUICE-V0 - [0:0]", "-A SLUICE-V0 -j SLUICE-ALLOW", "-A SLUICE -j SLUICE-V0", "-A OUTPUT -j SLUICE-V0", "-A POSTROUTING -j SLUICE-V0"},
		"chain SLUICE-V0 is not of this version"},
}

// Apply undoes each change in one transaction.
func TestApplyRepairs(t *testing.T) {
	for name, c := range changes {
		t.Run(name, func(t *testing.T) {
			m := newManaged(t, Defaults)
			m.apply()
			m.change(c.lines...)
			writes := m.v4.Writes()
			m.apply()
			m.want(m.applied())
			if n := m.v4.Writes() - writes; n != 1 {
				t.Errorf("it took %d transactions", n)
			}
		})
	}
}

// Run undoes each change and logs the reason. It does not read the rules again until their
// generation number changes.
func TestRunRepairs(t *testing.T) {
	for name, c := range changes {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newManaged(t, Defaults)
				m.apply()
				m.run()
				m.change(c.lines...)
				time.Sleep(2 * checkInterval)
				m.want(m.applied())
				if m.Repairs() != 1 || m.logs.count(slog.LevelWarn) != 1 || !strings.Contains(m.logs.String(), c.reason) {
					t.Errorf("%d repairs; want one, logged with %q:\n%s", m.Repairs(), c.reason, m.logs)
				}
				writes, reads := m.v4.Writes(), m.v4.Reads()
				time.Sleep(10 * checkInterval)
				if w, r := m.v4.Writes()-writes, m.v4.Reads()-reads; w > 0 || r > 1 {
					t.Errorf("%d writes and %d reads when all was right", w, r)
				}
			})
		})
	}
}

// run runs Manager.Run until the test ends.
func (m *managed) run() {
	ctx, cancel := context.WithCancel(m.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.Run(ctx)
	}()
	m.t.Cleanup(func() {
		cancel()
		<-done
	})
}

func TestRunSurvivesErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManaged(t, Defaults)
		m.apply()
		m.run()
		m.change("-F SLUICE")
		m.v4.Break(errors.New("the lock is held"))
		time.Sleep(10 * checkInterval)
		if n := m.logs.count(slog.LevelError); n != 1 {
			t.Errorf("the same error was logged %d times", n)
		}
		m.v4.Break(errors.New("something else"))
		time.Sleep(10 * checkInterval)
		if n := m.logs.count(slog.LevelError); n != 2 {
			t.Errorf("another error: %d in the log, want 2", n)
		}
		if failures := m.Failures(); len(failures) != 1 || !strings.Contains(failures[0], "something else") {
			t.Errorf("failures %q, want the second error", failures)
		}
		m.v4.Break(nil)
		time.Sleep(2 * checkInterval)
		m.want(m.applied())
		if failures := m.Failures(); failures != nil {
			t.Errorf("failures %q when all is right again", failures)
		}
		if m.Repairs() != 1 || !strings.Contains(m.logs.String(), event.RulesRecovered.Attr().String()) {
			t.Errorf("%d repairs, want 1:\n%s", m.Repairs(), m.logs)
		}
	})
}

func TestRunWaitsForApply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManaged(t, Defaults)
		m.run()
		time.Sleep(3 * checkInterval)
		m.want(m.clean)
	})
}

// If the IPv4 table cannot be written, Apply still writes the IPv6 table.
func TestApplyContinuesAfterAFailure(t *testing.T) {
	m := newManaged(t, Defaults)
	m.v4.Break(errors.New("the lock is held"))
	err := m.Apply(t.Context())
	if err == nil || !strings.Contains(err.Error(), "iptables-fake: the lock is held") {
		t.Errorf("the error is %v", err)
	}
	if rules, err := m.v6.Rules(t.Context(), Chain); err != nil || len(rules) == 0 {
		t.Errorf("IPv6 has %q, %v", rules, err)
	}
}

func TestPauseAndApply(t *testing.T) {
	for packets, last := range map[Unqueued]string{PassUnqueued: "-A SLUICE -j RETURN", DropUnqueued: "-A SLUICE -j DROP"} {
		synctest.Test(t, func(t *testing.T) {
			opts := Defaults
			m := newManaged(t, opts)
			m.apply()
			m.run()
			if err := m.Pause(t.Context(), packets); err != nil {
				t.Fatal(err)
			}
			queues := "-A SLUICE " + opts.overflow()[0] + "\n-A SLUICE " + opts.queue()
			want := strings.ReplaceAll(m.applied(), queues, last)
			m.want(want)
			time.Sleep(5 * checkInterval)
			m.want(want) // Run has not restored the queues
			m.apply()
			m.want(m.applied())
			m.change("-F SLUICE")
			time.Sleep(2 * checkInterval)
			m.want(m.applied()) // after Apply, Run restores the rules
		})
	}
}

func TestWithout(t *testing.T) {
	m := newManaged(t, pinnedOptions())
	m.apply()
	if got := m.v4.Dump(); strings.Count(got, "-m bpf --object-pinned /pins/") != 3 {
		t.Fatalf("want three programs in\n%s", got)
	}
	for _, less := range []Less{{Overflow: true}, {Pins: true}, {Sources: true}, {Pins: true, Overflow: true, Sources: true}, {}} {
		m.Without(less)
		m.apply()
		m.want(m.applied())
		got := m.v4.Dump()
		if strings.Contains(got, "/pins/") == less.Pins || strings.Contains(got, "hashlimit") == less.Overflow || strings.Contains(got, "rpfilter") == less.Sources {
			t.Errorf("without %+v:\n%s", less, got)
		}
	}
}

// While the guard drops forged sources, SLUICE-SOURCE and the jump to it do not exist, and Run
// removes them if another program adds them. The chain and the jump are restored as soon as the
// guard stops. Foreign rules in PREROUTING stay.
func TestGuarded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManaged(t, Defaults)
		m.change("*mangle", "-A PREROUTING -j KUBE-THEIRS", "COMMIT")
		dropsSources := func() bool {
			dump := m.v4.Dump()
			if strings.Count(dump, "-A PREROUTING -j KUBE-THEIRS\n") != 1 || strings.Count(dump, "-A POSTROUTING -j SLUICE\n") != 1 {
				t.Errorf("the foreign rule or the jump to SLUICE is missing:\n%s", dump)
			}
			chain, jump := strings.Contains(dump, ":SLUICE-SOURCE\n"), strings.Contains(dump, "-A PREROUTING -j SLUICE-SOURCE\n")
			if chain != jump || m.DropsSources(t.Context()) != jump {
				t.Errorf("the chain, the jump and DropsSources differ:\n%s", dump)
			}
			return jump
		}
		set := func(guarded bool) {
			t.Helper()
			if err := m.SetGuarded(t.Context(), guarded); err != nil {
				t.Fatal(err)
			}
		}
		set(true) // before there are rules
		if dump := m.v4.Dump(); strings.Contains(dump, ":SLUICE") {
			t.Fatalf("rules before Apply:\n%s", dump)
		}
		m.apply()
		if dropsSources() {
			t.Error("the rules drop forged sources, besides the guard")
		}
		for range 2 {
			set(false)
			if !dropsSources() {
				t.Error("neither the rules nor the guard drop forged sources")
			}
			writes := m.v4.Writes()
			set(false)
			if m.v4.Writes() != writes {
				t.Error("the right rules were written again")
			}
			set(true)
			if dropsSources() {
				t.Error("the chain is still there")
			}
		}
		m.run()
		for _, theirs := range [][]string{
			{"*mangle", ":SLUICE-SOURCE - [0:0]", "-I PREROUTING 1 -j SLUICE-SOURCE", "COMMIT"},
			{"*mangle", "-I PREROUTING 1 -j SLUICE", "COMMIT"},
		} {
			m.change(theirs...)
			time.Sleep(2 * checkInterval)
			if dropsSources() || strings.Contains(m.v4.Dump(), "PREROUTING -j SLUICE\n") {
				t.Errorf("not removed:\n%s", m.v4.Dump())
			}
		}
		m.Without(Less{Sources: true})
		set(false)
		if !dropsSources() || strings.Contains(m.v4.Dump(), "rpfilter") {
			t.Errorf("with Sources omitted:\n%s", m.v4.Dump())
		}
		if err := m.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		if dump := m.v4.Dump(); strings.Contains(dump, ":SLUICE") {
			t.Errorf("left:\n%s", dump)
		}
	})
}

func TestPauseAndRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManaged(t, Defaults)
		m.apply()
		m.run()
		if err := m.Pause(t.Context(), DropUnqueued); err != nil {
			t.Fatal(err)
		}
		if err := m.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.want(m.clean)
		if err := m.Pause(t.Context(), DropUnqueued); err != nil { // Pause must not create chains
			t.Fatal(err)
		}
		time.Sleep(5 * checkInterval)
		m.want(m.clean)
		writes := m.v4.Writes()
		if err := m.Remove(t.Context()); err != nil || m.v4.Writes() != writes {
			t.Errorf("removing nothing: %v, %d writes", err, m.v4.Writes()-writes)
		}
	})
}

// After Yield, a Manager changes nothing until Apply.
func TestYield(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManaged(t, Defaults)
		m.apply()
		m.run()
		m.Yield()
		m.change("-F SLUICE")
		theirs := m.v4.Dump()
		time.Sleep(5 * checkInterval)
		if err := m.Pause(t.Context(), PassUnqueued); err != nil {
			t.Fatal(err)
		}
		if got := m.v4.Dump(); got != theirs {
			t.Errorf("the table is\n%s\nand was left as\n%s", got, theirs)
		}
		m.apply()
		m.want(m.applied())
	})
}

// Concurrent calls do not leave a mixture of their results. This test is for the race detector.
func TestConcurrentCalls(t *testing.T) {
	m := newManaged(t, Defaults)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go m.Run(ctx)
	var calls sync.WaitGroup
	for range 4 {
		calls.Go(func() {
			for range 50 {
				if err := errors.Join(m.Apply(ctx), m.Pause(ctx, PassUnqueued), m.Remove(ctx)); err != nil {
					t.Error(err)
				}
				m.reconcile(ctx)
			}
		})
	}
	calls.Wait()
	if err := m.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	m.want(m.clean)
}

// reformat returns a rule in a form that no version of iptables prints.
func reformat(rule string) string {
	if strings.HasPrefix(rule, "-A SLUICE") || slices.ContainsFunc(mangle.entries, func(e entry) bool { return rule == e.jump() }) {
		return strings.ReplaceAll(strings.Replace(rule, "-j ", "--jump-here -j ", 1), "ipv6-icmp", "58")
	}
	return rule
}

// iptables prints the rules in another form than the one in which the Manager wrote them. The
// Manager does not take this difference for a change, and still detects and repairs real changes.
func TestAnotherForm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManaged(t, Defaults)
		m.v4.Format(reformat)
		m.v6.Format(reformat)
		m.apply()
		m.want(m.applied())
		writes := m.v4.Writes()
		m.run()
		time.Sleep(10 * checkInterval)
		m.apply()
		if n := m.v4.Writes() - writes; n != 0 || m.Repairs() != 0 {
			t.Errorf("%d writes and %d repairs when all was right", n, m.Repairs())
		}
		for _, lines := range [][]string{
			{"-D SLUICE -m addrtype --src-type LOCAL -j RETURN"},
			{"-D POSTROUTING -j SLUICE", "-A POSTROUTING -j SLUICE"},
			{"-A POSTROUTING -j SLUICE"},
		} {
			before := m.Repairs()
			m.change(lines...)
			time.Sleep(2 * checkInterval)
			m.want(m.applied())
			if m.Repairs() != before+1 {
				t.Errorf("after %q: %d repairs, want %d", lines, m.Repairs(), before+1)
			}
		}
		if err := m.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.want(m.clean)
	})
}

// meddler is a table that another program changes after every write, each time differently.
type meddler struct {
	*Fake
	n int
}

func (t *meddler) Restore(ctx context.Context, text string) error {
	if err := t.Fake.Restore(ctx, text); err != nil {
		return err
	}
	t.n++
	return t.Fake.Restore(ctx, "-I SLUICE 1 -s 192.0.2."+string(rune('0'+t.n))+"/32 -j RETURN")
}

// If another program changes the rules after each write, the Manager must not take what it reads
// for the canonical form, the one in which iptables prints the written rules.
func TestForeignChangeIsNotCanonical(t *testing.T) {
	f := &meddler{Fake: NewFake(IPv4)}
	m := New(Defaults, []Table{f}, nil)
	err := m.Apply(t.Context())
	if err == nil || !strings.Contains(err.Error(), "do not stay") {
		t.Errorf("the error is %v", err)
	}
	if len(m.tables[0].canonical) > 0 {
		t.Errorf("canonical form %v, want none", m.tables[0].canonical)
	}
}

// Apply tries again if its transaction fails because a rule to be deleted is already gone.
func TestApplyRetriesWhenARuleIsGone(t *testing.T) {
	m := newManaged(t, Defaults)
	m.apply()
	m.change("-A POSTROUTING -j SLUICE")
	f := &vanishing{Fake: m.v4}
	m.tables[0].Table = f
	m.apply()
	m.want(m.applied())
	if f.done != true {
		t.Error("nothing vanished")
	}
}

// vanishing is a table from which another program deletes both jumps to SLUICE right before the
// first write.
type vanishing struct {
	*Fake
	done bool
}

func (t *vanishing) Restore(ctx context.Context, text string) error {
	if !t.done {
		t.done = true
		if err := t.Fake.Restore(ctx, "-D POSTROUTING -j SLUICE\n-D POSTROUTING -j SLUICE"); err != nil {
			return err
		}
	}
	return t.Fake.Restore(ctx, text)
}

func TestCleanup(t *testing.T) {
	m := newManaged(t, Defaults)
	m.apply()
	m.change(":SLUICE-V0 - [0:0]", "-A SLUICE-V0 -j SLUICE-ALLOW", "-A OUTPUT -p tcp -g SLUICE-V0", "-A KUBE-THEIRS -j SLUICE", ":SLUICEGATE - [0:0]")
	removed, err := Cleanup(t.Context(), []Table{m.v4, m.v6})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"iptables-fake: mangle rule PREROUTING -j SLUICE-SOURCE",
		"iptables-fake: mangle rule OUTPUT -p tcp -g SLUICE-V0",
		"iptables-fake: mangle rule POSTROUTING -j SLUICE",
		"iptables-fake: mangle rule KUBE-THEIRS -j SLUICE",
		"iptables-fake: mangle chain SLUICE, rules: 8",
		"iptables-fake: mangle chain SLUICE-ALLOW, rules: 2",
		"iptables-fake: mangle chain SLUICE-SOURCE, rules: 4",
		"iptables-fake: mangle chain SLUICE-V0, rules: 1",
		"ip6tables-fake: mangle rule PREROUTING -j SLUICE-SOURCE",
		"ip6tables-fake: mangle rule POSTROUTING -j SLUICE",
		"ip6tables-fake: mangle chain SLUICE, rules: 13",
		"ip6tables-fake: mangle chain SLUICE-ALLOW, rules: 2",
		"ip6tables-fake: mangle chain SLUICE-SOURCE, rules: 4",
	}
	if !slices.Equal(removed, want) {
		t.Errorf("removed\n%s\nwant\n%s", strings.Join(removed, "\n"), strings.Join(want, "\n"))
	}
	m.change("-X SLUICEGATE") // the chain still exists: Cleanup deletes only owned chains
	m.want(m.clean)
	if removed, err := Cleanup(t.Context(), []Table{m.v4, m.v6}); err != nil || len(removed) != 0 {
		t.Errorf("again: %q, %v", removed, err)
	}
}

func TestInPlace(t *testing.T) {
	m := newManaged(t, Defaults)
	tables := []Table{m.v4, m.v6}
	want := func(what string, want bool) {
		t.Helper()
		if got, err := InPlace(t.Context(), tables); got != want || err != nil {
			t.Errorf("%s: %v, %v; want %v", what, got, err, want)
		}
	}
	want("no rules", false)
	m.change(":SLUICE - [0:0]", ":SLUICEGATE - [0:0]", "-A POSTROUTING -j SLUICEGATE")
	want("a chain to which no rule leads, and one of another program", false)
	m.apply()
	want("rules", true)
	if _, err := Cleanup(t.Context(), []Table{m.v4}); err != nil {
		t.Fatal(err)
	}
	want("rules of IPv6", true)
	if _, err := Cleanup(t.Context(), tables); err != nil {
		t.Fatal(err)
	}
	want("cleaned", false)
	m.v6.Break(errors.New("the lock is held"))
	if got, err := InPlace(t.Context(), tables); got || err == nil {
		t.Errorf("broken: %v, %v", got, err)
	}
}

func TestCleanupContinuesAfterAFailure(t *testing.T) {
	m := newManaged(t, Defaults)
	m.apply()
	m.v4.Break(errors.New("the lock is held"))
	removed, err := Cleanup(t.Context(), []Table{m.v4, m.v6})
	if err == nil || !strings.Contains(err.Error(), "iptables-fake: the lock is held") || len(removed) != 5 {
		t.Errorf("removed %q, %v", removed, err)
	}
}
