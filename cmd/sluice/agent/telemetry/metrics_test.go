package telemetry

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
)

var update = flag.Bool("update", false, "write the files with the expected results")

// golden compares with a file of testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is otherwise (go test -update writes it):\n%s", path, got)
	}
}

// gathered is what a scrape of a state gives. A pedantic registry also finds
// metrics that are not described, or twice.
func gathered(t *testing.T, s *State) []byte {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(collector{func() *State { return s }})
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&text, f); err != nil {
			t.Fatal(err)
		}
	}
	return text.Bytes()
}

func TestMetrics(t *testing.T) {
	text := string(gathered(t, busy(t)))
	_, version, _ := strings.Cut(text, `goversion="`)
	version, _, _ = strings.Cut(version, `"`)
	golden(t, "metrics.txt", []byte(strings.Replace(text, version, "go", 1)))
}

// An agent that has just begun has all series already, and nothing to divide by.
func TestMetricsOfANewAgent(t *testing.T) {
	text := string(gathered(t, &State{Now: noon, Started: noon}))
	for _, want := range []string{
		"sluice_ready 0\n", "sluice_policies 0\n", "sluice_snapshot_age_seconds 0\n", "sluice_decision_seconds_count 0\n",
		`sluice_verdicts_total{direction="ingress",reason="ingress-denied",verdict="deny"} 0` + "\n",
		`sluice_problems{kind="manifest"} 0` + "\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %q in\n%s", want, text)
		}
	}
}

// No problem is left out of the count because its kind is not among those with a
// series of their own.
func TestEveryProblemIsCounted(t *testing.T) {
	text := string(gathered(t, &State{Now: noon, Problems: []Problem{{Kind: "sysctl"}, {Kind: "new"}, {Kind: "new"}}}))
	for _, want := range []string{`sluice_problems{kind="sysctl"} 1`, `sluice_problems{kind="new"} 2`} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("there is no %q in\n%s", want, text)
		}
	}
}

func TestMetricsKeepToTheConventions(t *testing.T) {
	problems, err := promlint.New(bytes.NewReader(gathered(t, busy(t)))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}
