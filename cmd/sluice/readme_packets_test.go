package main

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sluice/bench/running"
)

// logField is a field of a line of a log in text.
var logField = regexp.MustCompile(`([\w.]+)=("(?:[^"\\]|\\.)*"|\S+)`)

// shapeOf is what the lines of a log that say the same thing have in common: their
// message, and which fields there are.
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

// The log that the README shows is one that the agent writes: each line has the
// message and the fields of one that it wrote here.
func TestReadmeLogOnPackets(t *testing.T) {
	text, err := os.ReadFile(readmePath)
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t)
	s.write("policies.yaml", policies("default/out: {podSelector: {matchLabels: {role: backend}}, policyTypes: [Egress]}"))
	s.start()
	s.check(t, nil, []string{"default/other default/db tcp 6379"})
	written := make(map[string]bool)
	for _, l := range s.agent.Since(0, func(running.Line) bool { return true }) {
		written[l.Text("msg")+": "+strings.Join(slices.Sorted(maps.Keys(l)), " ")] = true
	}
	lines, shown := strings.Split(string(text), "\n"), 0
	for _, b := range readmeBlocks(lines) {
		for _, c := range readmeCommands(lines[b.first:b.end]) {
			if !b.root || !strings.Contains(c.line, "sluice run") {
				continue
			}
			for line := range strings.Lines(c.output) {
				shown++
				if msg, fields := shapeOf(line); !written[msg+": "+fields] {
					t.Errorf("the agent writes no line like %s", line)
				}
			}
		}
	}
	if shown == 0 {
		t.Error("the README shows no log: it was not found")
	}
}
