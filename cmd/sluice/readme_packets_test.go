//go:build linux

package main

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sluice/bench/testbed/agenttest"
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

// The README's log lines have the same messages and fields as log lines of the agent in this
// test, and the README's status has the same lines as that agent's status.
func TestReadmeLogOnPackets(t *testing.T) {
	text, err := os.ReadFile(readmePath)
	if err != nil {
		t.Fatal(err)
	}
	s := newTestbed(t)
	s.write("policies.yaml", policies("default/out: {podSelector: {matchLabels: {role: backend}}, policyTypes: [Egress]}"))
	s.start("--kernel-cache", "on", "--log-verdicts", "denied")
	s.check(t, nil, []string{"default/other default/db tcp 6379"})
	written := make(map[string]bool)
	for _, l := range s.agent.Since(0, func(agenttest.Line) bool { return true }) {
		written[l.Text("msg")+": "+strings.Join(slices.Sorted(maps.Keys(l)), " ")] = true
	}
	_, printed, _ := sluice(t, "status", "--socket", s.socket)
	lines, logs, statuses := strings.Split(string(text), "\n"), 0, 0
	for _, b := range readmeBlocks(lines) {
		for _, c := range readmeCommands(lines[b.first:b.end]) {
			switch {
			case b.root && strings.Contains(c.line, "sluice run"):
				for line := range strings.Lines(c.output) {
					logs++
					if msg, fields := shapeOf(line); !written[msg+": "+fields] {
						t.Errorf("the agent writes no line like %s", line)
					}
				}
			case b.root && strings.Contains(c.line, "sluice status"):
				statuses++
				if got, want := wordsOf(printed), wordsOf(c.output); got != want {
					t.Errorf("the status is\n%s\nand the README shows\n%s", printed, c.output)
				}
			}
		}
	}
	if logs == 0 || statuses == 0 {
		t.Errorf("found %d log lines and %d statuses in the README, want some of each", logs, statuses)
	}
}

// value matches the parts of a status that differ between agents: numbers, times, names and
// plurals.
var value = regexp.MustCompile(`^sluice .*?,|manifests \S+|-nft|-legacy|\S*\d\S*|ies\b|y\b|s\b`)

// wordsOf returns a status without its values.
func wordsOf(status string) string {
	return strings.Join(strings.Fields(value.ReplaceAllString(status, "")), " ")
}
