//go:build linux

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sluice/bench/testbed/agenttest"
	"sluice/filter/event"
)

// nft runs the nft commands in format on the node twice, with ip and with ip6 in place of %s.
func (s *testbed) nft(t *testing.T, format string) {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft: install the package nftables")
	}
	for _, family := range []string{"ip", "ip6"} {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(strings.ReplaceAll(format, "%s", family))
		if out, err := s.Nodes[0].Output(cmd); err != nil {
			t.Fatalf("nft %q: %v %s", format, err, out)
		}
	}
}

// ruleset returns the whole nf_tables ruleset of the node.
func (s *testbed) ruleset(t *testing.T) string {
	t.Helper()
	text, err := s.Nodes[0].Output(exec.Command("nft", "list", "ruleset"))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// A foreign rule that iptables cannot list does not disturb the agent: it starts, enforces,
// repairs, takes over and ends, and sluice rules --remove cleans up.
func TestForeignRulesOnPackets(t *testing.T) {
	for _, c := range []struct{ name, rule string }{
		{"in another chain", "add rule %s mangle FORWARD ct state new meter m { meta mark limit rate 1000/second } counter"},
		{"in our hook", "add rule %s mangle POSTROUTING numgen inc mod 2 == 0 counter"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newTestbed(t)
			theirs := "add table %s mangle\nadd chain %s mangle FORWARD { type filter hook forward priority mangle; }\n" +
				"add chain %s mangle POSTROUTING { type filter hook postrouting priority mangle; }\n" + c.rule
			s.nft(t, theirs)
			s.write("policies.yaml", policies(demo1))
			args := []string{"--iptables", "nft", "--on-exit", "remove"}
			s.start(args...)
			s.check(t, []string{webToDB}, []string{otherToDB})
			mark := s.agent.Mark()
			if err := s.Nodes[0].Run("nft", "flush", "ruleset"); err != nil {
				t.Fatal(err)
			}
			s.nft(t, theirs)
			for _, f := range families {
				s.await(mark, "a repair", func(l agenttest.Line) bool {
					return l.Is(event.RulesRestored) && l.Text("table") == f.iptables+"-nft"
				})
			}
			s.check(t, []string{webToDB}, []string{otherToDB})
			next := s.startAnother(args...)
			s.stop()
			s.agent = next
			s.check(t, []string{webToDB}, []string{otherToDB})
			s.stop()
			if text := s.ruleset(t); strings.Contains(text, "SLUICE") {
				t.Errorf("left at the end:\n%s", text)
			}
			s.start(args...)
			s.agent.Kill()
			s.removeRules(t)
			if text := s.ruleset(t); strings.Contains(text, "SLUICE") || strings.Count(text, "counter") < 2 {
				t.Errorf("after rules --remove:\n%s", text)
			}
		})
	}
}

// flushMangle empties and deletes all chains of mangle, in both families.
func (s *testbed) flushMangle(t *testing.T) {
	t.Helper()
	for _, f := range families {
		for _, what := range []string{"-F", "-X"} {
			if err := s.Nodes[0].Run(f.iptables+"-nft", "-t", "mangle", what); err != nil {
				t.Log(err) // the agent may have repaired the table between flush and deletion
			}
		}
	}
}

// awaitRepair waits until the agent has restored the rules of both families.
func (s *testbed) awaitRepair(t *testing.T, mark int) {
	t.Helper()
	for _, f := range families {
		s.await(mark, "a repair of "+f.name, func(l agenttest.Line) bool {
			return l.Is(event.RulesRestored) && l.Text("table") == f.iptables+"-nft"
		})
	}
}

