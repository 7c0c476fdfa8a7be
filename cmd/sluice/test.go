package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"sluice/filter/policy/expect"
	"sluice/watch/manifests"
)

type testOptions struct {
	input
	format, junit     string
	verbose, coverage bool
}

func testCommand(e env) *cobra.Command {
	opts := testOptions{format: "text"}
	cmd := &cobra.Command{
		Use:   "test FILE...",
		Short: "Test policies against expectations",
		Long: `Test compares policies with expectations, by the same decision that judges packets. A
file (- is the standard input) names the manifests, relative to itself, and the expectations:

  manifests: [./deploy]
  tests:
  - name: the frontend reaches the database
    from: shop/web
    to: db.shop.svc
    port: 5432
    expect: allow
  - name: only the payment service reaches pci
    from: {not: shop/pay}
    to: {namespace: pci}
    port: [8443, 53/udp]
    expect: deny
    policy: pci/default-deny

from and to are ends as for explain: pods and workloads (shop/web, deploy/web), labels
(app=web, shop/app=web), Services, addresses, ranges, nodes, ns/shop for all pods of a
namespace, and world. An end can also be an object:

  {namespace: shop, labels: {app: pay}}  pods by labels; namespace "*" is every namespace
  {namespace: shop}                      all pods of a namespace
  {not: shop/pay}                        all but this: all other pods, the nodes (also for
                                         pods of the host network), and all addresses outside
  {namespace: shop, not: [pay, web]}     all pods of a namespace but these

port is a number or the name of a port of the destination. Each may be a list: the
expectation is for every combination, for all pods that an end has, and for both families of
dual-stack pods. Of several ends, those flows are left out about which policies do not
decide: from a pod to itself and, with "not", between a pod and its own node.
protocol is TCP, UDP, SCTP or ICMP, by default TCP. policy is optional. It must be the
reason: one of its rules allows or denies the flow, or it is among the policies that
isolate the end that denies. A ClusterNetworkPolicy is written with its tier, as in
admin/platform. nodeIPs, beside manifests, are the addresses of the node of the pods.

A workload in Git has no address. If a verdict depends on it, the test is an error, which
names the range that settles it: write it to podCIDRs, beside manifests, or give --pod-cidr.

With -f, --kubeconfig or --context, the tests are about those objects instead of the
manifests of the files, which may be missing then; with both, about the cluster as if -f were
applied to it. --coverage lists the policies and rules that no test touches: that neither
isolate an end of a flow nor match it.

Flows that differ from the expectation are explained. The exit status is 1 if a test
failed, and 2 if a test could not run, or if parts of the manifests cannot be understood.
Objects of other kinds that may change what is allowed, such as policies of Calico or
Cilium, are named ("not read") and do not change the status.`,
		Example: `  sluice test policies_test.yaml
  sluice test -v --coverage --junit report.xml tests/*.yaml
  sluice test --context production policies_test.yaml
  sluice test --context production -f ./policies policies_test.yaml`,
		Args: testArgs,
		RunE: func(cmd *cobra.Command, files []string) error { return runTests(cmd.Context(), e, opts, files) },
	}
	flags := cmd.Flags()
	addInputFlags(cmd, &opts.input)
	addNamespaceFlag(cmd, &opts.input)
	flags.StringVar(&opts.junit, "junit", "", "also write a report in JUnit's XML to this `FILE`")
	flags.BoolVarP(&opts.verbose, "verbose", "v", false, "also print the tests that pass")
	flags.BoolVar(&opts.coverage, "coverage", false, "also print which policies and rules no test touches")
	flags.VarP(newChoiceFlag(&opts.format, "text", "json"), "output", "o", "text or json")
	return cmd
}

// testArgs checks the number of the arguments.
func testArgs(_ *cobra.Command, args []string) error {
	twice := slices.Index(args, manifests.Stdin)
	switch {
	case len(args) == 0:
		return errors.New("give one or more files of tests, as in: sluice test policies_test.yaml")
	case twice >= 0 && slices.Contains(args[twice+1:], manifests.Stdin):
		return errors.New("the argument - is given twice, and the standard input can be read only once")
	}
	return nil
}

// testedFile is a file of tests and its results.
type testedFile struct {
	path    string
	file    *expect.File // nil if the file cannot be read
	start   time.Time
	results []testResult
	notRead []manifests.NotRead
	err     error // the reason why the tests could not run, or why their results are not reliable
}

// testResult is the result of a test, and how long the test took.
type testResult struct {
	expect.Result
	took time.Duration
}

