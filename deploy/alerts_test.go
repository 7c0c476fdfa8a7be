package deploy

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"sluice/bench/testbed/prometheus"
)

// series are the values of series, minute by minute, in the notation of promtool.
type series map[string]string

// agents are the instances of the agents in the tests.
var agents = []string{"a", "b", "c"}

// of returns the name and the labels of an agent's series. The parameter labels ends with a comma or is
// empty.
func of(name, labels, instance string) string {
	return fmt.Sprintf(`%s{%sinstance="%s"}`, name, labels, instance)
}

// healthy returns the series of three agents without problems, for five hours.
func healthy() series {
	all := make(series)
	for _, a := range agents {
		for name, values := range map[string]string{
			"up": "1x300", "sluice_ready": "1x300", "sluice_nodes": "3x300", "sluice_policies_digest": "134287779278407x300",
			"sluice_rule_tables_failing": "0x300", "sluice_rule_tables_reduced": "0x300", "sluice_sysctl_problems": "0x300",
			"sluice_pods_outside_ranges": "0x300", "sluice_rule_repairs_total": "2x300", "sluice_queue_dropped_total": "4x300",
			"sluice_overflow_queue_dropped_total": "5x300", "sluice_http_connections_displaced_total": "1x300",
			"sluice_queue_restarts_total": "1x300", "sluice_queue_panics_total": "1x300",
			"sluice_held_packets_expired_total": "1x300", "sluice_held_packets_refused_total": "1x300",
		} {
			all[of(name, map[string]string{"up": `job="sluice",`}[name], a)] = values
		}
		all[of("sluice_build_info", `version="v1",`, a)] = "1x300"
		all[of("sluice_policy_denied_total", denies, a)] = "0+6x300"
		all[of("sluice_watch_broken", `kind="Pod",`, a)] = "0x300"
		all[of("sluice_problems", `kind="policy",`, a)] = "0x300"
		all[of("sluice_decision_seconds_bucket", `le="1.024e-06",`, a)] = "0+60x300"
		all[of("sluice_decision_seconds_bucket", `le="0.008388608",`, a)] = "0+60x300"
		all[of("sluice_decision_seconds_bucket", `le="+Inf",`, a)] = "0+60x300"
	}
	return all
}

const denies = `tier="NetworkPolicy",policy="shop/db",direction="ingress",`

// everywhere returns a series for each agent, all with the same values.
func everywhere(name, labels, values string) series {
	all := make(series)
	for _, a := range agents {
		all[of(name, labels, a)] = values
	}
	return all
}

// with returns the union of series. If several have the same name, it takes the last one.
func with(all ...series) series {
	sum := make(series)
	for _, s := range all {
		maps.Copy(sum, s)
	}
	return sum
}

// alertCase is a change of the series of healthy agents, and the alerts that then fire, by time. An alert
// is "NAME" or "NAME LABEL=VALUE", with one of the labels in shownLabels.
type alertCase struct {
	name   string
	change series
	fires  map[string][]string
}

var shownLabels = []string{"instance", "kind", "policy"}

