//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// schema is a part of the JSON schema of the chart's values.
type schema struct {
	Properties map[string]schema
	Items      *schema
	Enum       []string
	Pattern    string
	Maximum    int
}

// chartSchema returns the schema of the chart's values.
func chartSchema(t *testing.T) (s schema) {
	t.Helper()
	text, err := os.ReadFile("../../deploy/helm/sluice/values.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// runFlag returns a flag of the command "sluice run".
func runFlag(t *testing.T, name string) *pflag.Flag {
	t.Helper()
	cmd, _, err := rootCommand(env{getenv: func(string) string { return "" }}).Find([]string{"run"})
	if err != nil {
		t.Fatal(err)
	}
	f := cmd.Flags().Lookup(name)
	if f == nil {
		t.Fatalf("sluice run has no flag --%s", name)
	}
	return f
}

// For a value that sets a flag, the schema allows exactly the words that the flag allows.
func TestChartSchemaHasTheWordsOfFlags(t *testing.T) {
	s := chartSchema(t)
	for flag, part := range map[string]schema{
		"fail": s.Properties["fail"], "on-exit": s.Properties["onExit"], "kernel-cache": s.Properties["kernelCache"], "guard": s.Properties["guard"],
		"iptables": s.Properties["iptables"], "sysctl-problems": s.Properties["sysctlProblems"], "log-level": s.Properties["log"].Properties["level"],
		"log-format": s.Properties["log"].Properties["format"], "log-verdicts": s.Properties["log"].Properties["verdicts"],
	} {
		f := runFlag(t, flag)
		for _, word := range part.Enum {
			if err := f.Value.Set(word); err != nil {
				t.Errorf("the schema allows --%s=%s: %v", flag, word, err)
			}
		}
		words := strings.Split(f.Value.Type(), "|")
		if len(part.Enum) == 0 || len(words) > 1 && len(words) != len(part.Enum) {
			t.Errorf("the schema allows %q for --%s, and the flag %q", part.Enum, flag, words)
		}
	}
}

// For a value that sets a flag, the schema refuses exactly the numbers that the flag refuses.
func TestChartSchemaHasTheBoundsOfFlags(t *testing.T) {
	s := chartSchema(t)
	most := s.Properties["queues"].Maximum
	if runFlag(t, "queues").Value.Set(fmt.Sprint(most)) != nil || runFlag(t, "queues").Value.Set(fmt.Sprint(most+1)) == nil {
		t.Errorf("the largest number of queues is %d in the schema, and another for the flag", most)
	}
	for flag, tt := range map[string]struct {
		pattern string
		texts   []string
	}{
		"pod-cidrs": {s.Properties["podCIDRs"].Items.Pattern, []string{
			"10.0.0.0/8", "10.0.0.0/32", "10.0.0.0/0", "10.0.0.0/33", "10.0.0.0/99", "10.0.0.0/08", "10.0.0.0", "10.0.0/8", "256.0.0.0/8", "010.0.0.0/8", "255.255.255.255/32",
			"::/0", "fd00::/128", "fd00::/129", "fd00:1:2:3:4:5:6:7/64", "fd00:1:2:3:4:5:6:7:8/64", "fd00:1:2:3:4:5:6::/64", "::1:2:3:4:5:6:7/64", "1::2::3/64", "1:2:3:4:5:6:7::8/64",
			"fd00:10:244::/48", "fd00::12345/64", "g::/64", ":/64", "1:/64", ":1/64", "fd00:1:2:3/64", "::1/64", "1::/64", "FD00::A/64", "fd00::%eth0/64",
		}},
		"http-address": {s.Properties["httpAddress"].Pattern, []string{
			"", "127.0.0.1:10301", ":9999", "0.0.0.0:65535", "0.0.0.0:65536", "0.0.0.0:99999", "[::]:80", "[fd00::1]:80", "localhost:80", "example:80", "1.2:80", "256.0.0.1:80", "10301", "127.0.0.1", "::1:80",
		}},
		"hold":          {s.Properties["hold"].Pattern, []string{"1s", "1m30s", "0.5s", "250ms", "1", "s", "1 s", "1d", ""}},
		"startup-taint": {s.Properties["startupTaint"].Pattern, []string{"", "a", "sluice.dev/agent-not-ready", "a=b", "a:NoSchedule", "/a", "a/", "A.b/c_d", "-a"}},
	} {
		pattern := regexp.MustCompile(tt.pattern)
		for _, text := range tt.texts {
			err := runFlag(t, flag).Value.Set(text)
			if allows := pattern.MatchString(text); allows != (err == nil) {
				t.Errorf("--%s=%q: the schema allows it: %v, and the flag returns %v", flag, text, allows, err)
			}
		}
	}
}