// A flush is repaired even if the pins of the programs are gone. The agent pins the programs
// again. If it cannot, it restores the rules without them. In both cases it ends as usual.
func TestPinsGoneOnPackets(t *testing.T) {
	for _, c := range []struct {
		name, do string
		reduced  bool
	}{
		{"names", "rm -r /sys/fs/bpf/sluice-*", false},
		{"names of others", "cd /sys/fs/bpf/sluice-* && rm allow deny && mkdir allow", false},
		{"unmounted", "umount -l /sys/fs/bpf", false},
		{"read-only", "rm -r /sys/fs/bpf/sluice-* && mount -o remount,ro,bind /sys/fs/bpf", true},
		{"covered", "mount -t tmpfs -o ro none /sys/fs/bpf", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newTestbed(t)
			s.write("policies.yaml", policies(demo1))
			s.start(kernelArgs("--iptables", "nft", "--on-exit", "remove")...)
			s.check(t, []string{webToDB}, []string{otherToDB})
			mark := s.agent.Mark()
			if err := s.Nodes[0].Run("sh", "-c", c.do); err != nil {
				t.Fatal(err)
			}
			s.flushMangle(t)
			s.awaitRepair(t, mark)
			s.check(t, []string{webToDB}, []string{otherToDB})
			status, err := s.Nodes[0].Output(exec.Command("sluice", "status", "--socket", s.socket))
			if err != nil && !c.reduced {
				t.Errorf("status: %v", err)
			}
			if reduced := strings.Contains(status, "do not call the kernel's flow cache"); reduced != c.reduced || !strings.Contains(status, "enforces since") {
				t.Errorf("status, want reduced %v:\n%s", c.reduced, status)
			}
			if !c.reduced {
				s.checkNotQueued(t, "what was judged before", func() { s.check(t, []string{webToDB}, []string{otherToDB}) })
			}
			s.save("policies.yaml", policies(other1))
			s.check(t, []string{otherToDB}, []string{webToDB})
			s.stop()
			if text := s.ruleset(t); strings.Contains(text, "SLUICE") {
				t.Errorf("left at the end:\n%s", text)
			}
		})
	}
}

// If an old agent has left rules in the other backend that cannot be removed, the agent starts
// nevertheless and reports them.
func TestOtherBackendThatCannotBeCleanedOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(demo1))
	s.start("--iptables", "legacy")
	s.agent.Kill()
	dir := t.TempDir()
	for _, name := range []string{"iptables", "ip6tables"} {
		path, err := exec.LookPath(name + "-legacy")
		if err != nil {
			t.Skipf("needs %s-legacy: install the package iptables", name)
		}
		for _, tool := range []string{"-legacy", "-legacy-save"} {
			if err := os.Symlink(path, filepath.Join(dir, name+tool)); err != nil {
				t.Fatal(err)
			}
		}
		script := "#!/bin/sh\necho 'Another app is currently holding the xtables lock' >&2\nexit 4\n"
		if err := os.WriteFile(filepath.Join(dir, name+"-legacy-restore"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	s.start("--iptables", "nft")
	s.check(t, []string{webToDB}, []string{otherToDB})
	status, _ := s.Nodes[0].Output(exec.Command("sluice", "status", "--socket", s.socket))
	if !strings.Contains(status, "rules of the other backend: ") || !strings.Contains(status, "holding the xtables lock") {
		t.Errorf("the status is\n%s", status)
	}
}

// While repairs fail, log, status, metrics and readiness show this, until a repair succeeds.
func TestRepairThatFailsOnPackets(t *testing.T) {
	s := newTestbed(t)
	dir := t.TempDir()
	broken := filepath.Join(dir, "broken")
	for _, name := range []string{"iptables-nft", "ip6tables-nft"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Skipf("needs %s: install the package iptables", name)
		}
		for _, tool := range []string{name, name + "-save"} {
			if err := os.Symlink(path, filepath.Join(dir, tool)); err != nil {
				t.Fatal(err)
			}
		}
		script := "#!/bin/sh\nif [ -e " + broken + " ]; then echo 'it is broken' >&2; exit 4; fi\nexec " + path + "-restore \"$@\"\n"
		if err := os.WriteFile(filepath.Join(dir, name+"-restore"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	s.write("policies.yaml", policies(demo1))
	s.start("--iptables", "nft")
	status := func() string {
		text, _ := s.Nodes[0].Output(exec.Command("sluice", "status", "--socket", s.socket)) // ignore the error: with problems, the exit status is not 0
		return text
	}
	if text := status(); !strings.Contains(text, "No problems.") || !strings.Contains(text, "repaired 0 times, 0 failed") {
		t.Errorf("before:\n%s", text)
	}
	if err := os.WriteFile(broken, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	mark := s.agent.Mark()
	s.flushMangle(t)
	s.await(mark, "the agent logs that repairs fail", agenttest.Event(event.RulesFailing))
	for end := time.Now().Add(waitTimeout); ; time.Sleep(10 * time.Millisecond) {
		text := status()
		if strings.Contains(text, "is not ready: rules cannot be kept: ") && strings.Contains(text, "rules of the node: ") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the status is\n%s", text)
		}
	}
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	s.awaitRepair(t, mark)
	s.await(mark, "the agent logs that a repair succeeded", agenttest.Event(event.RulesRecovered))
	for end := time.Now().Add(waitTimeout); ; time.Sleep(10 * time.Millisecond) { // wait, because the first repair may have been partial
		text := status()
		if strings.Contains(text, "enforces since") && strings.Contains(text, "No problems.") && !strings.Contains(text, " 0 failed") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("afterwards:\n%s", text)
		}
	}
	s.check(t, []string{webToDB}, []string{otherToDB})
}
