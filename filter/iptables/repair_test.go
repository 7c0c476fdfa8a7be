package iptables

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"sluice/filter/event"
)

// pinnedOptions returns options with pinned programs.
func pinnedOptions() Options {
	opts := Defaults
	opts.AllowPin, opts.DenyPin = "/pins/allow", "/pins/deny"
	opts.ForwardedPin, opts.OthersPin = "/pins/forwarded", "/pins/others"
	return opts
}

// refuseAny returns a function for Fake.Refuse. It refuses rules that contain one of the words, as if
// the kernel or iptables did not support them.
func refuseAny(words ...string) func(string) error {
	return func(text string) error {
		if i := slices.IndexFunc(words, func(w string) bool { return strings.Contains(text, w) }); i >= 0 {
			return fmt.Errorf("couldn't load match %s", words[i])
		}
		return nil
	}
}

// without returns the wanted content of the IPv4 table if the rules omit the parts in p.
func (m *managed) without(p Less) string {
	m.t.Helper()
	f := NewFake(IPv4)
	m.restore(f, foreign)
	m.restore(f, m.opts.without(p).Wanted(IPv4))
	return f.Dump()
}

// If a part of the rules cannot be written, the remaining rules are in force after a start, a
// repair, a pause and a takeover.
func TestFallBacks(t *testing.T) {
	for name, c := range map[string]struct {
		refused []string
		less    Less
	}{
		"no programs": {[]string{"object-pinned"}, Less{Pins: true}},
		"no overflow": {[]string{"hashlimit"}, Less{Overflow: true}},
		"no sources":  {[]string{"bytecode"}, Less{Sources: true}},
		"nothing":     {[]string{"-m bpf", "hashlimit"}, Less{Pins: true, Overflow: true, Sources: true}},
		"neither":     {[]string{"object-pinned", "hashlimit"}, Less{Pins: true, Overflow: true}},
	} {
		steps := map[string]func(m *managed){
			"start": func(m *managed) { m.v4.Refuse(refuseAny(c.refused...)); m.apply() },
			"repair": func(m *managed) {
				m.apply()
				m.run()
				m.v4.Refuse(refuseAny(c.refused...))
				m.restore(m.v4, "-F SLUICE-ALLOW\n-F SLUICE-SOURCE\n-F POSTROUTING\n-A POSTROUTING -j KUBE-THEIRS")
				time.Sleep(2 * checkInterval)
			},
			"end of a pause": func(m *managed) {
				m.apply()
				m.v4.Refuse(refuseAny(c.refused...))
				if err := m.Pause(m.t.Context(), DropUnqueued); err != nil {
					m.t.Error(err)
				}
				if got := m.v4.Dump(); !strings.Contains(got, "-A SLUICE -j DROP\n") {
					m.t.Errorf("the pause left\n%s", got)
				}
				m.apply()
			},
			"takeover": func(m *managed) {
				m.apply()
				m.Yield()
				m.restore(m.v4, "-F SLUICE")
				m.v4.Refuse(refuseAny(c.refused...))
				m.apply()
			},
		}
		for step, do := range steps {
			t.Run(name+"/"+step, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := newManaged(t, pinnedOptions())
					do(m)
					m.want(m.without(c.less))
					if less, because := m.Lacks(); less != c.less || !strings.Contains(because, "load match") {
						t.Errorf("lacks %v, because %q", less, because)
					}
					if len(m.Failures()) > 0 || len(m.Reduced()) != 1 {
						t.Errorf("failures %q, reduced %q", m.Failures(), m.Reduced())
					}
				})
			})
		}
	}
}

// When an omitted part of the rules can be written again, the Manager adds it. Repairs does not
// count that addition.
func TestFallBacksEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManaged(t, pinnedOptions())
		m.apply()
		m.run()
		whole := m.v4.Dump()
		m.v4.Refuse(refuseAny("object-pinned"))
		m.change("-F SLUICE")
		time.Sleep(2 * checkInterval)
		m.want(m.without(Less{Pins: true}))
		time.Sleep(3 * completeInterval)
		m.want(m.without(Less{Pins: true}))
		m.v4.Refuse(nil)
		time.Sleep(2 * completeInterval)
		m.want(whole)
		if m.Repairs() != 1 || m.RepairFailures() != 0 || len(m.Reduced()) > 0 || strings.Count(m.logs.String(), event.RulesComplete.Attr().String()) != 1 {
			t.Errorf("%d repairs, %d failures, reduced %q\n%s", m.Repairs(), m.RepairFailures(), m.Reduced(), m.logs)
		}
	})
}

