//go:build linux

package main

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"sluice/bench/testbed/agenttest"
	"sluice/bench/testbed/lab"
)

// Three tiers, as in the README's example. An Admin policy of the platform team denies
// or passes flows, a NetworkPolicy allows some of the passed ones, and a Baseline policy denies
// the rest. The log, the status and the metrics name the tiers.
func TestTiersOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(db("[{from: [{namespaceSelector: {}}], ports: [{port: 6379}]}]"))+clusterPolicies(
		`platform: {tier: Admin, priority: 10, subject: {namespaces: {}}, ingress: [`+
			`{name: to-teams, action: Pass, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {role: frontend}}}}]},`+
			`{name: others, action: Deny, from: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: default}}}]}]}`,
		`closed: {tier: Baseline, priority: 10, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}`,
	))
	s.start("--log-verdicts", "all", "--log-verdicts-rate", "0")
	for _, tt := range []struct {
		from, to string
		port     uint16
		outcome  lab.Outcome
		want     map[string]string
	}{
		{"default/other", "default/db", 6379, lab.TimedOut, map[string]string{
			"verdict": "deny", "direction": "ingress", "policy": "admin/platform", "tier": "Admin", "rule": "ingress[1]", "rule_name": "others", "action": "deny", "passed": "",
		}},
		{"default/web", "default/db", 6379, lab.Reached, map[string]string{
			"verdict": "allow", "direction": "ingress", "policy": "default/p", "tier": "NetworkPolicy", "action": "accept", "passed": "admin/platform ingress[0] to-teams",
		}},
		{"default/web", "default/db", 80, lab.TimedOut, map[string]string{
			"verdict": "deny", "policy": "default/p", "tier": "NetworkPolicy", "action": "", "passed": "admin/platform ingress[0] to-teams",
		}},
		{"mine/cart", "default/web", 80, lab.TimedOut, map[string]string{
			"verdict": "deny", "policy": "baseline/closed", "tier": "Baseline", "rule": "ingress[0]", "action": "deny", "passed": "admin/platform ingress[0] to-teams",
		}},
	} {
		for _, addr := range s.host(tt.to).Addrs() {
			to := netip.AddrPortFrom(addr, tt.port)
			mark := s.agent.Mark()
			if r := s.host(tt.from).Connect(t.Context(), "tcp", to, probeTimeout); r.Outcome != tt.outcome {
				t.Errorf("%s to %s: %v, want %v", tt.from, to, r.Outcome, tt.outcome)
			}
			line := s.await(mark, fmt.Sprintf("the verdict about %s to %s", tt.from, to), func(l agenttest.Line) bool {
				return l.Text("event") == "verdict" && l.Text("dst") == addr.String() && l.Number("dport") == int(tt.port)
			})
			for key, want := range tt.want {
				if got := line.Text(key); got != want {
					t.Errorf("%s to %s: %s=%q, want %q", tt.from, to, key, got, want)
				}
			}
		}
	}
	if _, stdout, _ := sluice(t, "status", "--socket", s.socket); !strings.Contains(stdout, "1 NetworkPolicy, 2 ClusterNetworkPolicies (1 Admin, 1 Baseline); ") {
		t.Errorf("the status is\n%s", stdout)
	}
	for path, want := range map[string]string{"/metrics": `sluice_tier_policies{tier="Admin"} 1`, "/debug/endpoint?pod=default/db": `"admin/platform"`} {
		if status, text := s.scrape(t, path); status != http.StatusOK || !strings.Contains(text, want) {
			t.Errorf("%s: %d, want %q:\n%s", path, status, want, text)
		}
	}
}
