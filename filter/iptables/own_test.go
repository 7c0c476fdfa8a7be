package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// ownCounter is like counter, for separate tables. It supports only "-j DROP".
func (p *packets) ownCounter(end string) (n int) {
	p.realNode.t.Helper()
	if end != "-j DROP" {
		p.realNode.t.Fatalf("no counter of rules that end with %q", end)
	}
	p.inside(func(context.Context) error {
		for _, f := range Families {
			packets, err := newOwnTable(f).Dropped(Chain)
			if err != nil {
				return err
			}
			n += int(packets)
		}
		return nil
	})
	return n
}

// everyRule returns a list of options; each rule is produced by at least one of them.
func everyRule() []Options {
	return []Options{
		Defaults, pinnedOptions(), Defaults.without(Less{Overflow: true, Sources: true}),
		{AllowedMark: 1, RevokedMark: 1 << 31, FirstQueue: 7, Queues: 1, SourceShare: 7, FailOpen: true},
		{AllowedMark: 1 << 30, RevokedMark: 2, Queues: 8, SourceShare: MaxSourceShare, NodeSources: prefixes("10.1.2.3/32", "fd00::7/128")},
		{AllowedMark: 1 << 8, RevokedMark: 4, Queues: 2, SourceShare: 1, NodeSources: prefixes("10.1.2.3/32", "fd00::7/128"), Reject: true},
		{AllowedMark: 1 << 8, RevokedMark: 4, Queues: 2, SourceShare: 1, Guarded: true, Reject: true, BridgePorts: true, LaterPin: "/pins/later", RejectPin: "/pins/reject"},
	}
}

// encodeRule accepts every rule that options can produce, and returns an error for other rules.
func TestEncodeRule(t *testing.T) {
	for _, f := range Families {
		for _, o := range everyRule() {
			for _, chains := range []map[string][]string{o.chains(f), o.paused(f, PassUnqueued), o.paused(f, DropUnqueued)} {
				for name, rules := range chains {
					for _, rule := range rules {
						if _, err := encodeRule(f, strings.TrimPrefix(rule, "-A "+name+" ")); err != nil {
							t.Errorf("%s %q: %v", f, rule, err)
						}
					}
				}
			}
		}
		for _, rule := range []string{
			"-p sctp -j DROP", "-o lo -j DROP", "-s 10.0.0.0/33 -j DROP", "-s theirs -j DROP", "-d 10.0.0.0/8 -j DROP", "-j ACCEPT", "-j KUBE-THEIRS", "-m mark --mark x -j DROP", "-m mark --mark 1 -j DROP",
			"-m conntrack --ctstate NEW -j DROP", "-m conntrack --ctdir ORIGINAL -j DROP", "-m addrtype --src-type UNICAST -j DROP",
			"-m addrtype --dst-type LOCAL -j DROP", "-m rpfilter -j DROP", "-m rpfilter --loose --invert -j DROP", "-m hl --hl-lt 3 -j DROP",
			"-m bpf --bytecode 1 -j DROP", "-m physdev --physdev-is-out -j DROP", "-m physdev --physdev-is-in --physdev-is-out -j DROP", "-m hashlimit --hashlimit-above 1/min -j DROP", "-m hashlimit --hashlimit-upto 5/sec -j DROP",
			"-j NFQUEUE", "-j MARK --set-mark 1", "-m comment --comment x -j DROP", "-j",
		} {
			if _, err := encodeRule(f, rule); err == nil {
				t.Errorf("%s %q: no error", f, rule)
			}
		}
	}
}

// For each rule that encodeRule encodes, iptables prints the text that was encoded.
func TestRealEncodedAsIptablesDoes(t *testing.T) {
	for i, o := range everyRule() {
		n := newRealNode(t, NFT, o)
		for _, f := range Families {
			text, _, _ := strings.Cut(o.Wanted(f), "*filter")
			text = strings.ReplaceAll(text, " -m rpfilter --invert", "") // encoded as fib, which iptables cannot print
			lines := slices.DeleteFunc(strings.SplitAfter(text, "\n"), func(line string) bool {
				return strings.Contains(line, "--object-pinned") // the kernel would require the pinned program
			})
			text = strings.Join(lines, "")
			n.inside(func(context.Context) error {
				b := newOwnChange(nftTable{f, table})
				return b.all(text)
			})
			saved := n.output(f.command()+"-nft-save", "-t", table)
			for line := range strings.Lines(text) {
				if strings.HasPrefix(line, "-A ") && !strings.Contains(saved, line) {
					t.Errorf("%d, %s: %snot in\n%s", i, f, line, saved)
				}
			}
		}
	}
}

