package iptables

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// nodeSources are ranges of both families. Two have a length that is not a multiple of 8, and
// two are single addresses.
var nodeSources = prefixes("10.1.2.0/23", "10.9.0.1/32", "fd00:1:2:3::/61", "fd00::9/128")

func TestWantedTextWithNodeSources(t *testing.T) {
	o := pinnedOptions()
	o.Guarded, o.NodeSources = true, nodeSources
	for f, file := range map[Family]string{IPv4: "testdata/ipv4-node.txt", IPv6: "testdata/ipv6-node.txt"} {
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
	o.NodeSources = prefixes("0.0.0.0/0")
	if text := o.Wanted(IPv4); !strings.Contains(text, "-A SLUICE-INPUT -g SLUICE-NODE\n") {
		t.Errorf("all addresses:\n%s", text)
	}
	if text := o.Wanted(IPv6); strings.Contains(text, "INPUT") || strings.Contains(text, "NODE") {
		t.Errorf("no range of the family:\n%s", text)
	}
}

// The main chain and nodeChain change in the same way: reduced rules omit the same parts in
// both, and during a pause both end with the same target. The main chain calls "others" where nodeChain
// calls "allow".
func TestNodeRulesWithoutParts(t *testing.T) {
	o := pinnedOptions()
	o.NodeSources = nodeSources
	for _, f := range Families {
		for _, less := range lesser {
			chains := o.without(less).chains(f)
			main, node := chains[Chain], chains[nodeChain]
			for inNode, inMain := range map[string]string{"pins/allow": "pins/others", "pins/deny": "pins/deny", "hashlimit": "hashlimit", "NFQUEUE": "NFQUEUE"} {
				if count(main, inMain) != count(node, inNode) {
					t.Errorf("%s, without %s: %d rules with %s, and %d in the main chain with %s", f, less, count(node, inNode), inNode, count(main, inMain), inMain)
				}
			}
		}
		for packets, last := range map[Unqueued]string{PassUnqueued: "RETURN", DropUnqueued: "DROP"} {
			node := o.paused(f, packets)[nodeChain]
			if count(node, "NFQUEUE") != 0 || node[len(node)-1] != "-A SLUICE-NODE -j "+last {
				t.Errorf("%s: during a pause the chain is\n%s", f, strings.Join(node, "\n"))
			}
		}
	}
}

func count(rules []string, part string) (n int) {
	for _, r := range rules {
		n += strings.Count(r, part)
	}
	return n
}

// The chains for packets to the node and the jump to them exist while NodeSources is not empty.
// Then Run restores them after another program has changed them. Otherwise Run removes a jump
// that another program adds. Foreign rules in INPUT stay.
func TestSetNodeSources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManaged(t, Defaults)
		m.change("*mangle", "-A INPUT -j KUBE-THEIRS", "COMMIT")
		judges := func() bool {
			dump := m.v4.Dump()
			if strings.Count(dump, "-A INPUT -j KUBE-THEIRS\n") != 1 {
				t.Errorf("the foreign rule is missing:\n%s", dump)
			}
			chain, jump := strings.Contains(dump, ":SLUICE-NODE\n"), strings.Contains(dump, "-A INPUT -j SLUICE-INPUT\n-A INPUT")
			if chain != jump || strings.Contains(dump, "SLUICE-INPUT -s 10.9.0.1/32") != jump {
				t.Errorf("the chains and the jump differ:\n%s", dump)
			}
			return jump
		}
		set := func(sources []netip.Prefix) {
			t.Helper()
			if err := m.SetNodeSources(t.Context(), sources); err != nil {
				t.Fatal(err)
			}
		}
		set(nodeSources) // before there are rules
		if dump := m.v4.Dump(); strings.Contains(dump, ":SLUICE") {
			t.Fatalf("rules before Apply:\n%s", dump)
		}
		m.apply()
		for range 2 {
			if !judges() {
				t.Error("packets to the node are not judged")
			}
			writes := m.v4.Writes()
			set(nodeSources)
			if m.v4.Writes() != writes {
				t.Error("the right rules were written again")
			}
			set(nil)
			if judges() {
				t.Error("packets to the node are still judged")
			}
			set(nodeSources)
		}
		m.run()
		for _, theirs := range []string{"-F INPUT\n-A INPUT -j KUBE-THEIRS", "-F SLUICE-INPUT", "-F SLUICE-NODE", "-D INPUT -j SLUICE-INPUT"} {
			m.change(append(append([]string{"*mangle"}, strings.Split(theirs, "\n")...), "COMMIT")...)
			time.Sleep(2 * checkInterval)
			if !judges() {
				t.Errorf("not restored after %q", theirs)
			}
		}
		set(nil)
		m.change("*mangle", ":SLUICE-INPUT - [0:0]", "-I INPUT 1 -j SLUICE-INPUT", "COMMIT")
		time.Sleep(2 * checkInterval)
		if dump := m.v4.Dump(); strings.Contains(dump, "SLUICE-INPUT") {
			t.Errorf("not removed:\n%s", dump)
		}
	})
}

// With every backend, NodeSources can change while rules exist. The rules are read back as they
// were written, and Remove deletes the jump from INPUT.
func TestRealNodeSources(t *testing.T) {
	for _, backend := range []Backend{NFT, Legacy, inOwn} {
		t.Run(string(backend), func(t *testing.T) {
			n := newRealNode(t, backend, Defaults)
			n.inside(n.Apply)
			for i, sources := range [][]netip.Prefix{nodeSources, nodeSources[1:2], prefixes("0.0.0.0/0", "::/0"), nil, nodeSources} {
				n.inside(func(ctx context.Context) error { return n.SetNodeSources(ctx, sources) })
				writes := n.tables[0].writes.Load() + n.tables[1].writes.Load()
				n.inside(n.Apply)
				if again := n.tables[0].writes.Load() + n.tables[1].writes.Load(); again != writes {
					t.Errorf("%d: right rules were written again: %s", i, n.logs)
				}
				for _, f := range Families {
					want := len(n.opts.nodeSources(f)) > 0
					if jumps := n.inputJumps(f) == 1; jumps != want {
						t.Errorf("%d, %s: a jump from INPUT: %t, want %t", i, f, jumps, want)
					}
				}
			}
			n.inside(n.Remove)
			for _, f := range Families {
				if n.inputJumps(f) != 0 {
					t.Errorf("%s: the jump is left", f)
				}
			}
		})
	}
}

// inputJumps returns how many rules of the hook INPUT jump to inputChain.
func (n *realNode) inputJumps(f Family) int {
	n.t.Helper()
	if n.backend == NFT {
		return strings.Count(n.tableText(f, ownName)+n.tableText(f, table), fmt.Sprintf("jump %s\n", inputChain))
	}
	return strings.Count(n.output(f.command()+"-"+string(n.backend), "-t", table, "-S", "INPUT"), "-j "+inputChain+"\n")
}
