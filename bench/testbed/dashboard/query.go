package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"sluice/bench/testbed/lab"
	"sluice/bench/testbed/prometheus"
)

// scrapeInterval is shorter than in a cluster, so that a few minutes have enough samples.
const scrapeInterval = time.Second

// points is the number of values of a series.
const points = 240

// dashboard is the part of a Grafana dashboard that is drawn.
type dashboard struct {
	Title  string `json:"title"`
	Panels []struct {
		Title       string         `json:"title"`
		Type        string         `json:"type"`
		GridPos     map[string]int `json:"gridPos"`
		Targets     []target       `json:"targets"`
		FieldConfig struct {
			Defaults struct {
				Unit string `json:"unit"`
			} `json:"defaults"`
		} `json:"fieldConfig"`
	} `json:"panels"`
}

type target struct {
	Expr         string `json:"expr"`
	LegendFormat string `json:"legendFormat"`
}

func readDashboard(path string) (d dashboard, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return d, err
	}
	return d, json.Unmarshal(text, &d)
}

// record is what a page draws: a dashboard, with the answers to its queries.
type record struct {
	Title  string    `json:"title"`
	Times  []float64 `json:"times"`
	Panels []panel   `json:"panels"`
}

type panel struct {
	Title  string         `json:"title"`
	Type   string         `json:"type"`
	Grid   map[string]int `json:"grid"`
	Unit   string         `json:"unit"`
	Series []line         `json:"series"`
}

// line has a value, or null, for each of the times.
type line struct {
	Name   string     `json:"name"`
	Values []*float64 `json:"values"`
}

// server is a Prometheus on the first node.
type server struct {
	cmd    *exec.Cmd
	client http.Client
	base   string
}

const config = `
global: {scrape_interval: %s}
scrape_configs:
- job_name: sluice
  static_configs:
%s`

// startPrometheus starts a Prometheus on the first node that scrapes all agents, and waits until it
// answers.
func (s *shop) startPrometheus(ctx context.Context) (*server, error) {
	program, err := prometheus.Server(ctx, os.Stderr)
	if err != nil {
		return nil, err
	}
	var targets strings.Builder
	for _, n := range s.lab.Nodes {
		fmt.Fprintf(&targets, "  - {targets: [%q], labels: {instance: %s}}\n", netip.AddrPortFrom(n.IPv4, httpPort), n.Name)
	}
	file := filepath.Join(s.dir, "prometheus.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, config, scrapeInterval, targets.String()), 0o644); err != nil {
		return nil, err
	}
	node := s.lab.Nodes[0].Host
	p := &server{base: "http://127.0.0.1:9090/api/v1/", client: http.Client{Transport: &http.Transport{DialContext: dialer(node)}}}
	p.cmd = exec.Command(program, "--config.file", file, "--storage.tsdb.path", filepath.Join(s.dir, "tsdb"), "--web.listen-address", "127.0.0.1:9090", "--log.level", "error")
	p.cmd.Stderr = os.Stderr
	if err := node.Start(p.cmd); err != nil {
		return nil, fmt.Errorf("start prometheus: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		_, err := p.get(ctx, "query", url.Values{"query": {"count(sluice_ready == 1) == " + strconv.Itoa(len(s.lab.Nodes))}})
		if err == nil {
			return p, nil
		}
		select {
		case <-ctx.Done():
			p.stop()
			return nil, fmt.Errorf("wait until prometheus has scraped all agents: %w", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// dialer returns a function that dials in a host's network namespace.
func dialer(h *lab.Host) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, address string) (net.Conn, error) {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return nil, err
		}
		return h.DialTCP(ctx, to)
	}
}

func (p *server) stop() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait() // it was killed
}

// result is a series in an answer.
type result struct {
	Metric map[string]string `json:"metric"`
	Values [][2]any          `json:"values"`
}

// get sends a query to the API of Prometheus. It returns errEmpty if the answer has no series.
func (p *server) get(ctx context.Context, path string, query url.Values) ([]result, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.base+path+"?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	response, err := p.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Status, Error string
		Data          struct{ Result []result }
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return nil, fmt.Errorf("%s: %w", text, err)
	}
	if answer.Status != "success" {
		return nil, errors.New(answer.Error)
	}
	if len(answer.Data.Result) == 0 {
		return nil, errEmpty
	}
	return answer.Data.Result, nil
}

var errEmpty = errors.New("the answer is empty")

// answer asks the queries of all panels about the time between from and to.
func (p *server) answer(ctx context.Context, d dashboard, from, to time.Time) (*record, error) {
	step := to.Sub(from) / points
	r := &record{Title: d.Title}
	for i := range points {
		r.Times = append(r.Times, float64(from.Add(time.Duration(i+1)*step).UnixMilli())/1000)
	}
	for _, in := range d.Panels {
		out := panel{Title: in.Title, Type: in.Type, Grid: in.GridPos, Unit: in.FieldConfig.Defaults.Unit}
		for _, t := range in.Targets {
			found, err := p.get(ctx, "query_range", url.Values{
				"query": {expand(t.Expr, step)}, "start": {fmt.Sprint(r.Times[0])}, "end": {fmt.Sprint(r.Times[points-1])}, "step": {fmt.Sprint(step.Seconds())},
			})
			if err != nil && !errors.Is(err, errEmpty) {
				return nil, fmt.Errorf("panel %s: %s: %w", in.Title, t.Expr, err)
			}
			for _, series := range found {
				out.Series = append(out.Series, lineOf(series, t.LegendFormat, r.Times[0], step))
			}
		}
		r.Panels = append(r.Panels, out)
	}
	return r, nil
}

// expand replaces the variables of Grafana in a query. It selects all instances. The interval of rates is
// the one that Grafana computes, but at least 15 s, so that lines are smooth.
func expand(expr string, step time.Duration) string {
	interval := max(4*scrapeInterval, step+scrapeInterval, 15*time.Second)
	return strings.NewReplacer("$instance", ".*", "$__rate_interval", interval.String()).Replace(expr)
}

// placeholder matches a label in a legend, as in "{{instance}}".
var placeholder = regexp.MustCompile(`\{\{\w+\}\}`)

// lineOf returns the line of a series. first is the time of its first point.
func lineOf(s result, legend string, first float64, step time.Duration) line {
	l := line{Name: legend, Values: make([]*float64, points)}
	for name, value := range s.Metric {
		l.Name = strings.ReplaceAll(l.Name, "{{"+name+"}}", value)
	}
	l.Name = strings.Join(strings.Fields(placeholder.ReplaceAllString(l.Name, "")), " ") // an empty label is not in the answer
	for _, v := range s.Values {
		at, _ := v[0].(float64)
		text, _ := v[1].(string)
		i := int((at-first)/step.Seconds() + 0.5)
		if value, err := strconv.ParseFloat(text, 64); err == nil && !math.IsNaN(value) && !math.IsInf(value, 0) && i >= 0 && i < points {
			l.Values[i] = &value
		}
	}
	return l
}