// obstacles maps each reason why mangle cannot be used to nft commands that cause it.
var obstacles = map[string]string{
	"another priority":  "add table %[1]s mangle\nadd chain %[1]s mangle POSTROUTING { type filter hook postrouting priority 100; }",
	"another hook":      "add table %[1]s mangle\nadd chain %[1]s mangle PREROUTING { type filter hook input priority -150; }",
	"another type":      "add table %[1]s mangle\nadd chain %[1]s mangle POSTROUTING { type nat hook postrouting priority -150; }",
	"no base chain":     "add table %[1]s mangle\nadd chain %[1]s mangle PREROUTING\nadd rule %[1]s mangle PREROUTING accept",
	"owned":             "add table %[1]s mangle { flags owner; }",
	"owned with chains": "add table %[1]s mangle { flags owner; }\nadd chain %[1]s mangle POSTROUTING { type filter hook postrouting priority mangle; }\nadd rule %[1]s mangle POSTROUTING counter",
}

// obstruct replaces a family's table mangle by the one that script, an entry of obstacles, creates.
// end removes the new table. A table that a process owns is also removed when the test ends.
func (n *realNode) obstruct(f Family, script string) (end func()) {
	n.t.Helper()
	script = strings.ReplaceAll("add table %[1]s mangle\ndelete table %[1]s mangle\n"+script, "%[1]s", nftFamily[f])
	if !strings.Contains(script, "owner") {
		n.nftOnce(script)
		return func() { n.nftOnce("delete table " + nftFamily[f] + " mangle") }
	}
	if _, err := exec.LookPath("nft"); err != nil {
		n.t.Skip("needs nft: install the package nftables")
	}
	cmd := exec.Command("nft", "-i") // this process owns the table while it runs
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = n.Start(cmd)
	}
	if err == nil {
		_, err = stdin.Write([]byte(strings.ReplaceAll(script, "\n", "; ") + "\n"))
	}
	if err != nil {
		n.t.Fatal(err)
	}
	ended := false
	end = func() {
		if !ended {
			ended = true
			_ = stdin.Close()
			_ = cmd.Wait()
		}
	}
	n.t.Cleanup(end)
	await(n.t, "the table is there", func() bool { return strings.Contains(n.tableText(f, table), "flags owner") })
	return end
}

// tableText returns the content of a table without counters, empty if it does not exist.
func (n *realNode) tableText(f Family, name string) string {
	text, err := n.Output(exec.Command("nft", "--stateless", "list", "table", nftFamily[f], name))
	if err != nil {
		return ""
	}
	return text
}

// wantInOwnTable checks that the rules of a family are in the separate table, and only there.
func (n *realNode) wantInOwnTable(f Family) {
	n.t.Helper()
	own := n.tableText(f, ownName)
	for _, e := range mangle.entries[:2] {
		if !strings.Contains(own, "jump "+e.chain+"\n") {
			n.t.Errorf("%s: the separate table holds\n%s", f, own)
		}
	}
	if text := n.tableText(f, table); strings.Contains(text, Chain) {
		n.t.Errorf("%s: mangle holds\n%s", f, text)
	}
}

// someFamilies lists the combinations of families whose mangle is obstructed.
var someFamilies = [][]Family{{IPv4}, {IPv6}, {IPv4, IPv6}}

