//go:build linux

package main

import (
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"sluice/bench/testbed/agenttest"
	"sluice/cache/bpf"
	"sluice/filter/event"
)

// confinedAgent runs agents in a testbed as the DaemonSet runs them: with its capabilities.
type confinedAgent struct {
	*testbed
	script, bpffs string
}

func newConfinedAgent(t *testing.T, bridged bool) *confinedAgent {
	t.Helper()
	c := &confinedAgent{}
	c.script, c.bpffs = confined(t, deployedCapabilities(t)...)
	for _, layout := range layouts {
		if layout.opts.Bridged == bridged {
			c.testbed = newTestbedWith(t, layout.opts)
		}
	}
	if !tcx(t) {
		t.Skip("needs TCX, which Linux has since 6.6")
	}
	c.program = c.script
	c.write("policies.yaml", forgePolicies)
	return c
}

func (c *confinedAgent) args(more ...string) []string {
	return append(kernelArgs("--iptables", "nft", "--queues", "1", "--bpffs", c.bpffs), more...)
}

// allPrograms counts the programs on each interface of the node that has any.
func (s *testbed) allPrograms(t *testing.T) map[string]int {
	t.Helper()
	var names []string
	if err := s.Nodes[0].Do(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			names = append(names, l.Attrs().Name)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	found := make(map[string]int)
	for _, name := range names {
		if n := programsAt(t, s.Nodes[0].Host, name); n > 0 {
			found[name] = n
		}
	}
	return found
}

// checkGuarded checks that the guard is complete: two programs at the interface of each pod, and one
// at that to the outside; no rules about forged sources; no problem in the status; nothing about it
// in the agent's log; and forged packets do not arrive.
func (c *confinedAgent) checkGuarded(t *testing.T, when string) {
	t.Helper()
	at := c.allPrograms(t)
	for _, p := range testbedPods {
		if device := c.host(p.name).RouterDevice(); p.node == 0 && at[device] != 2 {
			t.Errorf("%s: %d programs at %s, the interface of %s", when, at[device], device, p.name)
		}
	}
	if want := 6; len(at) != want {
		t.Errorf("%s: programs at %d interfaces, want %d: %v", when, len(at), want, at)
	}
	for device, n := range at {
		if n > 2 {
			t.Errorf("%s: %d programs at %s", when, n, device)
		}
	}
	if c.hasSourceChain(t) {
		t.Errorf("%s: the rules drop forged sources, so the guard does not cover all interfaces", when)
	}
	c.statusNames(t, inMangle)
	for _, l := range c.agent.Since(0, func(l agenttest.Line) bool {
		return l.Text("level") != "INFO" && strings.HasPrefix(l.Text(event.Key), "guard-")
	}) {
		t.Errorf("%s: logged: %v", when, l)
	}
	c.checkForgedDropped(t, when)
}

func (c *confinedAgent) checkForgedDropped(t *testing.T, when string) {
	t.Helper()
	for i := range families {
		sent := 0
		g := (&forger{testbed: c.testbed, t: t, v6: i == 1, attacker: c.host(forgeAttacker), sent: &sent}).withVictim(forgeVictim, false)
		if g.datagramArrives(g.addr(g.victim), g.addr(g.victim), 53) {
			t.Errorf("%s: a forged packet arrives (%s)", when, families[i].name)
		}
		if !g.datagramArrives(g.addr(g.attacker), g.addr(g.victim), 53) {
			t.Errorf("%s: a packet with the pod's own source does not arrive (%s)", when, families[i].name)
		}
		_ = g.sniffer.Close()
	}
}

// checkNothingLeft checks that neither programs nor pins nor rules are left on the node.
func (c *confinedAgent) checkNothingLeft(t *testing.T, when string) {
	t.Helper()
	if at := c.allPrograms(t); len(at) > 0 {
		t.Errorf("%s: programs at %v", when, at)
	}
	if pins := c.pinnedByAll(t); len(pins) > 0 {
		t.Errorf("%s: pins %v", when, pins)
	}
	if left := c.leftovers(t); left != "" {
		t.Errorf("%s: rules and marks:\n%s", when, left)
	}
}

// pinnedByAll lists what the kernel's flow cache and the guard have pinned on the node.
func (s *testbed) pinnedByAll(t *testing.T) (found []string) {
	t.Helper()
	if err := s.Nodes[0].Do(func() (err error) {
		found, err = filepath.Glob(filepath.Join(bpf.DefaultBPFFS, "sluice*", "*"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

// remove runs sluice rules --remove with the capabilities of the agent.
func (c *confinedAgent) remove(t *testing.T) (status int, out string) {
	t.Helper()
	out, err := c.Nodes[0].Output(exec.Command(c.script, "rules", "--remove", "--socket", "", "--bpffs", c.bpffs))
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), out + err.Error()
	}
	if err != nil {
		t.Fatal(err)
	}
	return 0, out
}

// With the capabilities of the DaemonSet, agents recognise and replace the programs of the guard
// that other agents have attached, and remove them.
func TestDeployedGuardOnPackets(t *testing.T) {
	for _, layout := range layouts {
		t.Run(layout.name, func(t *testing.T) {
			s := newConfinedAgent(t, layout.opts.Bridged)
			keep := s.args("--on-exit", "keep")
			s.start(keep...)
			s.checkGuarded(t, "at the start")
			pins := len(s.pinnedByAll(t))
			for range 3 {
				old := s.agent
				s.start(keep...)
				if err := old.Stop(); err != nil {
					t.Fatal(err)
				}
				s.checkGuarded(t, "after another agent has taken over")
			}
			old := s.agent
			s.start(keep...)
			s.agent.Kill()
			s.agent = old
			s.await(0, "the first agent enforces again", func(l agenttest.Line) bool { return l.Text(event.Key) == string(event.Resumed) })
			s.checkGuarded(t, "after an agent that had taken over was killed")
			s.agent.Kill()
			s.start(keep...)
			s.checkGuarded(t, "after an agent was killed")
			s.stop()
			s.start(s.args("--on-exit", "remove")...)
			s.checkGuarded(t, "after an agent has ended")
			if now := s.pinnedByAll(t); len(now) != pins {
				t.Errorf("%d programs are pinned, at the start %d: %v", len(now), pins, now)
			}
			s.stop()
			s.checkNothingLeft(t, "after --on-exit remove")
			s.start(keep...)
			s.agent.Kill()
			if status, out := s.remove(t); status != 0 || strings.Count(out, "removed the guard of interface ") != 6 {
				t.Errorf("rules --remove: status %d, %s", status, out)
			}
			s.checkNothingLeft(t, "after rules --remove")
		})
	}
}

// Without a BPF file system, the guard of a single agent works. A later agent with the capabilities
// of the DaemonSet cannot recognise the programs that are left, and neither can rules --remove: they
// name these programs and what to do. Root can remove them.
func TestDeployedGuardWithoutPinsOnPackets(t *testing.T) {
	s := newConfinedAgent(t, false)
	noPins := append(slices.Clone(s.args("--on-exit", "keep", "--kernel-cache", "off")), "--bpffs", t.TempDir())
	logs := func(name event.Name, text string) bool {
		return len(s.agent.Since(0, func(l agenttest.Line) bool {
			return l.Text(event.Key) == string(name) && strings.Contains(l.Text("err"), text)
		})) > 0
	}
	const hint = "run sluice rules --remove as root on the node"
	s.start(noPins...)
	if s.hasSourceChain(t) || !logs(event.GuardNotPinned, "mount the BPF file system") || logs(event.GuardUnrecognized, hint) {
		t.Error("the guard does not cover all interfaces, or the log does not tell that it is not pinned")
	}
	s.checkForgedDropped(t, "without pins")
	s.agent.Kill()
	s.start(s.args("--on-exit", "remove")...)
	if !logs(event.GuardUnrecognized, hint) {
		t.Error("the programs of the earlier agent are not reported")
	}
	s.checkForgedDropped(t, "with the programs of an earlier agent")
	s.stop()
	if at := s.allPrograms(t); len(at) != 6 {
		t.Errorf("the programs of the earlier agent are at %v", at)
	}
	if status, out := s.remove(t); status != 2 || !strings.Contains(out, hint) {
		t.Errorf("rules --remove: status %d, %s", status, out)
	}
	if status, out, stderr := rulesRemove(t, s.Nodes[0]); status != 0 {
		t.Errorf("rules --remove as root: status %d, %s%s", status, out, stderr)
	}
	s.checkNothingLeft(t, "after rules --remove as root")
}
