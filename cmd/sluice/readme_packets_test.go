//go:build linux

package main

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sluice/bench/testbed/agenttest"
	"sluice/bench/testbed/lab"
)

// logField matches a field of a log line in text format.
var logField = regexp.MustCompile(`([\w.]+)=("(?:[^"\\]|\\.)*"|\S+)`)

// shapeOf returns the message of a log line and the names of its fields.
func shapeOf(text string) (msg, fields string) {
	var names []string
	for _, f := range logField.FindAllStringSubmatch(text, -1) {
		names = append(names, f[1])
		if f[1] == "msg" {
			msg = strings.Trim(f[2], `"`)
		}
	}
	slices.Sort(names)
	return msg, strings.Join(names, " ")
}

// telemetryPage has samples of the log and of the status.
const telemetryPage = "cmd/sluice/agent/telemetry/README.md"

// The log lines on the page have the messages and fields that the agent in this test logs, and the
// status on the page has the lines of that agent's status.
func TestReadmeLogOnPackets(t *testing.T) {
	p := onePage(t, telemetryPage)
	s := newTestbed(t)
	s.write("policies.yaml", policies("default/out: {podSelector: {matchLabels: {role: backend}}, policyTypes: [Egress]}"))
	s.start("--kernel-cache", "on", "--log-verdicts", "denied")
	s.check(t, nil, []string{"default/other default/db tcp 6379"})
	written := make(map[string]bool)
	for _, l := range s.agent.Since(0, func(agenttest.Line) bool { return true }) {
		written[l.Text("msg")+": "+strings.Join(slices.Sorted(maps.Keys(l)), " ")] = true
	}
	_, printed, _ := sluice(t, "status", "--socket", s.socket)
	logs, statuses := 0, 0
	for _, b := range p.blocks() {
		for _, c := range readmeCommands(p.lines[b.first:b.end]) {
			switch {
			case b.notRun && strings.Contains(c.line, "sluice run"):
				for line := range strings.Lines(c.output) {
					logs++
					if msg, fields := shapeOf(line); !written[msg+": "+fields] {
						t.Errorf("the agent writes no line like %s", line)
					}
				}
			case b.notRun && strings.Contains(c.line, "sluice status"):
				statuses++
				if got, want := wordsOf(printed), wordsOf(c.output); got != want {
					t.Errorf("the status is\n%s\nand the page shows\n%s", printed, c.output)
				}
			}
		}
	}
	if logs == 0 || statuses == 0 {
		t.Errorf("found %d log lines and %d statuses on the page, want some of each", logs, statuses)
	}
}

// value matches the parts of a status that differ between agents: numbers, times, names and
// plurals.
var value = regexp.MustCompile(`^sluice .*?,|pods of \S+|manifests \S+|-nft|-legacy|\S*\d\S*|ies\b|y\b|s\b`)

// wordsOf returns a status without its values.
func wordsOf(status string) string {
	return strings.Join(strings.Fields(value.ReplaceAllString(status, "")), " ")
}

// The example on the page about policies works on real packets without changes. It has only IPv4
// addresses.
func TestReadmeTiersOnPackets(t *testing.T) {
	s := &testbed{Lab: lab.ForTest(t, lab.Options{}), t: t, dir: t.TempDir(), socket: filepath.Join(t.TempDir(), "s"), hosts: make(map[string]*lab.Host)}
	if err := os.CopyFS(s.dir, os.DirFS("examples/tiers")); err != nil {
		t.Fatal(err)
	}
	addrs := map[string]string{"shop/web": "10.0.1.1", "shop/cache": "10.0.1.2", "sandbox/tool": "10.0.2.1", "sandbox/probe": "10.0.2.2", "node": "198.51.100.1"}
	for name, addr := range addrs {
		if name == "node" {
			s.hosts[name] = s.Nodes[0].Host
			if err := s.Nodes[0].AddAddr(netip.MustParseAddr(addr)); err != nil {
				t.Fatal(err)
			}
			if err := s.Nodes[0].Serve("tcp", 22); err != nil {
				t.Fatal(err)
			}
		} else {
			h, err := s.Nodes[0].AddPod(name, netip.MustParseAddr(addr))
			if err != nil {
				t.Fatal(err)
			}
			s.hosts[name] = h
		}
		s.serve(s.hosts[name])
	}
	s.start()
	probe := func(from, to string, port int) string {
		return fmt.Sprintf("%s %s tcp %d", from, addrs[to], port)
	}
	for range 2 { // by the agent's verdicts, then by those that caches remember
		s.check(t, []string{
			probe("sandbox/probe", "shop/web", 80), probe("shop/cache", "shop/web", 80),
			probe("shop/web", "node", 80), probe("node", "shop/web", 6379), probe("node", "shop/cache", 80),
		}, nil)
		s.checkSilent(t,
			probe("sandbox/tool", "shop/web", 80), probe("sandbox/tool", "shop/cache", 6379), probe("sandbox/tool", "sandbox/probe", 80),
			probe("sandbox/probe", "shop/web", 6379), probe("sandbox/probe", "shop/cache", 6379), probe("sandbox/probe", "sandbox/tool", 80),
			probe("shop/web", "shop/cache", 6379), probe("shop/cache", "shop/web", 6379), probe("shop/web", "sandbox/tool", 80),
			probe("shop/web", "node", 22), probe("sandbox/tool", "node", 22),
		)
	}
}