// If mangle cannot be used, the rules are in a separate table and work there as in mangle: a
// connection is queued once, changes by other programs are undone, and Remove leaves nothing.
func TestRealOwnTable(t *testing.T) {
	for name, script := range obstacles {
		for _, families := range someFamilies {
			t.Run(fmt.Sprintf("%s%v", name, families), func(t *testing.T) {
				t.Parallel()
				p := newObstructed(t, families, script)
				before := p.tableText(families[0], table)
				p.wantQueuedOnce()
				p.startManager()
				for _, damage := range ownDamage {
					repairs := p.Repairs()
					for _, f := range families {
						p.nftOnce(strings.ReplaceAll(damage, "%[1]s", nftFamily[f]))
					}
					await(t, "repaired after "+damage, func() bool { return p.Repairs() >= repairs+uint64(len(families)) })
					for _, f := range families {
						p.wantInOwnTable(f)
					}
					p.wantQueuedOnce()
				}
				if failures := p.Failures(); len(failures) > 0 {
					t.Errorf("failures %q", failures)
				}
				p.inside(func(ctx context.Context) error { return p.Pause(ctx, PassUnqueued) })
				p.wantQueued(0, p.sendBoth)
				p.inside(p.Remove)
				p.wantQueued(0, p.sendBoth)
				if text := p.output("nft", "list", "ruleset"); strings.Contains(text, Chain) || strings.Contains(text, ownName) {
					t.Errorf("left:\n%s", text)
				}
				if after := p.tableText(families[0], table); after != before {
					t.Errorf("mangle holds\n%s\nand held\n%s", after, before)
				}
			})
		}
	}
}

// While the guard drops forged sources, the separate table has no chain in PREROUTING, because
// the kernel would call it for every packet. When the guard stops, the chain is added.
func TestRealOwnTableGuarded(t *testing.T) {
	opts := Defaults
	opts.Guarded = true
	for _, f := range Families {
		n := newRealNode(t, NFT, opts)
		o := newOwnTable(f)
		m := New(opts, []Table{o}, nil)
		n.inside(m.Apply)
		if text := n.tableText(f, ownName); strings.Contains(text, "prerouting") || !strings.Contains(text, "jump SLUICE\n") {
			t.Errorf("%s: with the guard\n%s", f, text)
		}
		for range 2 {
			n.inside(func(ctx context.Context) error { return m.SetGuarded(ctx, false) })
			n.wantInOwnTable(f)
			n.inside(func(ctx context.Context) error { return m.SetGuarded(ctx, true) })
			if text := n.tableText(f, ownName); strings.Contains(text, "SLUICE-SOURCE") || !strings.Contains(text, "jump SLUICE\n") {
				t.Errorf("%s: with the guard again\n%s", f, text)
			}
		}
		n.nftOnce(fmt.Sprintf("delete table %s %s", nftFamily[f], ownName))
		n.inside(m.Apply)
		if text := n.tableText(f, ownName); strings.Contains(text, "prerouting") || !strings.Contains(text, "jump SLUICE\n") {
			t.Errorf("%s: written again\n%s", f, text)
		}
		n.inside(m.Remove)
		if text := n.tableText(f, ownName); text != "" {
			t.Errorf("%s: left\n%s", f, text)
		}
	}
}

// ownDamage lists changes that other programs could make to the separate table.
var ownDamage = []string{
	"flush table %[1]s sluice",
	"delete table %[1]s sluice",
	"flush chain %[1]s sluice SLUICE",
	"flush chain %[1]s sluice POSTROUTING",
	"add rule %[1]s sluice SLUICE-SOURCE counter",
	"insert rule %[1]s sluice SLUICE counter accept",
	"insert rule %[1]s sluice POSTROUTING counter accept",
	"add table %[1]s sluice { flags dormant; }",
	"flush chain %[1]s sluice PREROUTING\ndelete chain %[1]s sluice PREROUTING",
	"flush table %[1]s sluice\ndelete chain %[1]s sluice POSTROUTING\nadd chain %[1]s sluice POSTROUTING { type filter hook input priority 7; }",
	"flush table %[1]s sluice\ndelete chain %[1]s sluice SLUICE\nadd chain %[1]s sluice SLUICE { type filter hook input priority 7; }",
	"add chain %[1]s sluice SLUICE-V0\nadd chain %[1]s sluice x\nadd rule %[1]s sluice x counter jump SLUICE-V0\nadd rule %[1]s sluice POSTROUTING counter jump x",
	"flush chain %[1]s sluice POSTROUTING\ndelete chain %[1]s sluice x", // undoes the previous entry, whose foreign chain and jump would stay
}

