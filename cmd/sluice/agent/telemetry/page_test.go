package telemetry

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"sluice/filter"
)

// readme documents the log, the status and the metrics.
const readme = "README.md"

func readPage(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The page lists all metrics of Sluice, with the help text that a scrape returns. With -update, the
// test writes the list to the page.
func TestPageListsMetrics(t *testing.T) {
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(collector{func() *State { return busyState(t) }})
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	want := "\n| metric | type | labels | meaning |\n|---|---|---|---|\n"
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "sluice_") {
			continue // a metric of Go or of the process
		}
		var names []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			names = append(names, "`"+l.GetName()+"`")
		}
		want += fmt.Sprintf("| `%s` | %s | %s | %s |\n", f.GetName(), strings.ToLower(f.GetType().String()), strings.Join(names, ", "), f.GetHelp())
	}
	const begin, end = "<!-- metrics -->\n", "<!-- end of metrics -->\n"
	before, rest, hasBegin := strings.Cut(readPage(t), begin)
	got, after, hasEnd := strings.Cut(rest, end)
	if !hasBegin || !hasEnd {
		t.Fatalf("%s lacks %q or %q", readme, begin, end)
	}
	if want += "\n"; got != want && !*update {
		t.Errorf("%s differs from the metrics (go test -update writes it); want\n%s", readme, want)
	}
	if *update {
		if err := os.WriteFile(readme, []byte(before+begin+want+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// The page explains exactly the reasons that verdicts can have.
func TestPageExplainsReasons(t *testing.T) {
	_, section, _ := strings.Cut(readPage(t), "| reason | meaning |\n")
	section, _, _ = strings.Cut(section, "\n\n")
	var got, want []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\|").FindAllStringSubmatch(section, -1) {
		got = append(got, m[1])
	}
	for r := filter.NoReason + 1; r < filter.NumReasons; r++ {
		want = append(want, r.String())
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s explains the reasons %v, want %v", readme, got, want)
	}
}
