package main

import (
	"encoding/xml"
	"fmt"
	"os"
	"time"

	"sluice/watch/manifests"
)

// The types below are the elements of JUnit's XML that CI tools read. Each file of tests is a
// suite.
type junitSuites struct {
	XMLName xml.Name     `xml:"testsuites"`
	Name    string       `xml:"name,attr"`
	Tests   int          `xml:"tests,attr"`
	Failed  int          `xml:"failures,attr"`
	Errors  int          `xml:"errors,attr"`
	Time    string       `xml:"time,attr"` // in seconds
	Suites  []junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name   string      `xml:"name,attr"`
	Tests  int         `xml:"tests,attr"`
	Failed int         `xml:"failures,attr"`
	Errors int         `xml:"errors,attr"`
	File   string      `xml:"file,attr"`
	Time   string      `xml:"time,attr"`      // in seconds
	Start  string      `xml:"timestamp,attr"` // as in ISO 8601, in UTC
	Cases  []junitCase `xml:"testcase"`
	Err    string      `xml:"system-err,omitempty"` // the kinds of objects that were not read
}

type junitCase struct {
	Name    string      `xml:"name,attr"`
	Class   string      `xml:"classname,attr"`
	File    string      `xml:"file,attr"`
	Time    string      `xml:"time,attr"` // in seconds
	Failure *junitFault `xml:"failure"`
	Error   *junitFault `xml:"error"`
}

type junitFault struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",cdata"`
}

func writeJUnit(path string, files []testedFile) error {
	sum := sumOf(files)
	report := junitSuites{Name: "sluice", Tests: sum.tests(), Failed: sum.failed, Errors: sum.errors}
	var took time.Duration
	for i := range files {
		took += files[i].took()
		report.Suites = append(report.Suites, newJUnitSuite(&files[i]))
	}
	report.Time = seconds(took)
	text, err := xml.MarshalIndent(report, "", "  ")
	if err != nil {
		return fmt.Errorf("write the JUnit report: %w", err)
	}
	text = append([]byte(xml.Header), append(text, '\n')...)
	if err := os.WriteFile(path, text, 0o644); err != nil {
		return fmt.Errorf("write the JUnit report: %w", err)
	}
	return nil
}

func newJUnitSuite(f *testedFile) junitSuite {
	var sum tally
	sum.add(f)
	s := junitSuite{
		Name: f.path, Tests: sum.tests(), Failed: sum.failed, Errors: sum.errors,
		File: fromHere(f.path), Time: seconds(f.took()), Start: f.start.UTC().Format("2006-01-02T15:04:05"),
	}
	for i := range f.results {
		r := &f.results[i].Result
		c := junitCase{Name: r.Test.Name, Class: f.path, File: fromHere(f.path), Time: seconds(f.results[i].took)}
		switch {
		case r.Err != nil:
			c.Error = &junitFault{r.Err.Error(), resultText(r)}
		case !r.Passed():
			c.Failure = &junitFault{r.Failures[0].Detail, resultText(r)}
		}
		s.Cases = append(s.Cases, c)
	}
	if f.err != nil {
		s.Cases = append(s.Cases, junitCase{Name: "the file and its manifests", Class: f.path, File: fromHere(f.path), Time: seconds(0), Error: &junitFault{"they cannot be relied on", f.err.Error()}})
	}
	for _, line := range manifests.LinesOf(f.notRead) {
		s.Err += "not read: " + line + "\n"
	}
	return s
}

// took returns how long the tests of the file took.
func (f *testedFile) took() (sum time.Duration) {
	for i := range f.results {
		sum += f.results[i].took
	}
	return sum
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.6f", d.Seconds()) }
