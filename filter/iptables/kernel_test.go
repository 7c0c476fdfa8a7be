package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sluice/bench/testbed/lab"
)

// awaitTimeout bounds the wait for a condition or a packet.
const awaitTimeout = 2 * time.Minute

// backends lists the backends of the kernel.
var backends = []Backend{NFT, Legacy}

// inOwn selects nft on a node whose mangle cannot be used, so that the rules are in separate
// tables.
const inOwn Backend = "own"

// counted is a table that counts transactions.
type counted struct {
	Table
	writes atomic.Int64
}

func (t *counted) Restore(ctx context.Context, text string) error {
	t.writes.Add(1)
	return t.Table.Restore(ctx, text)
}

// realNode is a node of a lab with a Manager that keeps its rules in one backend.
type realNode struct {
	*lab.Node
	*Manager
	t       testing.TB
	lab     *lab.Lab
	backend Backend
	own     bool // the rules are in separate tables
	tables  []*counted
	logs    *logs
}

func newRealNode(t testing.TB, backend Backend, opts Options) *realNode {
	t.Helper()
	for _, f := range Families {
		for _, b := range backends {
			if _, err := lookPath(f.command() + "-" + string(b)); err != nil {
				t.Skipf("needs %s-%s: install the package iptables", f.command(), b)
			}
		}
	}
	l := lab.ForTest(t, lab.Options{})
	n := &realNode{Node: l.Nodes[0], t: t, lab: l, backend: backend, logs: &logs{}}
	if n.own = backend == inOwn; n.own {
		backend, n.backend = NFT, NFT
		n.nft("add table %[1]s mangle\nadd chain %[1]s mangle POSTROUTING { type filter hook postrouting priority 100; }")
	}
	logger := slog.New(slog.NewTextHandler(n.logs, nil))
	n.inside(func(ctx context.Context) error {
		tables, err := Open(ctx, backend, logger)
		if err != nil {
			return err
		}
		for i := range tables {
			n.tables = append(n.tables, &counted{Table: tables[i]})
			tables[i] = n.tables[i]
		}
		n.Manager = New(opts, tables, logger)
		return nil
	})
	if len(n.tables) != 2 {
		t.Fatalf("%d tables, want one for each family", len(n.tables))
	}
	return n
}

// inside calls f in the node's network namespace.
func (n *realNode) inside(f func(context.Context) error) {
	n.t.Helper()
	if err := n.Do(func() error { return f(n.t.Context()) }); err != nil {
		n.t.Fatal(err)
	}
}

func (n *realNode) iptables(f Family, args ...string) {
	n.t.Helper()
	if err := n.Node.Run(f.command()+"-"+string(n.backend), args...); err != nil {
		n.t.Fatal(err)
	}
}

// changing matches the parts that differ between two outputs of iptables-save: comments, which
// contain the time, and counters.
var changing = regexp.MustCompile(`(?m)^#.*\n|\[\d+:\d+\]`)

// saved returns the content of both families' tables.
func (n *realNode) saved() string {
	n.t.Helper()
	var all strings.Builder
	for _, f := range Families {
		text := n.output(f.command()+"-"+string(n.backend)+"-save", "-t", table)
		all.WriteString(changing.ReplaceAllString(text, ""))
	}
	return all.String()
}

func (n *realNode) output(name string, args ...string) (text string) {
	n.t.Helper()
	text, err := n.Output(exec.Command(name, args...))
	if err != nil {
		n.t.Fatal(err)
	}
	return text
}

// startManager runs Manager.Run until the test ends.
func (n *realNode) startManager() {
	ctx, cancel := context.WithCancel(n.t.Context())
	done := make(chan error)
	go func() {
		done <- n.Do(func() error { n.Manager.Run(ctx); return nil })
	}()
	n.t.Cleanup(func() {
		cancel()
		<-done
	})
}

// await waits until a condition holds.
func await(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(awaitTimeout); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out after %v: %s", awaitTimeout, what)
		}
	}
}

// withBackends runs a test with each backend.
func withBackends(t *testing.T, f func(*testing.T, Backend)) {
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel() // most of the time is spent waiting for the Manager
			f(t, b)
		})
	}
}

