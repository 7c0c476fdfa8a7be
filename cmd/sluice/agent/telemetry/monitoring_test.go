package telemetry

import (
	"bytes"
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"sigs.k8s.io/yaml"
)

const monitoring = "../../../../deploy/monitoring/"

// expression is a query of the dashboard or of an alert.
type expression struct{ place, text string }

// expressions returns all queries of the dashboard and of the alerts.
func expressions(t *testing.T) []expression {
	t.Helper()
	var all []expression
	var rules struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	text, err := os.ReadFile(monitoring + "alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalStrict(text, &rules); err != nil {
		t.Fatal(err)
	}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			all = append(all, expression{"alert " + r.Alert, r.Expr})
			if r.Alert == "" || r.Annotations["summary"] == "" || r.Annotations["description"] == "" || r.Annotations["runbook"] == "" || r.Labels["severity"] == "" {
				t.Errorf("the alert %q lacks a name, summary, description, runbook or severity: %+v", r.Alert, r)
			}
		}
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
		Templating struct {
			List []struct{ Query any }
		}
	}
	if text, err = os.ReadFile(monitoring + "dashboard.json"); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			all = append(all, expression{"panel " + p.Title, target.Expr})
		}
	}
	for _, v := range dashboard.Templating.List {
		if query, ok := v.Query.(map[string]any); ok {
			all = append(all, expression{"variable", query["query"].(string)})
		}
	}
	if len(all) < 20 {
		t.Fatalf("found only %d expressions", len(all))
	}
	return all
}

// families returns the metrics of an agent whose counters are not zero, by name.
func families(t *testing.T) map[string]*dto.MetricFamily {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	found, err := parser.TextToMetricFamilies(bytes.NewReader(gathered(t, busyState(t))))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

var (
	metricName = regexp.MustCompile(`\bsluice_[a-z0-9_]+`)
	selector   = regexp.MustCompile(`\b(sluice_[a-z0-9_]+)\{([^}]*)\}`)
	matcher    = regexp.MustCompile(`([a-z_]+)(=~|!~|!=|=)"([^"]*)"`)
	grouping   = regexp.MustCompile(`\bby \(([^)]*)\)`)
	given      = []string{"instance", "le"} // labels that do not come from the agent's code
)

// familyOf returns the metric to which a name in a query refers, or nil. The name may be that of
// a part of a histogram, such as its "_sum".
func familyOf(found map[string]*dto.MetricFamily, name string) *dto.MetricFamily {
	if f := found[name]; f != nil {
		return f
	}
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		if stem, ok := strings.CutSuffix(name, suffix); ok && found[stem] != nil && found[stem].GetType() == dto.MetricType_HISTOGRAM {
			return found[stem]
		}
	}
	return nil
}

// values returns the values of a label of a metric; nil if the metric has no such label.
func values(f *dto.MetricFamily, label string) []string {
	var all []string
	for _, m := range f.GetMetric() {
		for _, l := range m.GetLabel() {
			if l.GetName() == label {
				all = append(all, l.GetValue())
			}
		}
	}
	return all
}

// Queries of the dashboard and the alerts use only metrics, labels and values that exist, and
// use counters only in a rate or an increase.
func TestMonitoringQueriesMatchMetrics(t *testing.T) {
	found := families(t)
	asked := map[string]bool{}
	for _, e := range expressions(t) {
		labels := slices.Clone(given)
		for _, name := range metricName.FindAllString(e.text, -1) {
			f := familyOf(found, name)
			if f == nil {
				t.Errorf("%s: there is no metric %s", e.place, name)
				continue
			}
			asked[f.GetName()] = true
			for _, m := range f.GetMetric() {
				for _, l := range m.GetLabel() {
					labels = append(labels, l.GetName())
				}
			}
			if raw := regexp.MustCompile(`(rate|increase)\(` + name + `\b`); f.GetType() == dto.MetricType_COUNTER && !raw.MatchString(e.text) {
				t.Errorf("%s: the counter %s is used without rate or increase", e.place, name)
			}
		}
		for _, s := range selector.FindAllStringSubmatch(e.text, -1) {
			checkMatchers(t, e, familyOf(found, s[1]), s[2])
		}
		for _, g := range grouping.FindAllStringSubmatch(e.text, -1) {
			for label := range strings.SplitSeq(g[1], ",") {
				if label = strings.TrimSpace(label); !slices.Contains(labels, label) {
					t.Errorf("%s: there is no label %s to group by", e.place, label)
				}
			}
		}
		if strings.Count(e.text, "(") != strings.Count(e.text, ")") || strings.Count(e.text, "{") != strings.Count(e.text, "}") {
			t.Errorf("%s: the brackets of %q do not match", e.place, e.text)
		}
	}
	if len(asked) < len(found)/2 {
		t.Errorf("only %d of %d metrics are used", len(asked), len(found))
	}
}

func checkMatchers(t *testing.T, e expression, f *dto.MetricFamily, text string) {
	t.Helper()
	for _, m := range matcher.FindAllStringSubmatch(text, -1) {
		label, value := m[1], m[3]
		if f == nil || slices.Contains(given, label) {
			continue
		}
		there := values(f, label)
		for want := range strings.SplitSeq(value, "|") {
			if !slices.Contains(there, want) {
				t.Errorf("%s: %s never has %s=%q, but %q", e.place, f.GetName(), label, want, there)
			}
		}
	}
}

// An agent that has ended has no series, so no condition on its own metrics can hold. These alerts
// still fire then.
func TestAlertsOnAgentsThatAreGone(t *testing.T) {
	var texts []string
	for _, e := range expressions(t) {
		texts = append(texts, e.text)
	}
	for _, want := range []string{
		`up{job="sluice"} == 0`, "absent(sluice_build_info)", "count(sluice_ready == 1) or vector(0)", "count by (version) (sluice_build_info)",
	} {
		if !slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(text, want) }) {
			t.Errorf("no alert has %s", want)
		}
	}
}