// alertCases returns, for each alert, cases in which it fires and cases in which it almost does.
func alertCases() []alertCase {
	down := series{of("up", `job="sluice",`, "a"): "1x10 0x290"}
	gone := series{of("sluice_ready", "", "a"): "1x10 stale", of("sluice_build_info", `version="v1",`, "a"): "1x10 stale"}
	allGone := with(everywhere("sluice_ready", "", "1x10 stale"), everywhere("sluice_build_info", `version="v1",`, "1x10 stale"), everywhere("sluice_nodes", "", "3x10 stale"), everywhere("sluice_policies_digest", "", "5x10 stale"))
	fourNodes := everywhere("sluice_nodes", "", "3x10 4x290")
	wanted := func(n string) series {
		return series{`kube_daemonset_status_desired_number_scheduled{daemonset="sluice"}`: n + "x300"}
	}
	digest := func(a, b, c string) series {
		return series{of("sluice_policies_digest", "", "a"): a, of("sluice_policies_digest", "", "b"): b, of("sluice_policies_digest", "", "c"): c}
	}
	gauge := func(name, labels string) series { return series{of(name, labels, "b"): "0x10 1x20 0x270"} }
	counter := func(name string) series { return series{of(name, "", "b"): "0x10 0+10x20 210x270"} }
	burst := "SluiceDenialBurst policy=shop/db"
	return []alertCase{
		{"all is well", nil, map[string][]string{"10m": nil, "1h": nil, "5h": nil}},
		{"an agent does not answer", with(down, gone), map[string][]string{"15m": nil, "16m": {"SluiceAgentDown instance=a"}, "26m": {"SluiceAgentDown instance=a", "SluiceAgentsMissing"}}},
		{"no agent is left", allGone, map[string][]string{"19m": nil, "21m": {"SluiceNoAgents"}, "5h": {"SluiceNoAgents"}}},
		{"a node has no agent", fourNodes, map[string][]string{"25m": nil, "26m": {"SluiceAgentsMissing"}}},
		{"a node has no agent for a while", with(fourNodes, series{of("sluice_ready", "", "d"): "_x20 1x280", of("sluice_build_info", `version="v1",`, "d"): "_x20 1x280"}), map[string][]string{"26m": nil, "5h": nil}},
		{"the DaemonSet does not select a node", with(fourNodes, wanted("3")), map[string][]string{"26m": nil, "5h": nil}},
		{"the DaemonSet wants one more", wanted("4"), map[string][]string{"14m": nil, "15m": {"SluiceAgentsMissing"}}},
		{"two versions run", series{of("sluice_build_info", `version="v1",`, "c"): "1x10 stale", of("sluice_build_info", `version="v2",`, "c"): "_x11 1x280"}, map[string][]string{"70m": nil, "71m": {"SluiceVersionsDiffer"}}},

		{"an agent does not follow a change", digest("1x20 2x280", "1x20 2x280", "1x300"), map[string][]string{"30m": nil, "31m": {"SluicePoliciesDiffer instance=c"}}},
		{"an agent never gets a policy", digest("1x20 2x100 3x200", "1x20 2x100 3x200", "1x20 7x100 8x200"), map[string][]string{"119m": {"SluicePoliciesDiffer instance=c"}, "5h": {"SluicePoliciesDiffer instance=c"}}},
		{"two agents differ", digest("1x20 2x280", "1x300", "_x300"), map[string][]string{"31m": {"SluicePoliciesDiffer instance=b"}, "45m": {"SluicePoliciesDiffer instance=a", "SluicePoliciesDiffer instance=b"}}},
		{"agents follow a change one after the other", digest("1x20 2x280", "1x24 2x276", "1x29 2x271"), map[string][]string{"25m": nil, "30m": nil, "5h": nil}},
		{"policies change all the time", digest("0+1x300", "0+1x300", "0 0+1x299"), map[string][]string{"1h": nil, "5h": nil}},

		{"a burst of denials", series{of("sluice_policy_denied_total", denies, "a"): "0+6x120 720+600x180"}, map[string][]string{"121m": nil, "130m": {burst}, "180m": {burst}, "240m": nil}},
		{"a new policy denies a lot", everywhere("sluice_policy_denied_total", strings.ReplaceAll(denies, "db", "new"), "_x120 0+60x180"), map[string][]string{"130m": {"SluiceDenialBurst policy=shop/new"}, "280m": nil}},
		{"a new policy denies little", everywhere("sluice_policy_denied_total", strings.ReplaceAll(denies, "db", "new"), "_x120 0+15x180"), map[string][]string{"130m": nil}},
		{"many denials as usual", everywhere("sluice_policy_denied_total", denies, "0+6000x300"), map[string][]string{"10m": nil, "59m": nil, "80m": nil, "5h": nil}},
		{"an agent restarts", everywhere("sluice_policy_denied_total", denies, "0+60x200 0+60x100"), map[string][]string{"3h": nil, "206m": nil, "5h": nil}},

		{"not ready", series{of("sluice_ready", "", "b"): "1x10 0x8 1x282"}, map[string][]string{"15m": nil, "16m": {"SluiceNotReady instance=b"}, "20m": nil}},
		{"rules fail", gauge("sluice_rule_tables_failing", ""), map[string][]string{"11m": nil, "12m": {"SluiceRulesCannotBeKept instance=b"}, "40m": nil}},
		{"rules lack a part", gauge("sluice_rule_tables_reduced", ""), map[string][]string{"15m": nil, "16m": {"SluiceRulesLackAPart instance=b"}, "40m": nil}},
		{"sysctl", gauge("sluice_sysctl_problems", ""), map[string][]string{"11m": nil, "12m": {"SluicePodsPassIptablesBy instance=b"}, "40m": nil}},
		{"pods outside", gauge("sluice_pods_outside_ranges", ""), map[string][]string{"25m": nil, "26m": {"SluicePodsOutsideRanges instance=b"}, "40m": nil}},
		{"rules are changed", series{of("sluice_rule_repairs_total", "", "b"): "2x10 3+1x5 8x280"}, map[string][]string{"11m": nil, "16m": {"SluiceRulesAreChanged instance=b"}, "40m": nil}},
		{"rules were changed once", series{of("sluice_rule_repairs_total", "", "b"): "2x10 3x290"}, map[string][]string{"11m": nil, "16m": nil}},
		{"a watch is broken", gauge("sluice_watch_broken", `kind="Pod",`), map[string][]string{"15m": nil, "16m": {"SluiceApiAway instance=b kind=Pod"}, "40m": nil}},
		{"queues are full", counter("sluice_queue_dropped_total"), map[string][]string{"15m": nil, "18m": {"SluicePacketsDropped instance=b"}, "40m": nil}},
		{"a flood", counter("sluice_overflow_queue_dropped_total"), map[string][]string{"15m": nil, "18m": {"SluiceSourceFloods instance=b"}, "40m": nil}},
		{"too many callers", counter("sluice_http_connections_displaced_total"), map[string][]string{"20m": nil, "23m": {"SluiceTooManyCallers instance=b"}, "40m": nil}},
		{"workers fail", series{of("sluice_queue_panics_total", "", "b"): "1x10 2x290"}, map[string][]string{"10m": nil, "13m": {"SluiceWorkersFail instance=b"}, "40m": nil}},
		{"pods stay unknown", counter("sluice_held_packets_expired_total"), map[string][]string{"15m": nil, "18m": {"SluicePodsUnknown instance=b"}, "40m": nil}},
		{"a policy is wrong", everywhere("sluice_problems", `kind="policy",`, "0x10 1x290"), map[string][]string{"20m": nil, "21m": {"SluicePolicyNotUnderstood kind=policy"}}},
		{"decisions are slow", series{of("sluice_decision_seconds_bucket", `le="1.024e-06",`, "b"): "0x300"}, map[string][]string{"15m": nil, "16m": {"SluiceDecisionsAreSlow instance=b"}}},
	}
}

