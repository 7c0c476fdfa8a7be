//go:build linux

package main

import (
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"sluice/bench/testbed/agenttest"
	"sluice/filter/event"
)

// foreignHook creates a table mangle whose chain POSTROUTING iptables cannot use.
const foreignHook = "add table %s mangle\ndelete table %s mangle\nadd table %s mangle\nadd chain %s mangle POSTROUTING { type filter hook postrouting priority 7; }"

// ownTables makes a process the owner of the tables mangle of both families, until the
// returned function is called or the test ends.
func (s *testbed) ownTables(t *testing.T) (end func()) {
	t.Helper()
	return s.ownTablesNamed(t, "mangle")
}

// ownTablesNamed is ownTables for tables of another name.
func (s *testbed) ownTablesNamed(t *testing.T, name string) (end func()) {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft: install the package nftables")
	}
	cmd := exec.Command("nft", "-i") // nft owns the tables as long as it runs
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = s.Nodes[0].Start(cmd)
	}
	if err != nil {
		t.Fatal(err)
	}
	gone := false
	end = func() {
		if !gone {
			gone = true
			_ = stdin.Close()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(end)
	for _, family := range []string{"ip", "ip6"} {
		line := strings.ReplaceAll("add table % "+name+"; delete table % "+name+"; add table % "+name+" { flags owner; }\n", "%", family)
		if _, err := stdin.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	s.eventually(t, "the tables belong to a process", func() bool { return strings.Count(s.ruleset(t), "flags owner") == 2 })
	return end
}

// eventually waits until a condition holds.
func (s *testbed) eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(waitTimeout); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timeout of %v while waiting for: %s", waitTimeout, what)
		}
	}
}

// inTable reports whether the rules of both families are in the given table, mangle or sluice,
// and not in the other one.
func (s *testbed) inTable(t *testing.T, name string) bool {
	t.Helper()
	for _, family := range []string{"ip", "ip6"} {
		for _, other := range []string{"mangle", "sluice"} {
			text, err := s.Nodes[0].Output(exec.Command("nft", "list", "table", family, other))
			if there := err == nil && strings.Contains(text, "jump SLUICE\n"); there != (other == name) {
				return false
			}
			if err == nil && other != name && strings.Contains(text, "SLUICE") {
				return false
			}
		}
	}
	return true
}

// statusNames waits until the status names the tables and has no problem.
func (s *testbed) statusNames(t *testing.T, tables string) {
	t.Helper()
	s.eventually(t, "the status names "+tables, func() bool { // after a takeover, this takes a moment
		text, err := s.Nodes[0].Output(exec.Command("sluice", "status", "--socket", s.socket))
		return err == nil && strings.Contains(text, "rules             "+tables+"; ") && strings.Contains(text, "No problems.")
	})
}

const (
	inMangle = "iptables-nft, ip6tables-nft"
	inSluice = "nft table ip sluice, nft table ip6 sluice"
)

