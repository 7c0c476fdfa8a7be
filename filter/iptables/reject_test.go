package iptables

import (
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sluice/filter/event"
)

func rejectOptions() Options {
	o := pinnedOptions()
	o.Guarded, o.NodeSources, o.Reject = true, nodeSources, true
	o.LaterPin, o.RejectPin, o.BridgePorts = "/pins/later", "/pins/reject", true
	return o
}

func TestWantedTextWithReject(t *testing.T) {
	o := rejectOptions()
	for f, file := range map[Family]string{IPv4: "testdata/ipv4-reject.txt", IPv6: "testdata/ipv6-reject.txt"} {
		if os.Getenv("SLUICE_UPDATE_GOLDEN") != "" {
			if err := os.WriteFile(file, []byte(o.Wanted(f)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := o.Wanted(f); got != string(want) {
			t.Errorf("%s: the rules are\n%s\nand should be\n%s", f, got, want)
		}
	}
}

// Without Reject, the rules mention neither the table filter nor the programs for rejecting.
func TestWantedTextWithoutReject(t *testing.T) {
	o := rejectOptions()
	o.Reject = false
	with := o
	with.LaterPin, with.RejectPin, with.BridgePorts = "", "", false
	for _, f := range Families {
		if got := o.Wanted(f); got != with.Wanted(f) || strings.Contains(got, "FORWARD") || strings.Contains(got, "filter") {
			t.Errorf("%s: the rules are\n%s", f, got)
		}
	}
}

// In every chain with a queue, the packets that an agent has marked leave before the queue.
// Otherwise they would be queued and marked again without end.
func TestMarkedPacketsAreNotQueued(t *testing.T) {
	o := rejectOptions()
	for _, f := range Families {
		for name, rules := range o.chains(f) {
			queue := slices.IndexFunc(rules, func(r string) bool { return strings.Contains(r, "NFQUEUE") })
			if queue < 0 {
				continue
			}
			for _, mark := range []string{" -m mark --mark 0x10/0x10 ", " -m mark --mark 0x20/0x20 "} {
				if at := slices.IndexFunc(rules, func(r string) bool { return strings.Contains(r, mark) }); at < 0 || at > queue {
					t.Errorf("%s %s: packets with%sare queued:\n%s", f, name, mark, strings.Join(rules, "\n"))
				}
			}
		}
	}
}

// managedReject is a Manager of fakes with a table filter, in which another program has rules.
type managedReject struct {
	*managed
	filter *Fake
}

const foreignFilter = "*filter\n:KUBE-FORWARD - [0:0]\n-A KUBE-FORWARD -j RETURN\n-A FORWARD -j KUBE-FORWARD\n-A INPUT -s 192.0.2.1/32 -j DROP\nCOMMIT"

func newManagedReject(t *testing.T, opts Options) *managedReject {
	t.Helper()
	m := newManaged(t, opts)
	_, filter := m.v4.WithFilter()
	m.v6.WithFilter()
	m.Manager = New(opts, []Table{m.v4, m.v6}, slog.New(slog.NewTextHandler(m.logs, nil)))
	m.restore(filter, foreignFilter)
	return &managedReject{m, filter}
}

func (m *managedReject) set(reject bool) {
	m.t.Helper()
	if err := m.SetReject(m.t.Context(), reject); err != nil {
		m.t.Fatal(err)
	}
}

// The rules that reject exist while Reject is set. Run restores them, and other programs' rules
// stay.
func TestSetReject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManagedReject(t, Defaults)
		clean := m.filter.Dump()
		rejects := func() bool {
			t.Helper()
			mangle, filter := m.v4.Dump(), m.filter.Dump()
			forward := strings.Contains(mangle, "-A FORWARD -m connmark ! --mark 0x10/0x30 -j SLUICE-FORWARD\n-A FORWARD -s 192.0.2.1/32 -j DROP\n")
			jumps := strings.Contains(filter, "-A FORWARD -m mark --mark 0x20/0x20 -j SLUICE-REJECT\n-A FORWARD -j KUBE-FORWARD\n") &&
				strings.Contains(filter, "-A INPUT -m mark --mark 0x20/0x20 -j SLUICE-REJECT\n-A INPUT -s") && strings.Count(filter, "-j SLUICE-REJECT") == 2
			if forward != jumps || jumps != strings.Contains(filter, "REJECT --reject-with tcp-reset") || m.Rejects() != jumps {
				t.Errorf("some rules that reject are missing (Rejects: %t):\n%s%s", m.Rejects(), mangle, filter)
			}
			if !jumps && filter != clean {
				t.Errorf("the table filter is\n%s\nand was\n%s", filter, clean)
			}
			return jumps
		}
		m.apply()
		if rejects() {
			t.Error("rejects without being told to")
		}
		reads := m.filter.Reads()
		m.run()
		time.Sleep(5 * checkInterval)
		if m.filter.Reads() != reads {
			t.Error("the table filter is read although nothing is rejected")
		}
		for range 2 {
			m.set(true)
			if !rejects() {
				t.Error("does not reject")
			}
			for _, theirs := range []string{"-F FORWARD\n-A FORWARD -j KUBE-FORWARD", "-F SLUICE-REJECT", "-D INPUT -m mark --mark 0x20/0x20 -j SLUICE-REJECT", "-A INPUT -j SLUICE-REJECT"} {
				m.managed.restore(m.filter, "*filter\n"+theirs+"\nCOMMIT")
				time.Sleep(2 * checkInterval)
				if !rejects() {
					t.Errorf("not restored after %q", theirs)
				}
			}
			writes := m.filter.Writes()
			m.set(true)
			if m.filter.Writes() != writes {
				t.Error("the right rules were written again")
			}
			m.set(false)
			if rejects() {
				t.Error("still rejects")
			}
		}
		m.set(true)
		if err := m.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		if m.Rejects() || m.filter.Dump() != clean {
			t.Errorf("after Remove (Rejects: %t):\n%s", m.Rejects(), m.filter.Dump())
		}
	})
}