// If writes fail only for a moment, the Manager omits a part of the rules, and adds it at the next
// check.
func TestShortFallBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManaged(t, pinnedOptions())
		m.apply()
		m.run()
		synctest.Wait()
		whole := m.v4.Dump()
		m.change("-F SLUICE")
		left := 3 // transactions that still fail: both attempts to write all parts, and the first to write the fallback
		m.v4.Refuse(func(string) error {
			if left--; left < 0 {
				return nil
			}
			return errors.New("the lock is held")
		})
		time.Sleep(checkInterval)
		synctest.Wait()
		if len(m.Reduced()) != 1 {
			t.Errorf("reduced %q, %d repairs", m.Reduced(), m.Repairs())
		}
		time.Sleep(2 * checkInterval)
		synctest.Wait()
		m.want(whole)
		if len(m.Reduced()) > 0 {
			t.Errorf("reduced %q", m.Reduced())
		}
	})
}

// With MustPin, Apply without the pinned programs is an error; without MustPin it falls back.
func TestMustPin(t *testing.T) {
	m := newManaged(t, pinnedOptions())
	m.MustPin(true)
	m.v4.Refuse(refuseAny("object-pinned"))
	if err := m.Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "load match") {
		t.Errorf("%v", err)
	}
	m.want(m.clean)
	m.MustPin(false)
	m.apply()
	m.want(m.without(Less{Pins: true}))
}

// The Manager calls EnsurePins before a repair. It also calls EnsurePins in checks that find the
// rules right.
func TestRepairEnsuresPins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManaged(t, pinnedOptions())
		var named atomic.Bool
		named.Store(true)
		m.EnsurePins = func() error { named.Store(true); return nil }
		m.v4.Refuse(func(text string) error {
			if strings.Contains(text, "object-pinned") && !named.Load() {
				return errors.New("no such file")
			}
			return nil
		})
		m.apply()
		whole := m.v4.Dump()
		m.run()
		synctest.Wait()
		named.Store(false)
		m.change("-F SLUICE")
		time.Sleep(2 * checkInterval)
		m.want(whole)
		named.Store(false)
		time.Sleep(2 * checkInterval)
		if !named.Load() {
			t.Error("names are not restored while the rules are right")
		}
		if m.Repairs() != 1 || m.RepairFailures() != 0 || len(m.Reduced()) > 0 {
			t.Errorf("%d repairs, %d failures, reduced %q", m.Repairs(), m.RepairFailures(), m.Reduced())
		}
	})
}

// A failed repair is tried again after retryDelay. RepairFailures counts every failed attempt.
// Failures lists the table from the second failure in a row until a repair succeeds.
func TestRepairThatFails(t *testing.T) {
	for _, times := range []int{1, 3} {
		synctest.Test(t, func(t *testing.T) {
			m := newManaged(t, Defaults)
			m.v4.SupportWatch()
			m.apply()
			m.run()
			synctest.Wait()
			var left atomic.Int64
			left.Store(int64(times))
			// A failed repair makes two transactions for each combination of parts.
			perAttempt := int64(2 * len((&Manager{opts: Defaults}).fallbacks()))
			left.Store(int64(times) * perAttempt)
			m.change("-F SLUICE")
			m.v4.Refuse(func(string) error {
				if left.Add(-1) < 0 {
					return nil
				}
				return errors.New("the lock is held")
			})
			synctest.Wait()
			if n := m.RepairFailures(); n != 1 || len(m.Failures()) > 0 {
				t.Errorf("after the first: %d failures, and %q", n, m.Failures())
			}
			time.Sleep(retryDelay)
			synctest.Wait()
			if failing := len(m.Failures()) > 0; failing != (times > 1) {
				t.Errorf("after the second: failures %q", m.Failures())
			}
			time.Sleep(5 * checkInterval)
			m.want(m.applied())
			if m.RepairFailures() != uint64(times) || m.Repairs() != 1 || len(m.Failures()) > 0 {
				t.Errorf("at the end: %d failures, %d repairs, %q", m.RepairFailures(), m.Repairs(), m.Failures())
			}
		})
	}
}

