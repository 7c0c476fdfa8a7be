package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// nftOnly lists nft commands, each of which adds to the table an object that iptables cannot list
// or does not expect. %s is the family, ip or ip6.
var nftOnly = map[string]string{
	"a meter in another chain":  "add rule %s mangle FORWARD ct state new meter m { meta mark limit rate 1000/second } counter",
	"a meter in our hook":       "add rule %s mangle POSTROUTING ct state new meter m { meta mark limit rate 1000/second } counter",
	"an expression in our hook": "insert rule %s mangle POSTROUTING numgen inc mod 2 == 0 counter",
	"a statement in our hook":   "add rule %s mangle POSTROUTING tcp flags syn tcp option maxseg size set rt mtu",
	"a set and a map":           "add set %[1]s mangle s { type mark; flags timeout; }\nadd map %[1]s mangle m { type mark : verdict; elements = { 7 : drop }; }\nadd rule %[1]s mangle POSTROUTING meta mark vmap @m",
	"a base chain":              "add chain %[1]s mangle theirs { type filter hook postrouting priority -160; }\nadd rule %[1]s mangle theirs numgen inc mod 2 == 0 counter",
	"a chain of its own":        "add chain %[1]s mangle theirs\nadd rule %[1]s mangle theirs numgen inc mod 2 == 0 counter\nadd rule %[1]s mangle POSTROUTING jump theirs",
	"an object and a comment":   "add quota %[1]s mangle q { over 1 mbytes; }\nadd rule %[1]s mangle POSTROUTING numgen inc mod 2 == 0 quota name \"q\" counter comment \"-j SLUICE\"",
}

var nftFamily = map[Family]string{IPv4: "ip", IPv6: "ip6"}

// nft runs nft commands for both families.
func (n *realNode) nft(format string) {
	n.t.Helper()
	for _, f := range Families {
		n.nftOnce(strings.NewReplacer("%[1]s", nftFamily[f], "%s", nftFamily[f]).Replace(format))
	}
}

// nftOnce runs nft commands in one transaction.
func (n *realNode) nftOnce(script string) {
	n.t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		n.t.Skip("needs nft: install the package nftables")
	}
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := n.Output(cmd); err != nil {
		n.t.Fatalf("nft %.300q: %v %s", script, err, out)
	}
}

// emptyChains creates iptables' built-in chains without rules: iptables creates each chain with
// its first rule.
func (n *realNode) emptyChains() {
	n.t.Helper()
	for _, f := range Families {
		for _, chain := range []string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"} {
			n.iptables(f, "-t", table, "-A", chain, "-j", "ACCEPT")
			n.iptables(f, "-t", table, "-D", chain, "-j", "ACCEPT")
		}
	}
}

// ruleset returns the content of both families' tables, without counters.
func (n *realNode) ruleset() string {
	n.t.Helper()
	text := ""
	for _, f := range Families {
		text += n.output("nft", "--stateless", "list", "table", nftFamily[f], table)
	}
	return text
}

// wantInForce checks that the jump to Chain is the first rule of POSTROUTING, and that Chain is
// not empty.
func (n *realNode) wantInForce() {
	n.t.Helper()
	for _, f := range Families {
		text := n.output("nft", "--stateless", "list", "chain", nftFamily[f], table, "POSTROUTING")
		_, text, _ = strings.Cut(text, "policy")
		rules := strings.Split(text, "\n")
		if len(rules) < 2 || !strings.HasSuffix(rules[1], "jump "+Chain) || strings.Count(text, Chain) != 1+strings.Count(text, `"-j SLUICE"`) {
			n.t.Errorf("%s: the hook holds\n%s", f, text)
		}
		if text := n.output("nft", "list", "chain", nftFamily[f], table, Chain); !strings.Contains(text, "queue") && !strings.Contains(text, "NFQUEUE") && strings.Count(text, "\n") < 8 {
			n.t.Errorf("%s: chain SLUICE holds\n%s", f, text)
		}
	}
}

