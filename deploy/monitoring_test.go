package deploy

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const monitoringDir = "monitoring"

// rules is a file of alert rules of Prometheus.
type rules struct {
	Groups []struct {
		Name  string
		Rules []struct {
			Alert, Expr, For    string
			Labels, Annotations map[string]string
		}
	}
}

func alerts(t *testing.T) (r rules) {
	t.Helper()
	readYAML(t, filepath.Join(monitoringDir, "alerts.yaml"), &r)
	return r
}

// The PrometheusRule of the kustomize component has the same alerts as the rule file.
func TestPrometheusRuleHasTheAlerts(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(monitoringDir, "alerts.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	_, groups, ok := strings.Cut(string(text), "\ngroups:\n")
	if !ok {
		t.Fatal("alerts.yaml has no groups")
	}
	var out bytes.Buffer
	out.WriteString(`# Made from deploy/monitoring/alerts.yaml, by "go test ./deploy -update".
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: sluice
  namespace: kube-system
  labels:
    app.kubernetes.io/name: sluice
spec:
  groups:
`)
	for line := range strings.Lines(groups) {
		fmt.Fprint(&out, "  ", line)
	}
	golden(t, "kustomize/monitoring/prometheusrule.yaml", out.Bytes())
	var object struct {
		Spec rules
	}
	if err := yaml.Unmarshal(out.Bytes(), &object); err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(object.Spec), fmt.Sprint(alerts(t)); got != want {
		t.Errorf("the PrometheusRule has\n%s\nand the rule file\n%s", got, want)
	}
}

// The README of the monitoring lists every alert, with its meaning and what to do about it.
func TestMonitoringReadme(t *testing.T) {
	var out bytes.Buffer
	for _, group := range alerts(t).Groups {
		for _, r := range group.Rules {
			a := r.Annotations
			text := strings.NewReplacer(
				"{{ $labels.tier }}", "TIER", "{{ $labels.policy }}", "POLICY", "{{ $labels.direction }}", "DIRECTION",
				"{{ $labels.instance }}", "INSTANCE", "{{ $labels.kind }}", "KIND", "{{ $value }}", "N", "{{ $value | humanize }}", "N",
			).Replace
			fmt.Fprintf(&out, "### %s\n\n%s, after %s. %s %s\n\n%s\n\n", r.Alert, r.Labels["severity"], orDefault(r.For, "the first evaluation"), text(a["summary"]), text(a["description"]), text(a["runbook"]))
		}
	}
	section(t, filepath.Join(monitoringDir, "README.md"), "alerts", out.String())
}

func orDefault(text, fallback string) string {
	if text == "" {
		return fallback
	}
	return text
}

// section compares the text between the comments "<!-- name -->" and "<!-- end of name -->" of a
// Markdown file with want. With -update, it writes want there.
func section(t *testing.T, path, name, want string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	begin, end := "<!-- "+name+" -->\n", "<!-- end of "+name+" -->\n"
	before, rest, hasBegin := strings.Cut(string(text), begin)
	_, after, hasEnd := strings.Cut(rest, end)
	if !hasBegin || !hasEnd {
		t.Fatalf("%s lacks %q or %q", path, begin, end)
	}
	golden(t, path, []byte(before+begin+"\n"+strings.TrimSpace(want)+"\n\n"+end+after))
}
