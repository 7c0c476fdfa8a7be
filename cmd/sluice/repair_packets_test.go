package main

import (
	"os/exec"
	"strings"
	"testing"

	"sluice/bench/running"
)

// nft runs commands of nft on the node, %s being ip and ip6.
func (s *site) nft(t *testing.T, format string) {
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

// ruleset is all that nf_tables has on the node.
func (s *site) ruleset(t *testing.T) string {
	t.Helper()
	text, err := s.Nodes[0].Output(exec.Command("nft", "list", "ruleset"))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// A rule of others that iptables cannot list keeps nothing from happening: the agent
// starts, enforces, repairs, takes over and ends, and rules --remove cleans up.
func TestForeignRulesOnPackets(t *testing.T) {
	for _, c := range []struct{ name, rule string }{
		{"in another chain", "add rule %s mangle FORWARD ct state new meter m { meta mark limit rate 1000/second } counter"},
		{"in our hook", "add rule %s mangle POSTROUTING numgen inc mod 2 == 0 counter"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t)
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
				s.await(mark, "a repair", func(l running.Line) bool {
					return strings.HasPrefix(l.Text("msg"), "somebody changed the rules") && l.Text("table") == f.iptables+"-nft"
				})
			}
			s.check(t, []string{webToDB}, []string{otherToDB})
			next := s.another(args...)
			s.stop()
			s.agent = next
			s.check(t, []string{webToDB}, []string{otherToDB})
			s.stop()
			if text := s.ruleset(t); strings.Contains(text, "SLUICE") {
				t.Errorf("left at the end:\n%s", text)
			}
			s.start(args...)
			s.agent.Kill()
			s.removed(t)
			if text := s.ruleset(t); strings.Contains(text, "SLUICE") || strings.Count(text, "counter") < 2 {
				t.Errorf("after rules --remove:\n%s", text)
			}
		})
	}
}