// withPlaces runs a test with each backend, and with the separate tables.
func withPlaces(t *testing.T, f func(*testing.T, Backend)) {
	withBackends(t, f)
	t.Run(string(inOwn), func(t *testing.T) {
		t.Parallel()
		f(t, inOwn)
	})
}

// addForeignRules adds rules of another program to every chain of both families' tables, to check
// that they stay.
func (n *realNode) addForeignRules() {
	n.t.Helper()
	for _, f := range Families {
		n.iptables(f, "-t", table, "-N", "KUBE-THEIRS")
		n.iptables(f, "-t", table, "-A", "KUBE-THEIRS", "-m", "comment", "--comment", "not -j SLUICE", "-j", "RETURN")
		for _, chain := range []string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"} {
			n.iptables(f, "-t", table, "-A", chain, "-p", "tcp", "-j", "KUBE-THEIRS")
		}
	}
}

// After Apply, the kernel has the rules of Wanted. A second Apply writes nothing, and Remove
// restores the previous content of the tables.
func TestRealApplyAndRemove(t *testing.T) {
	withBackends(t, func(t *testing.T, b Backend) {
		n := newRealNode(t, b, Defaults)
		n.addForeignRules()
		before := n.saved()
		n.inside(n.Apply)
		after := n.saved()
		for _, f := range Families {
			for _, rules := range Defaults.chains(f) {
				for _, rule := range rules {
					if !strings.Contains(after, rule+"\n") {
						t.Errorf("%s lacks %s", f, rule)
					}
				}
			}
		}
		if at, theirs := strings.Index(after, mangle.entries[1].jump()+"\n"), strings.Index(after, "-A POSTROUTING -p tcp"); at < 0 || theirs < at {
			t.Errorf("the jump is not the first rule:\n%s", after)
		}
		n.inside(n.Apply)
		for _, table := range n.tables {
			if w := table.writes.Load(); w != 1 {
				t.Errorf("%s was written %d times", table, w)
			}
		}
		n.inside(func(ctx context.Context) error { return n.Pause(ctx, DropUnqueued) })
		n.inside(n.Remove)
		if got := n.saved(); got != before {
			t.Errorf("the tables hold\n%s\nand held\n%s", got, before)
		}
	})
}

// While there are no rules, Forged returns 0 and no error, with and without chains of other
// programs.
func TestRealForgedWithoutRules(t *testing.T) {
	withBackends(t, func(t *testing.T, b Backend) {
		n := newRealNode(t, b, Defaults)
		n.inside(func(ctx context.Context) error {
			logger := slog.New(slog.NewTextHandler(n.logs, nil))
			tables, err := Open(ctx, b, logger)
			if err != nil {
				return err
			}
			m := New(Defaults, tables, logger)
			check := func(when string) {
				if sum, err := m.Forged(); sum != 0 || err != nil {
					t.Errorf("%s: %d, %v", when, sum, err)
				}
			}
			check("before the rules")
			n.addForeignRules()
			check("with rules of another program")
			if err := m.Apply(ctx); err != nil {
				return err
			}
			check("after Apply")
			if err := m.Remove(ctx); err != nil {
				return err
			}
			check("after Remove")
			return nil
		})
	})
}

// iptables-save may print the rule of the per-source limit in another form than the Manager
// wrote. The Manager records the printed form. So its checks find no difference and repair
// nothing, for any limit.
func TestRealSourceLimits(t *testing.T) {
	withBackends(t, func(t *testing.T, b Backend) {
		for _, share := range []int{1, 7, 50, 59, 999, 3000, 6000, MaxSourceShare} { // 50 and 59 have a burst of 5, iptables' default, which iptables-save omits
			opts := Defaults
			opts.SourceShare = share
			n := newRealNode(t, b, opts)
			n.inside(n.Apply)
			if text := n.saved(); !strings.Contains(text, "--hashlimit-above ") {
				t.Errorf("%d: no rule in\n%s", share, text)
			}
			n.inside(func(ctx context.Context) error { n.reconcile(ctx); n.reconcile(ctx); return nil })
			if n.Repairs() > 0 || len(n.Failures()) > 0 {
				t.Errorf("%d: %d repairs\n%s", share, n.Repairs(), n.logs)
			}
		}
	})
}

