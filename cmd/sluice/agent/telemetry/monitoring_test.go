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

// expressions are all that is asked of Prometheus.
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
			if r.Alert == "" || r.Annotations["summary"] == "" || r.Annotations["description"] == "" || r.Labels["severity"] == "" {
				t.Errorf("the alert %q does not say enough: %+v", r.Alert, r)
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
		t.Fatalf("%d expressions: they were not found", len(all))
	}
	return all
}

// families are the metrics of an agent that has done a bit of everything.
func families(t *testing.T) map[string]*dto.MetricFamily {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	found, err := parser.TextToMetricFamilies(bytes.NewReader(gathered(t, busy(t))))
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
	given      = []string{"instance", "le"} // labels that come from elsewhere
)

// familyOf finds the metric that a name in a query stands for.
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

// values are those that a label of a metric has; none if it has no such label.
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

// The dashboard and the alerts ask for metrics, labels and values that there are,
// for all of them in the way of their kind.
func TestMonitoringAsksForWhatThereIs(t *testing.T) {
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
				t.Errorf("%s: the counter %s is looked at as it is, without its rate", e.place, name)
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
		t.Errorf("of %d metrics %d are asked for", len(found), len(asked))
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