// promtoolGroup returns a test for promtool: at each time in c.fires, exactly the alerts of that time fire.
func promtoolGroup(c alertCase) map[string]any {
	var inputs, tests []map[string]any
	all := with(healthy(), c.change)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		inputs = append(inputs, map[string]any{"series": name, "values": all[name]})
	}
	for _, at := range slices.Sorted(maps.Keys(c.fires)) {
		samples := []map[string]any{}
		for _, alert := range c.fires[at] {
			fields := strings.Fields(alert)
			labels := fmt.Sprintf("alertname=%q", fields[0])
			for _, f := range fields[1:] {
				name, value, _ := strings.Cut(f, "=")
				labels += fmt.Sprintf(",%s=%q", name, value)
			}
			samples = append(samples, map[string]any{"labels": "{" + labels + "}", "value": 1})
		}
		firing := fmt.Sprintf(`count by (alertname, %s) (ALERTS{alertstate="firing"})`, strings.Join(shownLabels, ", "))
		tests = append(tests, map[string]any{"expr": firing, "eval_time": at, "exp_samples": samples})
	}
	return map[string]any{"name": c.name, "interval": "1m", "input_series": inputs, "promql_expr_test": tests}
}

// promtool runs the real promtool.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	if os.Getenv(prometheus.Enable) == "" {
		t.Skip("needs the real promtool: make test-alerts")
	}
	path, err := prometheus.Promtool(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %q: %v\n%s", args, err, out)
	}
}

