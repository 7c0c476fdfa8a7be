package main

import (
	"math"

	"sluice/bench/result"
	"sluice/bench/stats"
)

// aim is a bound for a figure of some rows under some loads.
type aim struct {
	label  string
	rows   []string
	loads  []string
	metric result.Metric
	// against is the name of another row: in each round, the figure is divided by the figure of
	// that row. An empty string stands for the reference row of the figure's row. If the name
	// is noReference, the figure is not divided.
	against string
	want    float64
	better  string
	at      float64 // quantile of the values that must meet the aim; 0 means the median
}

// noReference is the value of aim.against for an aim that bounds the figure itself, not a ratio.
const noReference = "-"

// aims bound the cost of enforcement. Most of them bound the ratio of two figures of the same
// run, because absolute figures differ from machine to machine. The exceptions are the number
// of dropped packets, and the time until a policy is in force for new connections.
var aims = []aim{
	{label: "connections/s, never-seen keys", rows: []string{"fresh"}, loads: []string{"tcp-16", "tcp-64"}, metric: connections, want: 0.90, better: result.More},
	{label: "connections/s, keys seen before", rows: []string{"kernel", "reject"}, loads: []string{"tcp-16", "tcp-64"}, metric: connections, want: 0.97, better: result.More},
	{label: "connections/s, ends that never talked before", rows: newEnds(), loads: []string{"tcp-1", "tcp-16", "tcp-64"}, metric: connections, want: 0.95, better: result.More},
	{label: "packets queued after the first of each kind of ends", rows: newEnds(), loads: []string{"tcp-1", "tcp-16", "tcp-64"}, metric: queuedPackets, against: noReference, better: result.Less, at: 1},
	{label: "connections neither observed nor counted as left out", rows: []string{"observed"}, loads: []string{"tcp-1", "tcp-16", "tcp-64"}, metric: unobserved, against: noReference, better: result.Less, at: 1},
	{label: "agent CPU per queued packet, of the queue that accepts everything", rows: []string{"fresh", "user"}, loads: []string{"tcp-16", "tcp-64"}, metric: agentPerCPU, against: "accept", want: 0.5, better: result.Less},
	{label: "throughput of a stream", rows: []string{"user", "kernel", "reject"}, loads: []string{"stream"}, metric: throughput, want: 0.99, better: result.More},
	{label: "connect p99 while policies change, of that without", rows: []string{"user", "kernel"}, loads: []string{"churn"}, metric: times, against: noReference, want: 1.5, better: result.Less},
	{label: "packets dropped while policies change", rows: []string{"user", "kernel"}, loads: []string{"churn"}, metric: dropped, against: noReference, better: result.Less, at: 1},
	{label: "policy written to new connections denied, ms at p99", rows: []string{"user", "kernel"}, loads: []string{"effect"}, metric: denyNew, against: noReference, want: 50, better: result.Less, at: 0.99},
	{label: "connect p99 beside a flood, of that without", rows: []string{"user", "kernel"}, loads: []string{"flood"}, metric: times, against: noReference, want: 3, better: result.Less},
}

// newEnds returns the names of the rows with an agent whose connections have ends that never talked
// before.
func newEnds() (names []string) {
	for _, r := range rows {
		if r.kind == isSluice && r.ends != fewPods {
			names = append(names, r.Name)
		}
	}
	return names
}

// checkAims compares the measurements of a scenario with the aims.
func checkAims(r *result.Result, s result.Scenario) (found []result.Aim) {
	for _, a := range aims {
		for _, row := range a.rows {
			for _, l := range a.loads {
				k := result.Key{Scenario: s, Row: row, Load: l, Metric: a.metric}
				values := r.Values(k)
				switch a.against {
				case noReference:
				case "":
					values = r.Ratios(result.Series{Key: k, Values: values})
				default:
					k.Row = a.against
					values = stats.Ratios(values, r.Values(k))
				}
				if len(values) == 0 {
					continue
				}
				at := a.at
				if at == 0 {
					at = 0.5
				}
				got := stats.Quantile(values, at)
				missed := got > a.want
				if a.better == result.More {
					missed = got < a.want
				}
				found = append(found, result.Aim{
					Scenario: s, Row: row, Load: l, Label: a.label, Want: a.want, Better: a.better,
					Got: got, Low: stats.Quantile(values, 0), High: stats.Quantile(values, 1), Missed: missed || math.IsNaN(got),
				})
			}
		}
	}
	return found
}