// The rules can be applied, restored, paused and removed in a table with objects that iptables does
// not understand. These objects stay as they were.
func TestRealForeign(t *testing.T) {
	for name, script := range nftOnly {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newRealNode(t, NFT, Defaults)
			n.emptyChains()
			n.nft(script)
			before := n.ruleset()
			n.inside(n.Apply)
			n.wantInForce()
			n.inside(n.Apply)
			for _, table := range n.tables {
				if w := table.writes.Load(); w != 1 {
					t.Errorf("%s was written %d times", table, w)
				}
			}
			for _, lines := range damage {
				n.change(lines...)
				n.inside(n.repair)
				if name := lines[0]; name == "-I POSTROUTING 1 -p udp -j ACCEPT" {
					n.change("-D POSTROUTING -p udp -j ACCEPT")
				} else if lines[0] == "-F" {
					n.nft("flush ruleset")
					n.emptyChains()
					n.nft(script)
					n.inside(n.repair)
				}
				n.wantInForce()
			}
			n.inside(func(ctx context.Context) error { return n.Pause(ctx, DropUnqueued) })
			n.inside(n.Remove)
			if got := n.ruleset(); got != before {
				t.Errorf("the tables hold\n%s\nand held\n%s", got, before)
			}
		})
	}
}

// repair checks the tables once, and returns an error if a table cannot be repaired.
func (n *realNode) repair(ctx context.Context) error {
	n.reconcile(ctx)
	if failed := n.Failures(); len(failed) > 0 {
		return fmt.Errorf("cannot be repaired: %q", failed)
	}
	return nil
}

// In tables with the objects of nftOnly, Open detects the backend, and Cleanup removes only owned
// chains and rules that lead to them.
func TestRealCleanupBesideForeign(t *testing.T) {
	for name, script := range nftOnly {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newRealNode(t, NFT, Defaults)
			n.emptyChains()
			n.nft(script)
			before := n.ruleset()
			n.inside(n.Apply)
			n.inside(func(ctx context.Context) error {
				if _, err := Open(ctx, Auto, slog.New(slog.DiscardHandler)); err != nil {
					return err
				}
				all, err := OpenAll(ctx)
				if err != nil {
					return err
				}
				_, err = Cleanup(ctx, all)
				return err
			})
			if got := n.ruleset(); got != before {
				t.Errorf("the tables hold\n%s\nand held\n%s", got, before)
			}
		})
	}
}

// A repair corrects each of these states of the table. In each of them, packets bypass our
// rules, or iptables cannot rewrite our chains.
func TestRealTableStates(t *testing.T) {
	for name, script := range map[string]string{
		"the table is dormant":             "add table %s mangle { flags dormant; }",
		"owned chain is a base chain":      "flush chain %[1]s mangle POSTROUTING\nflush chain %[1]s mangle SLUICE\ndelete chain %[1]s mangle SLUICE\nadd chain %[1]s mangle SLUICE { type filter hook forward priority 5; }\nadd rule %[1]s mangle SLUICE counter",
		"owned chain has an nft-only rule": "insert rule %s mangle SLUICE numgen inc mod 2 == 0 accept",
		"foreign rule is the jump":         "flush chain %[1]s mangle POSTROUTING\nadd rule %[1]s mangle POSTROUTING numgen inc mod 2 == 0 jump SLUICE",
		"foreign rule jumps there too":     "add chain %[1]s mangle theirs\nadd rule %[1]s mangle POSTROUTING numgen inc mod 2 == 0 goto SLUICE",
		"foreign rule uses an older chain": "add chain %[1]s mangle SLUICE-V0\nadd rule %[1]s mangle SLUICE-V0 accept\nadd rule %[1]s mangle FORWARD numgen inc mod 2 == 0 jump SLUICE-V0",
		"the jump is not first":            "insert rule %s mangle POSTROUTING numgen inc mod 2 == 0 accept",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newRealNode(t, NFT, Defaults)
			n.inside(n.Apply)
			n.emptyChains()
			n.nft(script)
			n.inside(n.repair)
			n.wantInForce()
			if n.Repairs() != 2 {
				t.Errorf("%d repairs, want one for each family\n%s", n.Repairs(), n.logs)
			}
			if text := n.ruleset(); strings.Contains(text, "dormant") || strings.Contains(text, "SLUICE-V0") {
				t.Errorf("the tables hold\n%s", text)
			}
			n.inside(n.repair)
			if n.Repairs() != 2 {
				t.Errorf("%d repairs, want no more after the first\n%s", n.Repairs(), n.logs)
			}
			n.inside(n.Remove)
			if text := n.ruleset(); strings.Contains(text, Chain) {
				t.Errorf("the tables hold\n%s", text)
			}
		})
	}
}