func runTests(ctx context.Context, e env, opts testOptions, paths []string) error {
	if slices.Contains(paths, manifests.Stdin) && slices.Contains(opts.paths, manifests.Stdin) {
		return errors.New("-f - and the argument - both read the standard input: give a file to one of them")
	}
	files := make([]testedFile, len(paths))
	for i, path := range paths {
		files[i].path = path
		if path == manifests.Stdin {
			files[i].path = manifests.StdinName
		}
		files[i].file, files[i].err = parseTests(path, e.stdin)
	}
	run := testRun{env: e, testOptions: opts}
	if opts.coverage {
		run.covered = &expect.Coverage{}
	}
	if err := run.readShared(ctx, files); err != nil {
		return err
	}
	for i := range files {
		if err := run.file(ctx, &files[i]); err != nil {
			return fmt.Errorf("write the results: %w", err)
		}
	}
	sum := sumOf(files)
	if err := run.finish(files, sum); err != nil {
		return fmt.Errorf("write the results: %w", err)
	}
	if opts.junit != "" {
		if err := writeJUnit(opts.junit, files); err != nil {
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

// parseTests parses a file of tests, or the standard input.
func parseTests(path string, stdin io.Reader) (*expect.File, error) {
	if path == manifests.Stdin {
		data, err := io.ReadAll(stdin)
		if err != nil {
			return nil, fmt.Errorf("read tests: %w", err)
		}
		return expect.Parse(data)
	}
	data, err := os.ReadFile(path)
	var wrong *os.PathError
	switch {
	case errors.Is(err, syscall.EISDIR):
		return nil, fmt.Errorf("it is a directory: give the files in it, as in %s", filepath.Join(path, "*.yaml"))
	case errors.As(err, &wrong):
		return nil, fmt.Errorf("read tests: %w", wrong.Err) // the message begins with the name of the file
	case err != nil:
		return nil, fmt.Errorf("read tests: %w", err)
	}
	return expect.Parse(data)
}

// testRun is one run of the command.
type testRun struct {
	env
	testOptions
	covered *expect.Coverage // nil unless coverage is asked for
	shared  *loaded          // objects that the flags select; nil if the files of tests name the manifests
	told    bool             // the problems of the shared objects have been printed
}

// readShared reads the objects that the flags select, if there are such flags.
func (r *testRun) readShared(ctx context.Context, files []testedFile) error {
	if len(r.paths) == 0 && !r.cluster.given() {
		return nil
	}
	for i := range files {
		if files[i].file != nil {
			r.mentioned = append(r.mentioned, files[i].file.Namespaces()...)
		}
	}
	l, err := r.read(ctx, r.stdin)
	r.shared = &l
	return err
}

// file runs the tests of a file, and prints their results if the format is text. It returns only errors
// of printing.
func (r *testRun) file(ctx context.Context, f *testedFile) error {
	f.start = time.Now()
	if f.err == nil {
		f.err = r.tests(ctx, f)
	}
	for i := range f.results {
		if r.format != "text" {
			break
		}
		if err := printResult(r.stdout, f.path, &f.results[i].Result, r.verbose); err != nil {
			return err
		}
	}
	if f.err != nil {
		for line := range strings.SplitSeq(f.err.Error(), "\n") {
			r.say("%s: %s", f.path, line)
		}
	}
	return nil
}

// tests runs the tests of a file, and sets its results. It returns an error, in addition to the
// results, if the manifests could be understood only in part.
func (r *testRun) tests(ctx context.Context, f *testedFile) error {
	m, err := r.compile(ctx, f)
	if err != nil {
		return err
	}
	c := &expect.Cluster{Inventory: m.inventory, Explain: m.cluster(), Namespace: m.namespace, Coverage: r.covered}
	if r.covered != nil {
		r.covered.Add(m.Policies)
	}
	for i := range f.file.Tests {
		start := time.Now()
		result := f.file.Tests[i].Run(c)
		f.results = append(f.results, testResult{result, time.Since(start)})
	}
	f.notRead = m.NotRead
	to := r.env
	if r.told {
		to.stderr = io.Discard
	}
	r.told = r.shared != nil
	return m.report(to, "the tests")
}

// compile reads and compiles the objects of a file of tests.
func (r *testRun) compile(ctx context.Context, f *testedFile) (*compiled, error) {
	var l loaded
	if r.shared != nil {
		l = *r.shared
	} else {
		in := r.input
		for _, dir := range f.file.Manifests {
			if !filepath.IsAbs(dir) {
				dir = filepath.Join(filepath.Dir(f.path), dir)
			}
			in.paths = append(in.paths, dir)
		}
		if len(in.paths) == 0 {
			return nil, errors.New("manifests: it is missing: write the directories or files of the policies, relative to this file, or give -f DIR or --context NAME")
		}
		var err error
		if l, err = in.read(ctx, r.stdin); err != nil {
			return nil, err
		}
	}
	l.podRanges = slices.Concat(l.podRanges, f.file.PodRanges)
	return compile(f.file.NodeIPs, l), nil
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
		switch r := &f.results[i].Result; {
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