// Failures reports a command that does not end within stuckTimeout, until it ends.
func TestRepairThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManaged(t, Defaults)
		m.apply()
		m.run()
		m.change("-F SLUICE")
		m.v4.Refuse(func(string) error { time.Sleep(2 * stuckTimeout); return nil })
		time.Sleep(stuckTimeout / 2)
		if failures := m.Failures(); len(failures) > 0 {
			t.Errorf("failures %q", failures)
		}
		time.Sleep(stuckTimeout)
		if failures := m.Failures(); len(failures) != 1 || !strings.Contains(failures[0], "has not ended") {
			t.Errorf("failures %q", failures)
		}
		time.Sleep(stuckTimeout)
		if failures := m.Failures(); len(failures) > 0 {
			t.Errorf("failures %q", failures)
		}
		m.want(m.applied())
	})
}

// With notifications, Run undoes a change without waiting for checkInterval, and does not check
// its own changes.
func TestRunWithNotifications(t *testing.T) {
	for name, c := range changes {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newManaged(t, Defaults)
				m.v4.SupportWatch()
				m.apply()
				m.run()
				synctest.Wait()
				start, reads := time.Now(), m.v4.Reads()
				m.change(c.lines...)
				synctest.Wait()
				m.want(m.applied())
				// At most three reads: a quick one by readOutline, a full one by readTable if the
				// quick one finds no difference, and one after the write.
				if n := m.v4.Reads() - reads; m.Repairs() != 1 || n > 3 || time.Since(start) > 0 {
					t.Errorf("%d repairs with %d reads after %v, want one with at most three", m.Repairs(), n, time.Since(start))
				}
			})
		})
	}
}

// Frequent changes to a hook cause a bounded number of reads, and the table is right afterwards.
func TestStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const seconds, rate = 10, 500
		m := newManaged(t, Defaults)
		m.v4.SupportWatch()
		m.apply()
		m.run()
		synctest.Wait()
		reads := m.v4.Reads()
		for i := range seconds * rate {
			if i%2 == 0 {
				m.change("-I POSTROUTING 1 -j KUBE-THEIRS")
			} else {
				m.change("-D POSTROUTING -j KUBE-THEIRS")
			}
			time.Sleep(time.Second / rate)
		}
		// Each check costs at most two reads: one before the write and one after it. Changes
		// cause at most checkBurst checks, plus checksPerSecond in each second. The ticker causes
		// one more check in each checkInterval, which is one second.
		if n, most := m.v4.Reads()-reads, 2*(checkBurst+seconds*(checksPerSecond+1)); n > most {
			t.Errorf("%d reads for %d changes, want at most %d", n, seconds*rate, most)
		}
		time.Sleep(checkInterval)
		m.want(m.applied())
	})
}

// notifications returns a counter of the notifications about a real table. It counts until the
// test ends.
func (n *realNode) notifications(f Family) *atomic.Int64 {
	n.t.Helper()
	var count atomic.Int64
	ctx, cancel := context.WithCancel(n.t.Context())
	n.t.Cleanup(cancel)
	n.inside(func(context.Context) error {
		return n.tables[slices.Index(Families, f)].Watch(ctx, func() { count.Add(1) })
	})
	return &count
}

// Watch notifies of each change to the table, owned chains and hooks, and of nothing else.
func TestRealWatch(t *testing.T) {
	n := newRealNode(t, NFT, Defaults)
	n.inside(n.Apply)
	n.emptyChains()
	n.nft("add table %[1]s other\nadd chain %[1]s other POSTROUTING\nadd chain %[1]s mangle KUBE-THEIRS")
	notified := n.notifications(IPv4)
	for range 20 {
		n.nft("add rule %[1]s other POSTROUTING accept\nadd rule %[1]s mangle KUBE-THEIRS accept\nadd rule %[1]s mangle OUTPUT accept\n" +
			"flush chain %[1]s other POSTROUTING\nadd chain %[1]s mangle NEW\ndelete chain %[1]s mangle NEW\nadd table %[1]s NEW\ndelete table %[1]s NEW")
	}
	n.iptables(IPv6, "-t", table, "-F")
	n.iptables(IPv4, "-t", "nat", "-A", "POSTROUTING", "-j", "ACCEPT")
	// Notifications arrive in order. When the one about the next change has arrived, no
	// notification about an earlier change can follow.
	n.iptables(IPv4, "-t", table, "-A", "SLUICE-ALLOW", "-j", "RETURN")
	await(t, "notified of an owned rule", func() bool { return notified.Load() > 0 })
	if got := notified.Load(); got > 2 {
		t.Errorf("notified %d times of one change to an owned chain", got)
	}
	for _, args := range [][]string{
		{"-F", "SLUICE-ALLOW"}, {"-A", "SLUICE-ALLOW", "-j", "RETURN"}, {"-D", "SLUICE-ALLOW", "1"}, {"-D", "POSTROUTING", "1"}, {"-I", "POSTROUTING", "-j", "KUBE-THEIRS"},
		{"-F", "SLUICE"}, {"-X", "SLUICE"}, {"-N", "SLUICE-OLD"}, {"-F"}, {"-P", "POSTROUTING", "DROP"},
	} {
		before := notified.Load()
		n.iptables(IPv4, append([]string{"-t", table}, args...)...)
		await(t, "notified of "+strings.Join(args, " "), func() bool { return notified.Load() > before })
	}
	for _, script := range []string{"add table ip mangle { flags dormant; }", "delete table ip mangle", "flush ruleset"} {
		n.inside(n.Apply)
		before := notified.Load()
		n.nftOnce(script)
		await(t, "notified of "+script, func() bool { return notified.Load() > before })
	}
}

