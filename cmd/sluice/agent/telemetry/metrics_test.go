package telemetry

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sluice/cmd/sluice/agent/status"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
)

var update = flag.Bool("update", false, "write the files with the expected results")

// golden compares got with a file in testdata.
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
		t.Errorf("the output differs from %s (go test -update writes it):\n%s", path, got)
	}
}

// gathered returns the text of a scrape of a state. The pedantic registry also reports metrics
// that are not described or that exist twice.
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
	text := string(gathered(t, busyState(t)))
	_, version, _ := strings.Cut(text, `goversion="`)
	version, _, _ = strings.Cut(version, `"`)
	golden(t, "metrics.txt", []byte(strings.Replace(text, version, "go", 1)))
}

// An agent that has just started exports all series, with the value 0.
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

// sluice_problems also counts problems of kinds that are not in problemKinds.
func TestEveryProblemIsCounted(t *testing.T) {
	text := string(gathered(t, &State{Now: noon, Problems: []status.Problem{{Kind: "sysctl"}, {Kind: "new"}, {Kind: "new"}}}))
	for _, want := range []string{`sluice_problems{kind="sysctl"} 1`, `sluice_problems{kind="new"} 2`} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("there is no %q in\n%s", want, text)
		}
	}
}

func TestMetricsFollowConventions(t *testing.T) {
	problems, err := promlint.New(bytes.NewReader(gathered(t, busyState(t)))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// The metric of the digest is its first 48 bits, a number that a float64 holds exactly. Before the first
// snapshot, the metric does not exist.
func TestDigestNumber(t *testing.T) {
	for digest, want := range map[string]float64{"ffffffffffff0000": 1<<48 - 1, "000000000001ffff": 1, "7a224f61ae470123": 0x7a224f61ae47} {
		if n, ok := digestNumber(digest); !ok || n != want {
			t.Errorf("%s is %v, %v, want %v", digest, n, ok, want)
		}
	}
	if text := string(gathered(t, &State{Now: noon})); strings.Contains(text, "sluice_policies_digest") {
		t.Error("an agent without a snapshot has a digest")
	}
}
