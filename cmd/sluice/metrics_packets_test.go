//go:build linux

package main

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// panel is the first query of a panel of the dashboard: further queries show a part of what the
// first one counts. The test can evaluate only queries of the form
// sum by (labels) (rate(metric{matchers}[$__rate_interval])).
type panel struct {
	metric   string
	by       []string
	matchers [][]string // each has the whole matcher, the label, the operator and the value
}

var (
	sumOfRates  = regexp.MustCompile(`^sum by \(([^)]*)\) \(rate\((\w+)\{([^}]*)\}\[\$__rate_interval\]\)\)$`)
	oneMatcher  = regexp.MustCompile(`(\w+)(=~|!~|!=|=)"([^"]*)"`)
	allMatchers = regexp.MustCompile(`^(\w+(=~|!~|!=|=)"[^"]*",?)*$`)
)

func readPanel(t *testing.T, title string) panel {
	t.Helper()
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	text, err := os.ReadFile("../../deploy/monitoring/dashboard.json")
	if err == nil {
		err = json.Unmarshal(text, &dashboard)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range dashboard.Panels {
		if p.Title != title {
			continue
		}
		if len(p.Targets) == 0 {
			t.Fatalf("the panel %s has no query", title)
		}
		m := sumOfRates.FindStringSubmatch(p.Targets[0].Expr)
		if m == nil || !allMatchers.MatchString(m[3]) {
			t.Fatalf("the panel %s has the query %q, which this test cannot evaluate", title, p.Targets[0].Expr)
		}
		return panel{m[2], strings.Split(strings.ReplaceAll(m[1], " ", ""), ","), oneMatcher.FindAllStringSubmatch(m[3], -1)}
	}
	t.Fatalf("the dashboard has no panel %s", title)
	return panel{}
}

// lines evaluates the panel's query for a page of metrics. It returns the value of each line of
// the panel; the keys are the lines' labels.
func (p panel) lines(t *testing.T, page string) map[string]float64 {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	found, err := parser.TextToMetricFamilies(strings.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	sums := make(map[string]float64)
	for _, m := range found[p.metric].GetMetric() {
		if slices.ContainsFunc(p.matchers, func(matcher []string) bool { return !matches(m, matcher[1], matcher[2], matcher[3]) }) {
			continue
		}
		var name []string
		for _, label := range p.by {
			name = append(name, labelOf(m, label))
		}
		sums[strings.Join(name, ", ")] += m.GetCounter().GetValue()
	}
	return sums
}

func labelOf(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

// matches reports whether a label of a series satisfies a matcher. The dashboard's variable
// $instance matches all instances.
func matches(m *dto.Metric, label, operator, value string) bool {
	got := labelOf(m, label)
	pattern := regexp.MustCompile("^(" + strings.ReplaceAll(value, "$instance", ".*") + ")$")
	switch operator {
	case "=":
		return got == value
	case "!=":
		return got != value
	case "=~":
		return pattern.MatchString(got)
	}
	return !pattern.MatchString(got)
}

// The dashboard counts all denied and allowed connections, both those that the agent
// answered and those that the kernel's flow cache answered.
func TestPanelsCountEveryVerdictOnPackets(t *testing.T) {
	const connections = 20
	for _, args := range [][]string{kernelArgs(), {"--kernel-cache", "off"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			s := newTestbed(t)
			s.write("policies.yaml", policies(webToDNS))
			s.start(args...)
			for title, from := range map[string]string{"Denied": "default/other", "Allowed": "default/web"} {
				p := readPanel(t, title)
				count := func() (sum float64, lines map[string]float64) {
					status, page := s.scrape(t, "/metrics")
					if status != http.StatusOK {
						t.Fatalf("/metrics: %d", status)
					}
					lines = p.lines(t, page)
					for _, n := range lines {
						sum += n
					}
					return sum, lines
				}
				before, _ := count()
				// Datagrams are not repeated, and each has a new port, so each is one
				// connection.
				for range connections {
					conn, err := s.host(from).DialUDP(netip.AddrPortFrom(s.host("default/db").IPv4, 53))
					if err != nil {
						t.Fatal(err)
					}
					defer conn.Close() // all sockets stay open, so that their ports differ
					send(t, conn)
				}
				for end := time.Now().Add(waitTimeout); ; time.Sleep(time.Millisecond) {
					now, lines := count()
					if now == before+connections {
						break
					}
					if now > before+connections || time.Now().After(end) {
						t.Fatalf("%s: the panel counts %v of %d connections: %v", title, now-before, connections, lines)
					}
				}
			}
		})
	}
}
