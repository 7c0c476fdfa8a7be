package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"sluice/filter/policy/expect"
	"sluice/filter/policy/explain"
	"sluice/filter/policy/near"
	"sluice/watch/manifests"
)

// For a failed test, maxShown bounds the flows with explanations, and maxNamed the flows that are only
// named.
const (
	maxShown = 3
	maxNamed = 8
)

// finish prints the end of the output, after the results of all files.
func (r *testRun) finish(files []testedFile, sum tally) error {
	var coverage *expect.CoverageReport
	if r.covered != nil {
		report := r.covered.Report()
		coverage = &report
	}
	if r.format == "json" {
		return writeTestReport(r.stdout, files, sum, coverage)
	}
	text := sum.String() + "\n"
	if coverage != nil {
		text = coverage.Text() + text
	}
	_, err := io.WriteString(r.stdout, text)
	return err
}

// testReport is the JSON form of the results.
type testReport struct {
	Passed   int                    `json:"passed"`
	Failed   int                    `json:"failed"`
	Errors   int                    `json:"errors"`
	Files    []fileReport           `json:"files"`
	Coverage *expect.CoverageReport `json:"coverage,omitempty"`
}

type fileReport struct {
	File    string              `json:"file"`
	Tests   []caseReport        `json:"tests"`
	Error   string              `json:"error,omitempty"` // why the tests could not run, or why their results are not reliable
	NotRead []manifests.NotRead `json:"notRead,omitempty"`
}

type caseReport struct {
	Name     string          `json:"name"`
	Result   string          `json:"result"` // "passed", "failed" or "error"
	Flows    int             `json:"flows"`  // number of decided flows
	Seconds  float64         `json:"seconds"`
	Failures []failureReport `json:"failures,omitempty"`
	Error    string          `json:"error,omitempty"`
}

type failureReport struct {
	Detail   string `json:"detail"`
	From     string `json:"from"`
	To       string `json:"to"`
	Port     uint16 `json:"port,omitempty"`
	Protocol string `json:"protocol"`
	Verdict  string `json:"verdict"`
	Why      string `json:"why"`
	// Answer has the form of explain's JSON. Only the first failures of a test have it.
	Answer *explain.Answer `json:"answer,omitempty"`
}

func writeTestReport(out io.Writer, files []testedFile, sum tally, coverage *expect.CoverageReport) error {
	report := testReport{Passed: sum.passed, Failed: sum.failed, Errors: sum.errors, Files: []fileReport{}, Coverage: coverage}
	for i := range files {
		f := fileReport{File: files[i].path, Tests: []caseReport{}, NotRead: files[i].notRead}
		for j := range files[i].results {
			f.Tests = append(f.Tests, newCaseReport(&files[i].results[j]))
		}
		if files[i].err != nil {
			f.Error = files[i].err.Error()
		}
		report.Files = append(report.Files, f)
	}
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(report)
}

func newCaseReport(r *testResult) caseReport {
	c := caseReport{Name: r.Test.Name, Result: "failed", Flows: r.Flows, Seconds: r.took.Seconds()}
	switch {
	case r.Err != nil:
		c.Result, c.Error = "error", r.Err.Error()
	case r.Passed():
		c.Result = "passed"
	}
	for _, f := range r.Failures {
		failure := failureReport{
			Detail: f.Detail, From: f.Flow.From.Name, To: f.Flow.To.Name, Port: f.Flow.Key.Port,
			Protocol: f.Flow.Key.Protocol.String(), Verdict: f.Verdict.Action.String(), Why: explain.Why(f.Verdict, f.Flow.From.Pod != nil),
		}
		if len(f.Explanations) > 0 {
			answer := explain.NewAnswer(explain.Question{From: failure.From, To: failure.To}, f.Explanations)
			failure.Answer = &answer
		}
		c.Failures = append(c.Failures, failure)
	}
	return c
}

// printResult prints the result of a test, with the reasons unless it passed. It prints
// passed tests only if the parameter "verbose" is set.
func printResult(out io.Writer, path string, r *expect.Result, verbose bool) error {
	word := "FAIL "
	switch {
	case r.Err != nil:
		word = "ERROR"
	case r.Passed() && !verbose:
		return nil
	case r.Passed():
		word = "ok   "
	}
	_, err := fmt.Fprintf(out, "%s %s: %s\n%s", word, path, r.Test.Name, indent(resultText(r)))
	return err
}

// resultText returns the reasons why a test did not pass; empty if it passed.
func resultText(r *expect.Result) string {
	var b strings.Builder
	for i, f := range r.Failures {
		if i == maxShown {
			fmt.Fprintf(&b, "and %s not as expected: %s\n", count(len(r.Failures)-i, "other flow", "other flows"), flowNames(r.Failures[i:]))
			break
		}
		fmt.Fprintf(&b, "%s\n%s", f.Detail, explain.Text(f.Explanations))
	}
	if r.Err != nil {
		fmt.Fprintln(&b, r.Err)
	}
	return b.String()
}

func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("      " + line)
	}
	return b.String()
}

func flowNames(failures []expect.Failure) string {
	names := make([]string, len(failures))
	for i, f := range failures {
		names[i] = fmt.Sprintf("%s to %s, %s", f.Flow.From.Name, f.Flow.To.Name, f.Flow.Key.Protocol)
		if f.Flow.Key.Protocol.HasPorts() {
			names[i] += fmt.Sprintf(" %d", f.Flow.Key.Port)
		}
	}
	return near.List(names, maxNamed, "; ")
}