// A chain that a map of another program refers to cannot be deleted. The empty chain stays, and
// neither Remove nor another Apply fails because of it.
func TestRealReferredTo(t *testing.T) {
	n := newRealNode(t, NFT, Defaults)
	n.inside(n.Apply)
	n.nft("add chain %[1]s mangle SLUICE-V0\nadd rule %[1]s mangle SLUICE-V0 accept\nadd chain %[1]s mangle theirs\nadd rule %[1]s mangle theirs meta mark vmap { 7 : jump SLUICE, 8 : jump SLUICE-V0 }")
	n.inside(n.repair)
	n.inside(n.repair)
	if n.Repairs() != 2 {
		t.Errorf("%d repairs, want one for each family\n%s", n.Repairs(), n.logs)
	}
	n.wantInForce()
	n.inside(func(ctx context.Context) error { return n.Pause(ctx, DropUnqueued) })
	n.inside(n.Remove)
	if text := n.ruleset(); strings.Count(text, Chain) != 2*(2*2) || strings.Contains(text, allowChain) || strings.Contains(text, "accept\n") {
		t.Errorf("the tables hold\n%s", text)
	}
	n.inside(n.Apply)
	n.wantInForce()
}

// Early versions of iptables-nft do not list any chain of a table that contains an object
// unknown to them. With such a version, reconcile still detects whether the rules have
// changed: it repairs changed rules, and does not touch unchanged ones.
func TestRealIptablesThatListsNothing(t *testing.T) {
	refusing := refusingIptables(t)
	n := newRealNode(t, NFT, Defaults)
	n.inside(func(ctx context.Context) error {
		table, err := openTable(IPv4, tool{family: IPv4, name: "iptables-nft", path: refusing, backend: NFT})
		if err != nil {
			return err
		}
		m := New(Defaults, []Table{table}, slog.New(slog.NewTextHandler(n.logs, nil)))
		if err := m.Apply(ctx); err != nil {
			return err
		}
		for range 2 {
			m.reconcile(ctx)
		}
		if m.Repairs() > 0 || len(m.Failures()) > 0 {
			return fmt.Errorf("%d repairs, failures %q", m.Repairs(), m.Failures())
		}
		n.iptables(IPv4, "-t", "mangle", "-R", Chain, "1", "-j", "RETURN")
		m.reconcile(ctx)
		if m.Repairs() != 1 || len(m.Failures()) > 0 {
			return fmt.Errorf("%d repairs, failures %q\n%s", m.Repairs(), m.Failures(), n.logs)
		}
		return m.Remove(ctx)
	})
}

// refusingIptables returns the path of an iptables-nft that refuses to list chains.
func refusingIptables(t *testing.T) string {
	t.Helper()
	real, err := lookPath("iptables-nft")
	if err != nil {
		t.Skip("needs iptables-nft: install the package iptables")
	}
	path := filepath.Join(t.TempDir(), "iptables-nft")
	script := "#!/bin/bash\nfor a; do if [ \"$a\" = -S ]; then echo \"table \\`mangle' is incompatible, use 'nft' tool.\" >&2; exit 1; fi; done\nexec -a iptables-nft " + real + " \"$@\"\n"
	writeScript(t, path, script)
	if err := os.Symlink(real+"-restore", path+"-restore"); err != nil {
		t.Fatal(err)
	}
	return path
}