// damage lists changes that other programs could make to the rules in the kernel.
var damage = map[string][]string{
	"flush all":    {"-F", "-X SLUICE", "-X SLUICE-ALLOW"},
	"flush SLUICE": {"-F SLUICE"},
	"first rule":   {"-I POSTROUTING 1 -p udp -j ACCEPT"},
	"twice":        {"-A POSTROUTING -j SLUICE", "-A POSTROUTING -p tcp -g SLUICE"},
	"older chains": {"-N SLUICE-V0", "-A SLUICE-V0 -j SLUICE-ALLOW", "-A OUTPUT -j SLUICE-V0"},
}

func TestRealRepairs(t *testing.T) {
	withBackends(t, func(t *testing.T, b Backend) {
		n := newRealNode(t, b, Defaults)
		n.inside(n.Apply)
		wanted := n.saved()
		n.startManager()
		for name, lines := range damage {
			before := n.Repairs()
			n.change(lines...)
			await(t, "repaired after "+name, func() bool { return n.Repairs() >= before+2 })
			if got := n.Repairs(); got != before+2 {
				t.Errorf("%d repairs after %s, want one of each family\n%s", got-before, name, n.logs)
			}
			if name == "first rule" { // the foreign rule is still there
				n.change("-D POSTROUTING -p udp -j ACCEPT")
			}
			if got := n.saved(); sorted(got) != sorted(wanted) {
				t.Errorf("after %s the tables hold\n%s\nand should hold\n%s", name, got, wanted)
			}
		}
		if warnings := n.logs.count(slog.LevelWarn); warnings != 2*len(damage) {
			t.Errorf("%d warnings for %d repairs:\n%s", warnings, 2*len(damage), n.logs)
		}
	})
}

// change applies the lines to the tables of both families. It uses one transaction for each table,
// so that the Manager does not check in the middle of the change.
func (n *realNode) change(lines ...string) {
	n.t.Helper()
	text := "*" + table + "\n" + strings.Join(lines, "\n") + "\nCOMMIT\n"
	n.inside(func(ctx context.Context) error {
		var errs []error
		for _, table := range n.tables {
			errs = append(errs, table.Table.Restore(ctx, text))
		}
		return errors.Join(errs...)
	})
}

// The generation of nf_tables changes with every change of the rules, and only then. The legacy
// backend has no generation.
func TestRealGeneration(t *testing.T) {
	n := newRealNode(t, NFT, Defaults)
	generation := func() (number uint32) {
		n.inside(func(context.Context) (err error) {
			number, err = nftGeneration()
			return err
		})
		return number
	}
	n.inside(n.Apply)
	before := generation()
	n.inside(n.Apply) // the rules are right, so Apply only reads
	if got := generation(); got != before {
		t.Errorf("generation %d after %d without a change", got, before)
	}
	n.change("-A OUTPUT -j RETURN")
	if got := generation(); got == before {
		t.Errorf("generation %d after a change, and before", got)
	}
	legacy := newRealNode(t, Legacy, Defaults)
	if _, known := legacy.tables[0].Generation(); known {
		t.Error("the legacy backend reports a generation")
	}
}