// Packets are dropped while the table filter cannot be written: no rule marks them then. The log
// reports each change once, and Reduced reports it while it lasts.
func TestRejectWithoutFilter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManagedReject(t, rejectOptions())
		reported := func(off, complete int) {
			t.Helper()
			text := m.logs.String()
			if strings.Count(text, "event="+string(event.RejectOff)) != off || strings.Count(text, "event="+string(event.RulesComplete)) != complete {
				t.Errorf("the log does not report %d times that packets are not rejected, and %d times that they are again:\n%s", off, complete, text)
			}
			if reduced := strings.Join(m.Reduced(), "\n"); strings.Contains(reduced, "instead of rejecting") != (off > complete) {
				t.Errorf("Reduced: %q", reduced)
			}
		}
		m.set(false)
		m.filter.Break(errors.New("it belongs to a process"))
		m.apply()
		reported(0, 0)
		m.set(true)
		m.apply()
		reported(1, 0)
		if less, because := m.Lacks(); less != (Less{Reject: true}) || !strings.Contains(because, "belongs to a process") {
			t.Errorf("lacks %+v because %q", less, because)
		}
		if dump := m.v4.Dump(); m.Rejects() || strings.Contains(dump, "FORWARD -j SLUICE") || strings.Contains(dump, "/pins/reject") || !strings.Contains(dump, "-j NFQUEUE") {
			t.Errorf("Rejects: %t, and the rules are\n%s", m.Rejects(), dump)
		}
		m.run()
		time.Sleep(2 * completeInterval)
		reported(1, 0)
		m.filter.Break(nil)
		time.Sleep(2 * completeInterval)
		reported(1, 1)
		if less, _ := m.Lacks(); less != (Less{}) || !m.Rejects() || !strings.Contains(m.v4.Dump(), "/pins/reject") {
			t.Errorf("lacks %+v although the table can be written; Rejects: %t", less, m.Rejects())
		}
		m.filter.Break(errors.New("it belongs to a process again"))
		time.Sleep(2 * checkInterval)
		if less, _ := m.Lacks(); m.Rejects() || less != (Less{Reject: true}) || strings.Contains(m.v4.Dump(), "/pins/reject") {
			t.Errorf("lacks %+v, Rejects: %t", less, m.Rejects())
		}
		reported(2, 1)
		if err := m.SetReject(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		if less, _ := m.Lacks(); less != (Less{}) {
			t.Errorf("lacks %+v, which is not wanted", less)
		}
	})
}

// An agent that does not reject removes the rules of an earlier agent that did.
func TestRejectOfEarlierAgent(t *testing.T) {
	earlier := newManagedReject(t, rejectOptions())
	clean := earlier.filter.Dump()
	earlier.apply()
	m := New(Defaults, []Table{earlier.v4, earlier.v6}, nil)
	if err := m.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := earlier.filter.Dump(); got != clean {
		t.Errorf("left in the table filter:\n%s", got)
	}
	if got := earlier.v4.Dump(); strings.Contains(got, "SLUICE-FORWARD") {
		t.Errorf("left in mangle:\n%s", got)
	}
}