// Foreign rules do not prevent Apply, repairs or Remove if iptables lacks the library to print
// them. A container's iptables may lack libraries that the node's iptables has.
func TestRealMissingLibraries(t *testing.T) {
	withBackends(t, func(t *testing.T, b Backend) {
		for _, chain := range []string{"POSTROUTING", "FORWARD", "KUBE-THEIRS"} {
			n := newRealNode(t, b, Defaults)
			var tables []Table
			var tools []tool
			n.inside(func(context.Context) error {
				for _, f := range Families {
					tools = append(tools, lackingIptables(t, f, b))
					table, err := openTable(f, tools[len(tools)-1])
					if err != nil {
						return err
					}
					tables = append(tables, table)
				}
				return nil
			})
			n.addForeignRules()
			for _, f := range Families {
				n.iptables(f, "-t", table, "-I", chain, "-m", "statistic", "--mode", "random", "--probability", "0.5", "-j", "MARK", "--set-mark", "0x100")
			}
			before := n.saved()
			m := New(withReject(), tables, slog.New(slog.NewTextHandler(n.logs, nil)))
			n.inside(m.Apply)
			for name, lines := range damage {
				repairs := m.Repairs()
				n.change(lines...)
				if name == "flush all" {
					for _, f := range Families {
						n.iptables(f, "-t", table, "-I", chain, "-m", "statistic", "--mode", "random", "--probability", "0.5", "-j", "MARK", "--set-mark", "0x100")
					}
				}
				n.inside(func(ctx context.Context) error { m.reconcile(ctx); return nil })
				if m.Repairs() != repairs+2 || len(m.Failures()) > 0 {
					t.Errorf("%s, a rule in %s: %d repairs, failures %q", name, chain, m.Repairs()-repairs, m.Failures())
				}
				if name == "first rule" {
					n.change("-D POSTROUTING -p udp -j ACCEPT")
				}
				n.inside(func(ctx context.Context) error { m.reconcile(ctx); return nil })
				if text := n.saved(); strings.Count(text, mangle.entries[1].jump()+"\n") != 2 {
					t.Errorf("%s, a rule in %s: the tables hold\n%s", name, chain, text)
				}
			}
			n.inside(func(ctx context.Context) error {
				u, err := usage(ctx, tools)
				if err == nil && u.rules == 0 {
					err = fmt.Errorf("no rules of other programs are counted")
				}
				return err
			})
			n.inside(func(ctx context.Context) error { return m.Pause(ctx, DropUnqueued) })
			n.inside(m.Remove)
			// Remove may leave a foreign rule that leads to an owned chain and has a match:
			// in the legacy backend, rules have no handles by which Remove could delete
			// such a rule. The chain of the rule then stays too, but is empty.
			got := n.saved()
			if b == Legacy && chain == "POSTROUTING" {
				got = strings.NewReplacer(":"+Chain+" - \n", "", "-p tcp -g "+Chain+"\n", "").Replace(got)
			}
			if strings.Contains(got, Chain) && strings.Contains(strings.ReplaceAll(got, "not -j "+Chain, ""), Chain) {
				t.Errorf("a rule in %s: the tables hold\n%s\nand held\n%s", chain, got, before)
			}
		}
	})
}

// lackingIptables returns an iptables without the libraries of some matches and targets.
func lackingIptables(t *testing.T, f Family, b Backend) tool {
	t.Helper()
	dir := t.TempDir()
	libs, err := filepath.Glob("/usr/lib*/xtables/*.so")
	more, _ := filepath.Glob("/usr/lib/*/xtables/*.so")
	if libs = append(libs, more...); err != nil || len(libs) == 0 {
		t.Skip("needs the libraries of iptables in their usual place")
	}
	if err := os.Mkdir(filepath.Join(dir, "lib"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, lib := range libs {
		if base := filepath.Base(lib); base != "libxt_statistic.so" && base != "libxt_CLASSIFY.so" {
			if err := os.Symlink(lib, filepath.Join(dir, "lib", base)); err != nil {
				t.Fatal(err)
			}
		}
	}
	name := f.command() + "-" + string(b)
	for _, command := range []string{name, name + "-save", name + "-restore"} {
		real, err := lookPath(command)
		if err != nil {
			t.Skipf("needs %s: install the package iptables", command)
		}
		script := fmt.Sprintf("#!/bin/bash\nexport XTABLES_LIBDIR=%s/lib\nexec -a %s %s \"$@\"\n", dir, command, real)
		writeScript(t, filepath.Join(dir, command), script)
	}
	return tool{family: f, name: name, path: filepath.Join(dir, name), backend: b}
}

// writeScript writes a script, and returns when it can be run. If another test forks a child
// while the file is open for writing, the child inherits the open file, and running the script
// fails with ETXTBSY until the child calls exec.
func writeScript(t *testing.T, path, script string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	await(t, path+" can be run", func() bool { return !errors.Is(exec.Command(path, "--version").Run(), syscall.ETXTBSY) })
}