// sorted sorts the lines of a text, to compare tables whose chains may be in a different order.
func sorted(text string) string {
	lines := strings.Split(text, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// Cleanup removes the rules in both backends, and creates no legacy tables.
func TestRealCleanup(t *testing.T) {
	n := newRealNode(t, NFT, Defaults)
	n.inside(func(ctx context.Context) error {
		tables, err := OpenAll(ctx)
		if err != nil {
			return err
		}
		for _, table := range tables {
			if strings.HasSuffix(table.String(), string(Legacy)) {
				t.Errorf("%s exists before it was created", table)
			}
		}
		removed, err := Cleanup(ctx, tables)
		if len(removed) > 0 {
			t.Errorf("removed %q from nothing", removed)
		}
		return err
	})
	n.inside(n.Apply)
	n.inside(func(ctx context.Context) error {
		legacy, err := Open(ctx, Legacy, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		if err := New(Defaults, legacy, nil).Apply(ctx); err != nil {
			return err
		}
		others, err := Others(ctx, []Table{n.tables[0], n.tables[1]})
		if err != nil || len(others) != 2 || others[0].String() != "iptables-legacy" || others[1].String() != "ip6tables-legacy" {
			return fmt.Errorf("the other tables are %v, %w", others, err)
		}
		all, err := OpenAll(ctx)
		if err != nil {
			return err
		}
		removed, err := Cleanup(ctx, all)
		if len(removed) != 4*5 { // two jumps and three chains
			t.Errorf("removed %d objects: %s", len(removed), strings.Join(removed, "\n"))
		}
		return err
	})
	for _, command := range []string{"iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"} {
		if text := n.output(command); strings.Contains(text, Chain) {
			t.Errorf("%s:\n%s", command, text)
		}
	}
}

// Open selects the backend that has rules of other programs. It ignores Sluice's own rules.
func TestRealDetection(t *testing.T) {
	n := newRealNode(t, Legacy, Defaults)
	detected := func() Backend {
		var tables []Table
		n.inside(func(ctx context.Context) (err error) {
			tables, err = Open(ctx, Auto, slog.New(slog.DiscardHandler))
			return err
		})
		for _, b := range backends {
			if strings.HasSuffix(tables[0].String(), string(b)) {
				return b
			}
		}
		return Backend(tables[0].String())
	}
	usual := detected()
	for _, b := range backends {
		n.backend = b
		n.iptables(IPv4, "-t", "filter", "-N", "KUBE-KUBELET-CANARY")
		if got := detected(); got != b {
			t.Errorf("kubelet uses %s, and %s is detected", b, got)
		}
		n.iptables(IPv4, "-t", "filter", "-X", "KUBE-KUBELET-CANARY")
		n.iptables(IPv6, "-t", "nat", "-A", "OUTPUT", "-j", "RETURN")
		if got := detected(); got != b {
			t.Errorf("the rules are in %s, and %s is detected", b, got)
		}
		n.iptables(IPv6, "-t", "nat", "-F", "OUTPUT")
	}
	n.inside(n.Apply) // writes the rules to the legacy backend
	if got := detected(); got != usual {
		t.Errorf("our own rules in legacy make it choose %s and not %s", got, usual)
	}
}

func TestChoose(t *testing.T) {
	tests := map[string]struct {
		nft, legacy string // the output of the -save commands
		want        Backend
	}{
		"nothing":         {want: NFT},
		"more rules":      {nft: "-A INPUT -j ACCEPT\n", legacy: "-A INPUT -j ACCEPT\n-A INPUT -j DROP\n", want: Legacy},
		"kubelet's hint":  {nft: "-A INPUT -j ACCEPT\n", legacy: ":KUBE-IPTABLES-HINT - [0:0]\n", want: Legacy},
		"kubelet in both": {nft: ":KUBE-KUBELET-CANARY - [0:0]\n-A INPUT -j DROP\n", legacy: ":KUBE-IPTABLES-HINT - [0:0]\n", want: NFT},
		"owned rules":     {legacy: "-A POSTROUTING -j SLUICE\n-A SLUICE -j RETURN\n-A SLUICE-ALLOW -j RETURN\n", want: NFT},
	}
	for name, tt := range tests {
		var nft, legacy use
		nft.add(tt.nft)
		legacy.add(tt.legacy)
		if got, _ := choose(nft, legacy, NFT); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

// explain turns an error for lack of privilege into one that names the required privileges.
func TestExplain(t *testing.T) {
	err := explain(errors.New("iptables v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied (you must be root)"))
	if !errors.Is(err, ErrPrivilege) || !strings.Contains(err.Error(), "NET_ADMIN") {
		t.Errorf("%v", err)
	}
	if err := explain(os.ErrNotExist); errors.Is(err, ErrPrivilege) {
		t.Errorf("%v", err)
	}
}