// Polling detects changes in the legacy backend.
func TestRealWatchLegacy(t *testing.T) {
	n := newRealNode(t, Legacy, Defaults)
	n.inside(n.Apply)
	for _, f := range Families {
		notified := n.notifications(f)
		for _, args := range [][]string{{"-F", "SLUICE-ALLOW"}, {"-F", "POSTROUTING"}, {"-F"}} {
			before := notified.Load()
			n.iptables(f, append([]string{"-t", table}, args...)...)
			await(t, "notified of "+strings.Join(args, " "), func() bool { return notified.Load() > before })
		}
	}
}

// Changes are detected even if the watch socket's buffer overflows.
func TestRealWatchOverrun(t *testing.T) {
	n := newRealNode(t, NFT, Defaults)
	n.inside(n.Apply)
	n.startManager()
	var script strings.Builder
	script.WriteString("add table ip other\nadd chain ip other c\n")
	for i := range 20000 {
		fmt.Fprintf(&script, "add rule ip other c meta mark %d accept\n", i)
	}
	script.WriteString("flush table ip mangle\nflush table ip6 mangle\n")
	n.nftOnce(script.String())
	await(t, "both repaired", func() bool { return n.Repairs() >= 2 })
	n.wantInForce()
}

// BenchmarkRepair flushes the hook and reports two durations. "open" is how long the rules are
// missing: from the kernel's notification of the flush to its notification of the repair.
// "command-to-checked" lasts from the start of the flush command until the Manager has checked
// the repaired rules.
func BenchmarkRepair(b *testing.B) {
	for _, backend := range backends {
		b.Run(string(backend), func(b *testing.B) { benchmarkRepair(b, backend) })
	}
}

func benchmarkRepair(b *testing.B, backend Backend) {
	n := newRealNode(b, backend, Defaults)
	n.inside(n.Apply)
	n.startManager()
	times := make(chan time.Time, 100)
	n.inside(func(ctx context.Context) error {
		return n.tables[0].Watch(ctx, func() { times <- time.Now() })
	})
	var command, open []time.Duration
	for b.Loop() {
		for len(times) > 0 {
			<-times
		}
		repairs, start := n.Repairs(), time.Now()
		n.iptables(IPv4, "-t", table, "-F", "POSTROUTING")
		for n.Repairs() == repairs {
			time.Sleep(time.Millisecond)
		}
		command = append(command, time.Since(start))
		if backend == NFT { // the legacy backend has no notifications, and polling is too imprecise
			flushed := <-times
			open = append(open, (<-times).Sub(flushed))
		}
		time.Sleep(time.Second/checksPerSecond + time.Duration(rand.Int64N(int64(checkInterval)/10)))
	}
	report(b, command, "command-to-checked")
	report(b, open, "open")
}

// report reports the 50th and 99th percentile of the times as metrics.
func report(b *testing.B, took []time.Duration, what string) {
	b.Helper()
	if len(took) == 0 {
		return
	}
	slices.Sort(took)
	for percent, name := range map[int]string{50: "p50-ms", 99: "p99-ms"} {
		b.ReportMetric(float64(took[(len(took)-1)*percent/100])/float64(time.Millisecond), what+"-"+name)
	}
}
