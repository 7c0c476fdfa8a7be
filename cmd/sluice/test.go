package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"sluice/filter/policy/expect"
	"sluice/filter/policy/explain"
)

// maxShown bounds the number of flows that are explained for a failed test.
const maxShown = 3

func testCommand(e env) *cobra.Command {
	var junit string
	var verbose bool
	cmd := &cobra.Command{
		Use:   "test FILE...",
		Short: "Test policies against expectations",
		Long: `Test compares policies with expectations, by the same decision that judges packets. A
file names the manifests, relative to itself, and the expectations:

  manifests: [./policies]
  tests:
  - name: the frontend reaches the database
    from: default/web
    to: default/db
    port: 6379
    expect: allow
  - name: no other pod does, on any port
    from: [default/job, 203.0.113.9]
    to: default/db
    port: [6379, 80]
    expect: deny
    policy: default/access-demo1

from and to are pods (namespace/name, or name in namespace default) or IP addresses;
port is a number or the name of a port of the destination. Each may be a list: the
expectation is for every combination, and for both families of dual-stack pods.
protocol is TCP, UDP, SCTP or ICMP, by default TCP. policy is optional. It must be the
reason: one of its rules allows or denies the flow, or it is among the policies that
isolate the end that denies. A ClusterNetworkPolicy is written with its tier, as in
admin/platform. nodeIPs, beside manifests, are the addresses of the node of the pods.

Flows that differ from the expectation are explained. The exit status is 1 if a test
failed, and 2 if a test could not run, or if parts of the manifests cannot be understood.
Objects of other kinds that may change what is allowed, such as policies of Calico or
Cilium, are named ("not read") and do not change the status.`,
		Example: `  sluice test policies_test.yaml
  sluice test -v --junit report.xml tests/*.yaml`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("give one or more files of tests, as in: sluice test policies_test.yaml")
			}
			return nil
		},
		RunE: func(_ *cobra.Command, files []string) error { return runTests(e, files, junit, verbose) },
	}
	cmd.Flags().StringVar(&junit, "junit", "", "also write a report in JUnit's XML to this `FILE`")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "also print the tests that pass")
	return cmd
}

// testedFile is a file of tests and its results.
type testedFile struct {
	path    string
	results []expect.Result
	err     error // the reason why the tests could not run, or why their results are not reliable
}

func runTests(e env, paths []string, junit string, verbose bool) error {
	var files []testedFile
	for _, path := range paths {
		f := testedFile{path: path}
		f.results, f.err = runTestFile(e, path)
		for i := range f.results {
			if err := printResult(e.stdout, path, &f.results[i], verbose); err != nil {
				return fmt.Errorf("write the results: %w", err)
			}
		}
		if f.err != nil {
			fmt.Fprintf(e.stderr, "sluice: %s: %s\n", path, strings.ReplaceAll(f.err.Error(), "\n", "\nsluice: "+path+": "))
		}
		files = append(files, f)
	}
	sum := sumOf(files)
	if _, err := fmt.Fprintln(e.stdout, sum); err != nil {
		return fmt.Errorf("write the results: %w", err)
	}
	if junit != "" {
		if err := writeJUnit(junit, files); err != nil {
			return err
		}
	}
	switch {
	case sum.errors > 0:
		return exitError{status: exitFailed}
	case sum.failed > 0:
		return exitError{status: exitFindings}
	}
	return nil
}

// runTestFile runs the tests of a file. If the manifests could be understood only in part, it
// returns both results and an error.
func runTestFile(e env, path string) ([]expect.Result, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read tests: %w", err)
	}
	f, err := expect.Parse(data)
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, dir := range f.Manifests {
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(filepath.Dir(path), dir)
		}
		dirs = append(dirs, dir)
	}
	m, err := readManifests(f.NodeIPs, dirs...)
	if err != nil {
		return nil, err
	}
	c := m.cluster()
	var results []expect.Result
	for i := range f.Tests {
		results = append(results, f.Tests[i].Run(c))
	}
	return results, m.report(e, "the tests")
}

// tally counts tests. A file that could not run counts as one error.
type tally struct{ passed, failed, errors int }

func (t tally) tests() int { return t.passed + t.failed + t.errors }

func (t tally) String() string {
	text := fmt.Sprintf("%d passed, %d failed", t.passed, t.failed)
	if t.errors > 0 {
		text += ", " + count(t.errors, "error", "errors")
	}
	return text
}

func (t *tally) add(f *testedFile) {
	for i := range f.results {
		switch r := &f.results[i]; {
		case r.Err != nil:
			t.errors++
		case r.Passed():
			t.passed++
		default:
			t.failed++
		}
	}
	if f.err != nil {
		t.errors++
	}
}

func sumOf(files []testedFile) tally {
	var t tally
	for i := range files {
		t.add(&files[i])
	}
	return t
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
			fmt.Fprintf(&b, "and %s not as expected\n", count(len(r.Failures)-i, "other flow", "other flows"))
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