// During a pause, packets of FORWARD are not queued either.
func TestPausedForward(t *testing.T) {
	for _, f := range Families {
		for packets, last := range map[Unqueued]string{PassUnqueued: "RETURN", DropUnqueued: "DROP"} {
			rules := rejectOptions().paused(f, packets)[forwardChain]
			if count(rules, "NFQUEUE") != 0 || rules[len(rules)-1] != "-A SLUICE-FORWARD -j "+last {
				t.Errorf("%s: during a pause the chain is\n%s", f, strings.Join(rules, "\n"))
			}
		}
	}
}

// A pause leaves no rule with a queue, also if the table has chains that the options lack because
// an earlier write has failed, and if the programs cannot be called.
func TestPauseLeavesNoQueue(t *testing.T) {
	broken := errors.New("it is broken")
	for name, damage := range map[string]func(m *managedReject) error{
		"no damage": func(*managedReject) error { return nil },
		"no programs": func(m *managedReject) error {
			m.v4.Refuse(refuseAny("object-pinned"))
			return nil
		},
		"rejections stay": func(m *managedReject) error {
			m.v4.Break(broken)
			defer m.v4.Break(nil)
			return m.SetReject(t.Context(), false)
		},
		"node sources stay": func(m *managedReject) error {
			m.v4.Break(broken)
			defer m.v4.Break(nil)
			return m.SetNodeSources(t.Context(), nil)
		},
		"rejections stay, no programs": func(m *managedReject) error {
			m.v4.Refuse(refuseAny("SLUICE"))
			defer m.v4.Refuse(refuseAny("object-pinned"))
			m.filter.Break(broken)
			return m.SetReject(t.Context(), false)
		},
	} {
		for packets, last := range map[Unqueued]string{PassUnqueued: "RETURN", DropUnqueued: "DROP"} {
			m := newManagedReject(t, rejectOptions())
			m.apply()
			if err := damage(m); err != nil && !errors.Is(err, broken) && !strings.Contains(err.Error(), "SLUICE") {
				t.Fatal(err)
			}
			if err := m.Pause(t.Context(), packets); err != nil {
				t.Fatal(err)
			}
			if dump := m.v4.Dump(); strings.Contains(dump, "NFQUEUE") || !strings.Contains(dump, "-A SLUICE -j "+last+"\n") {
				t.Errorf("%s: during a pause the rules are\n%s", name, dump)
			}
		}
	}
}

// TCP through a Service from a port of a bridge is queued even if the kernel remembers that it is
// rejected, because the kernel's ICMP error would arrive too early (see askAboutServices).
func TestServicesFromBridgePortsAreQueued(t *testing.T) {
	o := rejectOptions()
	for _, f := range Families {
		for _, chain := range []string{forwardChain, nodeChain} {
			rules := o.chains(f)[chain]
			for _, without := range []func(*Options){func(o *Options) { o.BridgePorts = false }, func(o *Options) { o.RejectPin = "" }} {
				other := o
				if without(&other); count(other.chains(f)[chain], "physdev") != 0 {
					t.Errorf("%s: needless rules\n%s", f, strings.Join(other.chains(f)[chain], "\n"))
				}
			}
			at := func(what string) int {
				return slices.IndexFunc(rules, func(r string) bool { return strings.Contains(r, what) })
			}
			passes := max(at("/pins/later"), at("/pins/allow"))
			if asks := at("--physdev-is-in -j NFQUEUE"); asks < passes || asks > at("/pins/reject") || at("--physdev-is-in -m hashlimit") < passes {
				t.Errorf("%s: such packets are not queued before the program rejects them:\n%s", f, strings.Join(rules, "\n"))
			}
		}
	}
}

// If the table filter cannot be written and the programs cannot be called either, all other rules
// are written.
func TestRejectAndPinsFail(t *testing.T) {
	m := newManagedReject(t, rejectOptions())
	m.filter.Break(errors.New("it belongs to a process"))
	for _, f := range []*Fake{m.v4, m.v6} {
		f.Refuse(func(text string) error {
			if strings.Contains(text, "--object-pinned") {
				return errors.New("no such match")
			}
			return nil
		})
	}
	m.apply()
	if less, _ := m.Lacks(); less != (Less{Pins: true, Reject: true}) || m.Rejects() {
		t.Errorf("lacks %+v; Rejects: %t", less, m.Rejects())
	}
	if dump := m.v4.Dump(); !strings.Contains(dump, "-j NFQUEUE") || strings.Contains(dump, "SLUICE-FORWARD") {
		t.Errorf("the rules are\n%s", dump)
	}
}
