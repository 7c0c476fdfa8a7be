package main

import (
	"encoding/xml"
	"fmt"
	"os"
)

// The types below are the elements of JUnit's XML that CI tools read. Each file of tests is a
// suite.
type junitSuites struct {
	XMLName xml.Name     `xml:"testsuites"`
	Name    string       `xml:"name,attr"`
	Tests   int          `xml:"tests,attr"`
	Failed  int          `xml:"failures,attr"`
	Errors  int          `xml:"errors,attr"`
	Suites  []junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name   string      `xml:"name,attr"`
	Tests  int         `xml:"tests,attr"`
	Failed int         `xml:"failures,attr"`
	Errors int         `xml:"errors,attr"`
	Cases  []junitCase `xml:"testcase"`
}

type junitCase struct {
	Name    string      `xml:"name,attr"`
	Class   string      `xml:"classname,attr"`
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
	for i := range files {
		report.Suites = append(report.Suites, newJUnitSuite(&files[i]))
	}
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
	s := junitSuite{Name: f.path, Tests: sum.tests(), Failed: sum.failed, Errors: sum.errors}
	for i := range f.results {
		r := &f.results[i]
		c := junitCase{Name: r.Test.Name, Class: f.path}
		switch {
		case r.Err != nil:
			c.Error = &junitFault{r.Err.Error(), resultText(r)}
		case !r.Passed():
			c.Failure = &junitFault{r.Failures[0].Detail, resultText(r)}
		}
		s.Cases = append(s.Cases, c)
	}
	if f.err != nil {
		s.Cases = append(s.Cases, junitCase{Name: "the file and its manifests", Class: f.path, Error: &junitFault{"they cannot be relied on", f.err.Error()}})
	}
	return s
}