// If the agent cannot use the table mangle, it uses the table sluice. Everything works with
// this table: start, repair, takeover, the kernel's flow cache, the time without an agent,
// and the end.
func TestOwnTableOnPackets(t *testing.T) {
	for name, obstruct := range map[string]func(*testbed, *testing.T) (end func()){
		"owned": (*testbed).ownTables,
		"foreign": func(s *testbed, t *testing.T) func() {
			s.nft(t, foreignHook)
			return func() { s.nft(t, "delete table %s mangle") }
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTestbed(t)
			end := obstruct(s, t)
			s.write("policies.yaml", policies(demo1))
			args := kernelArgs("--iptables", "nft", "--on-exit", "remove")
			checked := func(tables, name string) {
				t.Helper()
				s.statusNames(t, tables)
				s.check(t, []string{webToDB}, []string{otherToDB})
				s.checkNotQueued(t, "what was judged before", func() { s.check(t, []string{webToDB}, []string{otherToDB}) })
				if !s.inTable(t, name) {
					t.Errorf("the rules are not only in %s:\n%s", name, s.ruleset(t))
				}
			}
			s.start(args...)
			checked(inSluice, "sluice")
			for _, ruin := range []string{"flush table %s sluice", "delete table %s sluice"} {
				mark := s.agent.Mark()
				s.nft(t, ruin)
				for _, family := range []string{"ip", "ip6"} {
					s.await(mark, "a repair of "+family, func(l agenttest.Line) bool {
						return l.Is(event.RulesRestored) && l.Text("table") == "nft table "+family+" sluice"
					})
				}
				checked(inSluice, "sluice")
			}
			takeOver := func() {
				next := s.startAnother(args...)
				s.stop()
				s.agent = next
			}
			takeOver()
			checked(inSluice, "sluice")
			end()
			takeOver()
			checked(inMangle, "mangle")
			end = obstruct(s, t) // obstruct the table mangle while the agent runs
			s.eventually(t, "the rules are in table sluice", func() bool { return s.inTable(t, "sluice") })
			checked(inSluice, "sluice")
			end()
			checked(inSluice, "sluice") // this agent does not move the rules back to mangle; only the next agent does
			s.agent.Kill()
			s.check(t, []string{webToDB}, []string{otherToDB, "default/far default/db tcp 80"}) // without an agent, the kernel's flow cache still decides
			s.removeRules(t)
			if text := s.ruleset(t); strings.Contains(text, "SLUICE") || strings.Contains(text, "sluice") {
				t.Errorf("after rules --remove:\n%s", text)
			}
			s.check(t, []string{webToDB, otherToDB}, nil)
			obstruct(s, t)
			s.start(args...)
			s.check(t, []string{webToDB}, []string{otherToDB})
			s.stop()
			if text := s.ruleset(t); strings.Contains(text, "SLUICE") || strings.Contains(text, "sluice") {
				t.Errorf("left at the end:\n%s", text)
			}
		})
	}
}

// sendSignal sends a signal to a process.
func sendSignal(t *testing.T, pid int, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatal(err)
	}
}

// While connections open as fast as possible, the rules move from mangle to the table sluice
// and back, by the same agent and by a new one. No allowed request is lost, and no denied
// one gets through.
func TestTableChangesOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(demo1))
	args := []string{"--iptables", "nft", "--on-exit", "keep", "--fail", "closed", "--kernel-cache", "off", "--guard", "off"} // without the guard, the rules need the chain PREROUTING too
	s.start(args...)
	l := s.newLoad(t, true)
	takeOver := func() {
		l.more(100)
		next := s.startAnother(args...)
		l.more(100) // while both agents run
		s.stop()
		s.agent = next
		l.more(100)
	}
	for range 3 {
		l.more(100)
		// Replace the chain PREROUTING of mangle by one without a hook, so that the agent moves
		// the rules. Until the move, the rules in POSTROUTING of mangle still filter. So if a
		// denied packet gets through, the move has let it through.
		//
		// Rename the old chain: if it were removed, the kernel would drop the queued packets.
		// Stop the agent during the two commands, so that it does not repair the chain after the
		// first one.
		sendSignal(t, s.agent.PID(), syscall.SIGSTOP)
		s.nft(t, "rename chain %s mangle PREROUTING theirs")
		s.nft(t, "add chain %s mangle PREROUTING")
		sendSignal(t, s.agent.PID(), syscall.SIGCONT)
		s.eventually(t, "the rules are in our own table", func() bool { return s.inTable(t, "sluice") })
		takeOver()
		if !s.inTable(t, "sluice") {
			t.Errorf("the rules are not only in our own table:\n%s", s.ruleset(t))
		}
		s.nft(t, "delete chain %s mangle PREROUTING")
		s.nft(t, "rename chain %s mangle theirs PREROUTING")
		takeOver()
		if !s.inTable(t, "mangle") {
			t.Errorf("the rules are not only in mangle:\n%s", s.ruleset(t))
		}
	}
	l.end()
}

// Without the guard, the rules in our own table also drop packets whose source is the node or
// the receiver. The match rpfilter is not available there, so the rules use a fib expression.
func TestForgedInOwnTableOnPackets(t *testing.T) {
	withForgerOn(t, func(s *testbed, t *testing.T) { s.nft(t, foreignHook) }, []string{"--iptables", "nft", "--guard=off"}, func(t *testing.T, g *forger) {
		if text := g.ruleset(t); !strings.Contains(text, "fib saddr . iif oif") {
			t.Fatalf("the rules are not in our own table:\n%s", text)
		}
		before := g.forgedDropped(t, "rule")
		noForgedNodeOrReceiver(t, g)
		if now := g.forgedDropped(t, "rule"); now <= before {
			t.Errorf("%d forged packets are counted, and %d before", now, before)
		}
	})
}
