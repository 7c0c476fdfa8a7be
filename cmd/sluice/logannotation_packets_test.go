//go:build linux

package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sluice/bench/testbed/agenttest"
	"sluice/filter/event"
)

// loggedNamespaces is testbedNamespaces, in which the namespace default has the annotation sluice/log with
// a level. If the level is empty, it has no annotation.
func loggedNamespaces(level string) string {
	if level == "" {
		return testbedNamespaces
	}
	return strings.Replace(testbedNamespaces, "name: default}", "name: default, annotations: {sluice/log: "+level+"}}", 1)
}

// connectionGroups are the multicast groups of events about connections that begin and end.
const connectionGroups = 1<<(unix.NFNLGRP_CONNTRACK_NEW-1) | 1<<(unix.NFNLGRP_CONNTRACK_DESTROY-1)

// followsConnections reports whether the agent has subscribed to the kernel's events about connections.
func (s *testbed) followsConnections(t *testing.T) bool {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/netlink", s.agent.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var address string
		var protocol, port, groups uint32
		n, _ := fmt.Sscanf(line, "%s %d %d %x", &address, &protocol, &port, &groups)
		if n == 4 && protocol == unix.NETLINK_NETFILTER && groups&connectionGroups != 0 {
			return true
		}
	}
	return false
}

// isVerdict matches the line of a verdict about what a pod sends.
func isVerdict(verdict, from string) func(agenttest.Line) bool {
	return func(l agenttest.Line) bool {
		return l.Is(event.Verdict) && l.Text("verdict") == verdict && l.Text("from") == from
	}
}

// Annotations of namespaces and policies set which verdicts are logged. This holds for verdicts of the
// kernel, too. Changes have effect at once. Without annotations, nothing is watched.
func TestLogAnnotationOnPackets(t *testing.T) {
	s := newTestbed(t)
	const webToOther = "default/web default/other tcp 80" // allowed, by no policy
	s.write("policies.yaml", policies(demo1))
	s.start(kernelArgs("--log-verdicts-rate", "0")...)
	probes := func() { s.check(t, []string{webToDB, webToOther}, []string{otherToDB}) }
	probes()
	for i, c := range []struct {
		namespace, policy string   // the levels of the namespace and the policy
		logged            []string // verdicts and senders
		connections       bool     // the agent follows connections
	}{
		{"", "", nil, false},
		{"denied", "", []string{"deny default/other"}, false},
		{"all", "", []string{"deny default/other", "allow default/web"}, true},
		{"all", "none", []string{"allow default/web"}, true},
		{"none", "", nil, false},
		{"none", "denied", []string{"deny default/other"}, false},
		{"", "all", []string{"deny default/other", "allow default/web"}, true},
		{"", "", nil, false},
	} {
		s.save("cluster.yaml", loggedNamespaces(c.namespace)+s.pods())
		text := policies(demo1)
		if c.policy != "" {
			text = strings.ReplaceAll(text, "metadata: {", "metadata: {annotations: {sluice/log: "+c.policy+"}, ")
		}
		s.save("policies.yaml", text)
		step := fmt.Sprintf("step %d: namespace %q, policy %q", i, c.namespace, c.policy)
		if follows := s.followsConnections(t); follows != c.connections {
			t.Errorf("%s: follows connections: %t", step, follows)
		}
		if c.namespace == "all" && c.policy == "none" {
			const want = "none (--log-verdicts); up to all by the annotation of 1 namespace and 1 policy\n"
			if exit, out, stderr := sluice(t, "status", "--socket", s.socket); exit != 0 || !strings.Contains(out, want) {
				t.Errorf("status: exit status %d: %s%s", exit, out, stderr)
			}
		}
		mark := s.agent.Mark()
		s.checkNotQueued(t, step, probes)
		for _, want := range c.logged {
			verdict, from, _ := strings.Cut(want, " ")
			s.await(mark, step+": "+want, isVerdict(verdict, from))
		}
		for _, l := range s.agent.Since(mark, agenttest.Event(event.Verdict)) {
			switch {
			case !strings.Contains(strings.Join(c.logged, ","), l.Text("verdict")+" "+l.Text("from")):
				t.Errorf("%s: logged: %v", step, l)
			case c.policy == "all" && l.Text("policy") != "default/access-demo1":
				t.Errorf("%s: logged, although the policy does not decide: %v", step, l)
			}
		}
	}
}