// In each case exactly the expected alerts fire, and each alert fires in some case.
func TestAlertsFire(t *testing.T) {
	rulesFile, err := filepath.Abs(filepath.Join(monitoringDir, "alerts.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	fired := make(map[string]bool)
	var groups []any
	for _, c := range alertCases() {
		groups = append(groups, promtoolGroup(c))
		for _, all := range c.fires {
			for _, alert := range all {
				name, _, _ := strings.Cut(alert, " ")
				fired[name] = true
			}
		}
	}
	for _, g := range alerts(t).Groups {
		for _, r := range g.Rules {
			if !fired[r.Alert] {
				t.Errorf("in no case %s fires", r.Alert)
			}
		}
	}
	groups = append(groups, burstTexts())
	text, err := yaml.Marshal(map[string]any{"rule_files": []string{rulesFile}, "evaluation_interval": "1m", "tests": groups})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "alerts_test.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "rules", rulesFile)
	promtool(t, "test", "rules", file)
}

// dashboardQuery is a query of the dashboard, with values for the variables of Grafana.
type dashboardQuery struct{ panel, legend, expr string }

func dashboardQueries(t *testing.T) (all []dashboardQuery) {
	t.Helper()
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr, LegendFormat string }
		}
	}
	text, err := os.ReadFile(filepath.Join(monitoringDir, "dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			expr := strings.NewReplacer("$__rate_interval", "2m", "$instance", ".*").Replace(target.Expr)
			all = append(all, dashboardQuery{p.Title, target.LegendFormat, expr})
		}
	}
	return all
}

// The dashboard counts the agents of the largest group with the same policies, and all other agents. Each
// agent is in one of the two numbers, even if there is no majority.
func TestAlertsDashboardCountsEveryAgent(t *testing.T) {
	var groups []any
	for _, tt := range []struct {
		digests     []string
		same, other int
	}{
		{[]string{"5", "5", "5"}, 3, 0}, {[]string{"134287779278407", "134287779278407", "134287779278406"}, 2, 1},
		{[]string{"1", "2"}, 1, 1}, {[]string{"1", "2", "3"}, 1, 2}, {[]string{"1", "9", "9", "2"}, 2, 2},
	} {
		var inputs, tests []any
		for i, d := range tt.digests {
			inputs = append(inputs, map[string]any{"series": of("sluice_policies_digest", "", fmt.Sprint(i)), "values": d + "x3"})
		}
		for _, q := range dashboardQueries(t) {
			want, is := map[string]int{"same": tt.same, "other": tt.other, "agents": tt.other}[q.legend]
			if is && strings.Contains(q.expr, "sluice_policies_digest") {
				tests = append(tests, map[string]any{"expr": q.expr, "eval_time": "2m", "exp_samples": []any{map[string]any{"labels": "{}", "value": want}}})
			}
		}
		if len(tests) != 3 {
			t.Fatalf("%d queries count agents with the same policies, want 3", len(tests))
		}
		groups = append(groups, map[string]any{"name": fmt.Sprint(tt.digests), "interval": "1m", "input_series": inputs, "promql_expr_test": tests})
	}
	text, err := yaml.Marshal(map[string]any{"evaluation_interval": "1m", "tests": groups})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "dashboard_test.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "test", "rules", file)
}

// Prometheus understands the queries of the dashboard.
func TestAlertsDashboard(t *testing.T) {
	var queries []any
	for _, q := range dashboardQueries(t) {
		queries = append(queries, map[string]any{"record": fmt.Sprint("panel:", len(queries)), "expr": q.expr})
	}
	if len(queries) < 30 {
		t.Fatalf("found only %d queries", len(queries))
	}
	rules, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": queries}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "dashboard.yaml")
	if err := os.WriteFile(file, rules, 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "rules", file)
}

// burstTexts returns a test for promtool that compares the annotations of an alert, which name the policy.
func burstTexts() map[string]any {
	c := promtoolGroup(alertCase{change: everywhere("sluice_policy_denied_total", denies, "0+6x120 720+600x180")})
	delete(c, "promql_expr_test")
	c["name"] = "the texts of a burst"
	c["alert_rule_test"] = []any{map[string]any{"eval_time": "150m", "alertname": "SluiceDenialBurst", "exp_alerts": []any{map[string]any{
		"exp_labels": map[string]string{"severity": "warning", "tier": "NetworkPolicy", "policy": "shop/db", "direction": "ingress"},
		"exp_annotations": map[string]string{
			"summary":     "The NetworkPolicy policy shop/db denies far more ingress packets than an hour ago.",
			"description": "It denies 30 packets a second on all nodes, more than ten times the rate of an hour ago. Either the policy or a program has changed, or something tries addresses and ports.",
			"runbook":     `Run "sluice denied --all-nodes --since 10m --policy shop/db": it lists both ends and the port. For one of the lines, "sluice explain" shows which rule would allow it. If it should pass, correct the policy; if not, find out what the sending pod does. The policy (other) is all policies beyond the first 1,000.`,
		},
	}}}}
	return c
}
