package result_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"sluice/bench/result"
)

var (
	rate   = result.Metric{Name: "connections", Unit: "/s", Better: result.More}
	p99    = result.Metric{Name: "p99", Unit: "µs", Better: result.Less}
	queued = result.Metric{Name: "queued", Unit: "/conn"}
	size   = result.Scenario{Pods: 1000, Policies: 100, Namespaces: 1}
)

// sample returns a result with a reference row and a row that is slower by the given factor.
func sample(factor float64) *result.Result {
	r := &result.Result{
		Made: time.Unix(1_700_000_000, 0).UTC(), Took: 120,
		Machine: result.Machine{Kernel: "6.1", CPU: "a <CPU> & more", Cores: 2, Sluice: "v1", Iptables: "v1.8"},
		Options: map[string]string{"rounds": "7"},
		Rows: []result.Row{
			{Name: "none", Label: "no agent", About: "only conntrack"},
			{Name: "user", Label: "Sluice <user>", Against: "none", About: "one & all"},
		},
		Loads: []result.Load{{Name: "tcp-1", Label: "New connections"}},
		Notes: []string{"a row was left out"},
	}
	for i := range 7 {
		// The speed of the machine varies from round to round, but the ratio hardly does.
		mood := 1 + 0.2*float64(i%3)
		jitter := 1 + 0.001*float64(i)
		r.Add(result.Key{Scenario: size, Row: "none", Load: "tcp-1", Metric: rate}, 20000*mood)
		r.Add(result.Key{Scenario: size, Row: "user", Load: "tcp-1", Metric: rate}, 20000*mood*jitter*factor)
		r.Add(result.Key{Scenario: size, Row: "none", Load: "tcp-1", Metric: p99}, 100*mood)
		r.Add(result.Key{Scenario: size, Row: "user", Load: "tcp-1", Metric: p99}, 100*mood/factor*jitter)
		r.Add(result.Key{Scenario: size, Row: "user", Load: "tcp-1", Metric: queued}, 1)
	}
	return r
}

func TestJSONRoundTrip(t *testing.T) {
	r := sample(0.5)
	var b bytes.Buffer
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "r.json")
	if err := os.WriteFile(name, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := result.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, r) {
		t.Errorf("read\n%+v\nwritten\n%+v", got, r)
	}
	for text, want := range map[string]string{`{"format":99}`: "format 99", `{`: name} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := result.ReadFile(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q in it", text, err, want)
		}
	}
}

func TestText(t *testing.T) {
	var b bytes.Buffer
	if err := sample(0.5).Text(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"== 1,000 pods, 100 policies, one namespace",
		"New connections\n",
		"connections /s  ratio  lowest–highest  p99 µs  queued /conn",
		"no agent       24,000 ±17%     1                      120     –",
		"0.501  0.500–0.503",
		"note: a row was left out",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in\n%s", want, b.String())
		}
	}
}

func TestPage(t *testing.T) {
	var b bytes.Buffer
	if err := sample(0.5).Page(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"bin/bench run --rounds=7", "## 1,000 pods, 100 policies, one namespace", "|---|--:|--:|", "| no agent | 24,000 ±17% | 1 |", "- **no agent**: only conntrack"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in\n%s", want, b.String())
		}
	}
}

// TestHTML parses the report, with its drawings, as XML. It checks that the report shows the
// figures and loads nothing from elsewhere.
func TestHTML(t *testing.T) {
	var b bytes.Buffer
	if err := sample(0.5).HTML(&b); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	for _, bad := range []string{"<user>", "src=", "http:", "https:", "url(", "NaN", "Inf"} {
		if strings.Contains(text, bad) {
			t.Errorf("%q is in the report", bad)
		}
	}
	d := xml.NewDecoder(strings.NewReader(text))
	d.Strict, d.AutoClose, d.Entity = false, xml.HTMLAutoClose, xml.HTMLEntity
	count := make(map[string]int)
	var words []string
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			count[token.Name.Local]++
		case xml.CharData:
			words = append(words, string(token))
		}
	}
	// 21 dots: the ratios of 7 rounds, and the latencies of 2 rows × 7 rounds.
	if count["svg"] != 2 || count["circle"] != 21 || count["table"] != 1 {
		t.Errorf("%d drawings, %d dots, %d tables; want 2, 21, 1", count["svg"], count["circle"], count["table"])
	}
	for _, want := range []string{"Sluice <user>", "0.501", "24,000 ±17%"} {
		if !slices.Contains(words, want) {
			t.Errorf("%q is not in the report", want)
		}
	}
}

func TestCompare(t *testing.T) {
	old := sample(0.95)
	if changes := result.Compare(old, sample(0.95), false); slices.ContainsFunc(changes, func(c result.Change) bool { return c.Real }) {
		t.Errorf("two equal results differ: %+v", changes)
	}
	if changes := result.Compare(old, sample(0.94), false); slices.ContainsFunc(changes, func(c result.Change) bool { return c.Real }) {
		t.Errorf("a change of 1%% counts: %+v", changes)
	}
	fresh := sample(0.80)
	changes := result.Compare(old, fresh, false)
	if len(changes) != 4 { // "queued" is not compared, because neither more nor less of it is better
		t.Fatalf("%d changes: %+v", len(changes), changes)
	}
	for _, c := range changes {
		ours := c.Row == "user"
		if c.Real != ours || c.Ratio != ours || c.Real && !c.Worse() {
			t.Errorf("%+v", c)
		}
	}
	// The absolute rates of the two results overlap, because the speed of the machine varies by
	// more than the rates differ.
	for _, c := range result.Compare(old, fresh, true) {
		if c.Real || c.Ratio {
			t.Errorf("in absolute figures: %+v", c)
		}
	}
	result.Sort(changes)
	if !changes[0].Worse() {
		t.Errorf("first is %+v", changes[0])
	}
	var b bytes.Buffer
	worse, err := result.WriteChanges(&b, old, fresh, changes)
	if err != nil || worse != 2 {
		t.Errorf("%d are worse: %v", worse, err)
	}
	for _, want := range []string{"4 figures compared, 2 changed beyond the noise, 2 for the worse", "connections, ratio", "-15.8%", "WORSE"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in\n%s", want, b.String())
		}
	}
	b.Reset()
	few := sample(0.5)
	for _, r := range []*result.Result{old, few} {
		for i := range r.Series {
			r.Series[i].Values = r.Series[i].Values[:3]
		}
	}
	changes = result.Compare(old, few, false)
	if worse, err = result.WriteChanges(&b, old, few, changes); err != nil || worse > 0 || !strings.Contains(b.String(), "--rounds") {
		t.Errorf("three rounds: %d are worse, %v\n%s", worse, err, b.String())
	}
}
