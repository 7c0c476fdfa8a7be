// Package result holds the measurements of the benchmark harness, and formats them as JSON,
// tables for a terminal, a page in Markdown, a report in HTML, and a comparison of two
// results.
//
// A result is a flat list of series. A series is one figure of one contender under one load
// on one size of cluster, with a value for each round. So new figures do not change the
// format.
package result

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"time"

	"sluice/bench/stats"
)

// format is the version of the format of results. It changes only if older results can no
// longer be read.
const format = 1

// Result is one run of the harness.
type Result struct {
	Format  int               `json:"format"`
	Made    time.Time         `json:"made"`
	Took    Seconds           `json:"took_seconds"`
	Machine Machine           `json:"machine"`
	Options map[string]string `json:"options"`
	Rows    []Row             `json:"rows"`
	Loads   []Load            `json:"loads"`
	Series  []Series          `json:"series"`
	Aims    []Aim             `json:"aims,omitempty"`
	// Notes are remarks for the reader, such as which rows were left out and why.
	Notes []string `json:"notes,omitempty"`
}

// Seconds is a duration in a result.
type Seconds float64

// Machine is the machine of the measurement.
type Machine struct {
	Kernel   string `json:"kernel"`
	CPU      string `json:"cpu"`
	Cores    int    `json:"cores"`
	Memory   int64  `json:"memory_bytes"`
	Go       string `json:"go"`
	Sluice   string `json:"sluice"`
	Iptables string `json:"iptables"`
}

// Row is a contender.
type Row struct {
	Name  string `json:"name"`
	Label string `json:"label"`
	// Against is the name of the reference row: Ratios divides the values of this row by those
	// of the reference row. It is empty for a row without ratios.
	Against string `json:"against,omitempty"`
	About   string `json:"about"`
}

// Load is a kind of traffic or event under which contenders are measured.
type Load struct {
	Name  string `json:"name"`
	Label string `json:"label"`
}

// Scenario is a size of cluster.
type Scenario struct {
	Pods       int `json:"pods"`
	Policies   int `json:"policies"`
	Namespaces int `json:"namespaces"`
}

// String returns the size in words.
func (s Scenario) String() string {
	text := fmt.Sprintf("%s pods, %s policies, ", group(strconv.Itoa(s.Pods)), group(strconv.Itoa(s.Policies)))
	if s.Policies == 1 {
		text = fmt.Sprintf("%s pods, 1 policy, ", group(strconv.Itoa(s.Pods)))
	}
	if s.Namespaces == 1 {
		return text + "one namespace"
	}
	return text + strconv.Itoa(s.Namespaces) + " namespaces"
}

// Values of Metric.Better: whether more or less is better. Better is empty for figures that
// only explain other figures.
const (
	More = "more"
	Less = "less"
)

// Metric is the name and unit of a figure.
type Metric struct {
	Name   string `json:"metric"`
	Unit   string `json:"unit"`
	Better string `json:"better,omitempty"`
}

// Key identifies a series.
type Key struct {
	Scenario `json:"scenario"`
	Row      string `json:"row"`
	Load     string `json:"load"`
	Metric
}

// Aim is a bound for a figure, and the measured value.
type Aim struct {
	Scenario `json:"scenario"`
	Row      string  `json:"row"`
	Load     string  `json:"load"`
	Label    string  `json:"label"`
	Want     float64 `json:"want"` // the bound for Got: a lower bound if Better is More, an upper bound if it is Less
	Better   string  `json:"better"`
	Got      float64 `json:"got"`
	Low      float64 `json:"low"` // lowest value of the rounds
	High     float64 `json:"high"`
	Missed   bool    `json:"missed"`
}

// Series is a figure with its values, one for each round.
type Series struct {
	Key
	Values []float64 `json:"values"`
}

// Add adds the value of a round.
func (r *Result) Add(k Key, value float64) {
	for i := range r.Series {
		if r.Series[i].Key == k {
			r.Series[i].Values = append(r.Series[i].Values, value)
			return
		}
	}
	r.Series = append(r.Series, Series{k, []float64{value}})
}

// Values returns the values of a series; nil if the series does not exist.
func (r *Result) Values(k Key) []float64 {
	for _, s := range r.Series {
		if s.Key == k {
			return s.Values
		}
	}
	return nil
}

// Ratios returns, for each round, the value of a series divided by the reference row's value
// of the same figure. It returns nil if the row has no reference row, or if the reference row
// lacks the figure.
func (r *Result) Ratios(s Series) []float64 {
	i := slices.IndexFunc(r.Rows, func(row Row) bool { return row.Name == s.Row })
	if i < 0 || r.Rows[i].Against == "" {
		return nil
	}
	k := s.Key
	k.Row = r.Rows[i].Against
	return stats.Ratios(s.Values, r.Values(k))
}

// Scenarios returns the measured sizes of cluster, in the order of the measurement.
func (r *Result) Scenarios() (all []Scenario) {
	for _, s := range r.Series {
		if !slices.Contains(all, s.Scenario) {
			all = append(all, s.Scenario)
		}
	}
	return all
}

// Write writes the result as JSON.
func (r *Result) Write(w io.Writer) error {
	r.Format = format
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	if err := e.Encode(r); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

// ReadFile reads the output of Write.
func ReadFile(name string) (*Result, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read a result: %w", err)
	}
	r := new(Result)
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("read a result: %s: %w", name, err)
	}
	if r.Format != format {
		return nil, fmt.Errorf("read a result: %s has format %d, this program reads %d: measure again", name, r.Format, format)
	}
	return r, nil
}

// Note adds a note.
func (r *Result) Note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}