// newObstructed returns a node with two pods. mangle of the given families cannot be used there.
func newObstructed(t *testing.T, families []Family, script string) *packets {
	t.Helper()
	n := newRealNode(t, NFT, Defaults)
	for _, f := range families {
		n.obstruct(f, script)
	}
	p := n.withPods(Defaults)
	for _, f := range families {
		n.wantInOwnTable(f)
		if name := n.tables[slices.Index(Families, f)].String(); name != "nft table "+nftFamily[f]+" sluice" {
			t.Errorf("the table is reported as %s", name)
		}
	}
	return p
}

// sendBoth sends one packet of each family from pod a to pod b.
func (p *packets) sendBoth() {
	p.families(func(a, b netip.Addr) {
		f := p.flow(p.a, a, p.b, b)
		f.send()
		f.arrives()
	})
}

// wantQueuedOnce checks that, for each family, only the first packet of a flow is queued.
func (p *packets) wantQueuedOnce() {
	p.realNode.t.Helper()
	p.wantQueued(2, func() {
		p.families(func(a, b netip.Addr) {
			f := p.flow(p.a, a, p.b, b)
			for range 3 {
				f.send()
				f.arrives()
			}
		})
	})
}

// If mangle becomes unusable while the agent runs, the rules move to the separate table. The next
// agent moves them back if mangle is usable again. Neither move leaves rules behind.
func TestRealMoves(t *testing.T) {
	for name, script := range obstacles {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPackets(t, NFT, Defaults)
			p.startManager()
			var ends []func()
			for _, f := range Families {
				ends = append(ends, p.obstruct(f, script))
			}
			for _, f := range Families {
				await(t, "the rules are in the separate table", func() bool {
					return strings.Contains(p.tableText(f, ownName), "jump "+Chain+"\n") && !strings.Contains(p.tableText(f, table), Chain)
				})
			}
			await(t, "no failures are left", func() bool { return len(p.Failures()) == 0 })
			p.wantQueuedOnce()
			for _, end := range ends {
				end()
			}
			p.inside(p.repair)
			p.wantQueuedOnce()
			p.inside(func(ctx context.Context) error {
				p.Yield()
				return p.takeOver(ctx)
			})
			for _, f := range Families {
				if text := p.tableText(f, ownName); strings.Contains(text, Chain) {
					t.Errorf("left:\n%s", text)
				}
				if text := p.tableText(f, table); !strings.Contains(text, "jump "+Chain) {
					t.Errorf("mangle holds\n%s", text)
				}
			}
			p.wantQueuedOnce()
			p.cleanup()
		})
	}
}

// cleanup calls Cleanup for all tables, and returns its lines.
func (p *packets) cleanup() (removed []string) {
	p.realNode.t.Helper()
	p.inside(func(ctx context.Context) error {
		all, err := OpenAll(ctx)
		if err == nil {
			removed, err = Cleanup(ctx, all)
		}
		return err
	})
	if text := p.output("nft", "list", "ruleset"); strings.Contains(text, Chain) || strings.Contains(text, ownName) {
		p.realNode.t.Errorf("left:\n%s", text)
	}
	return removed
}

// takeOver applies the rules with a new Manager and cleans up all other tables, as the next agent
// does.
func (p *packets) takeOver(ctx context.Context) error {
	tables, err := Open(ctx, NFT, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	m := New(Defaults, tables, slog.New(slog.NewTextHandler(p.logs, nil)))
	if err := m.Apply(ctx); err != nil {
		return err
	}
	others, err := Others(ctx, tables)
	if err != nil {
		return err
	}
	_, err = Cleanup(ctx, others)
	return errors.Join(err, m.verify(ctx))
}

// verify checks the tables, and returns an error if a table needed a repair.
func (m *Manager) verify(ctx context.Context) error {
	m.reconcile(ctx)
	if m.Repairs() > 0 || len(m.Failures()) > 0 {
		return fmt.Errorf("%d repairs, failures %q", m.Repairs(), m.Failures())
	}
	return nil
}

// Cleanup finds and removes what an agent left in separate tables.
func TestRealCleanupOfOwnTable(t *testing.T) {
	p := newObstructed(t, Families, obstacles["owned"])
	text := strings.Join(p.cleanup(), "\n")
	for _, want := range []string{"nft table ip6 sluice chain SLUICE, rules: 13", "nft table ip sluice rule PREROUTING -j SLUICE-SOURCE"} {
		if !strings.Contains(text, want) {
			t.Errorf("removed, without %q\n%s", want, text)
		}
	}
}
