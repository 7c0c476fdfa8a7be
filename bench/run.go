package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sluice/bench/result"
)

// bench is a run of the harness, with the options for what to measure, how often and how long.
type bench struct {
	env
	sluice              string
	out, html, page     string
	rowNames, loadNames []string
	sizes               []string
	vary                string
	quick               bool

	rounds, churnRounds int
	window, churn       time.Duration

	scenarios []result.Scenario
	rows      []row
	variants  []row // rows of --vary
	loads     []loadSpec
	extras    map[string]bool
	progress  *progress
}

// Sizes of the clusters in a full run and in a quick run.
var (
	fullSizes  = []string{"10/1/1", "1000/100/1", "1000/100/100", "10000/1000/1", "10000/1000/100"}
	quickSizes = []string{"1000/100/100"}
)

func runCommand(e env) *cobra.Command {
	b := &bench{env: e}
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Measure all contenders in turn, on network namespaces of this machine",
		Long: `Run makes a node of network namespaces for each contender, runs the same loads on
all of them alternately, round after round, and prints tables with ratios to a node
without an agent. It needs root, and leaves nothing behind, also when it is
interrupted.

--quick ends in about three minutes and shows the orders of magnitude. To compare
two versions, measure both with the same flags and use bench compare.`,
		Example: `  bin/bench run --quick
  bin/bench run --out new.json --html new.html
  bin/bench run --rows none,kernel --loads tcp-16,tcp-64 --sizes 1000/100/1 --rounds 15
  bin/bench run --rows none --vary queues=1,2,4,8 --loads tcp-64 --sizes 1000/100/1`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return b.main(cmd.Context(), cmd.Flags()) },
	}
	f := cmd.Flags()
	f.StringVar(&b.sluice, "sluice", "bin/sluice", "the `FILE` to run as sluice")
	f.StringVar(&b.out, "out", "", "write the result as JSON to this `FILE`")
	f.StringVar(&b.html, "html", "", "write a report with charts to this `FILE`")
	f.StringVar(&b.page, "page", "", "write the result as a page in Markdown to this `FILE`")
	f.StringSliceVar(&b.rowNames, "rows", nil, "the contenders, `NAME,...` of "+strings.Join(rowNames(), ", ")+", and their reference rows; all if not given")
	f.StringSliceVar(&b.loadNames, "loads", nil, "the loads, `NAME,...`: tcp-1, tcp-16, tcp-64, udp-16, stream, start, effect, churn, flood; all if not given")
	f.StringSliceVar(&b.loadNames, "only", nil, "the same as --loads")
	f.StringSliceVar(&b.sizes, "sizes", fullSizes, "the clusters, as `PODS/POLICIES/NAMESPACES,...`")
	f.StringVar(&b.vary, "vary", "", "more rows: sluice run with each value of a flag, `FLAG=VALUE,...`, such as queues=1,2,4")
	f.IntVar(&b.rounds, "rounds", 7, "number of measurements of each")
	f.DurationVar(&b.window, "for", 1500*time.Millisecond, "duration of each measurement")
	f.DurationVar(&b.churn, "churn", 20*time.Second, "duration of the measurement while policies change, which runs three times")
	f.BoolVar(&b.quick, "quick", false, "less of everything, in three minutes: other defaults of --sizes, --rounds, --for and --churn")
	return cmd
}

// main measures and writes the requested output.
func (b *bench) main(ctx context.Context, flags *pflag.FlagSet) error {
	if err := b.prepare(ctx, flags); err != nil {
		return err
	}
	began := time.Now()
	r := &result.Result{Made: began, Options: b.options()}
	var notes []string
	var err error
	if r.Machine, err = b.machine(ctx); err != nil {
		return err
	}
	help, err := exec.CommandContext(ctx, b.sluice, "run", "--help").Output()
	if err != nil {
		return fmt.Errorf("ask %s for its flags: %w", b.sluice, err)
	}
	if b.rows, notes, err = selectRows(b.rowNames, string(help)); err != nil {
		return err
	}
	for _, v := range b.variants {
		b.rows = append(b.rows, v.known(string(help)))
	}
	r.Notes = append(r.Notes, notes...)
	for _, row := range b.rows {
		r.Rows = append(r.Rows, row.Row)
	}
	for _, l := range b.loads {
		r.Loads = append(r.Loads, l.Load)
	}
	r.Loads = append(r.Loads, extras...)
	b.progress = &progress{out: b.stderr, terminal: b.terminal, began: began, planned: b.plan()}
	for _, s := range b.scenarios {
		if err := b.scenario(ctx, s, r); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	b.progress.end()
	r.Took = result.Seconds(time.Since(began).Seconds())
	return b.write(r)
}

// prepare checks the flags before anything is built.
func (b *bench) prepare(ctx context.Context, flags *pflag.FlagSet) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("this needs root, because it makes network namespaces and iptables rules in them: try sudo make bench")
	}
	for _, name := range []string{"iptables", "ip6tables", "iptables-restore"} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("%s is missing: install the package iptables", name)
		}
	}
	if b.quick {
		setDefault := func(name string, f func()) {
			if !flags.Changed(name) {
				f()
			}
		}
		setDefault("sizes", func() { b.sizes = quickSizes })
		setDefault("rounds", func() { b.rounds = 3 })
		setDefault("for", func() { b.window = 400 * time.Millisecond })
		setDefault("churn", func() { b.churn = time.Second })
	}
	if b.rounds < 1 || b.window <= 0 || b.churn <= 0 {
		return errors.New("--rounds, --for and --churn: give more than 0")
	}
	b.churnRounds = min(3, b.rounds)
	for _, text := range b.sizes {
		s, err := parseSize(text)
		if err != nil {
			return err
		}
		b.scenarios = append(b.scenarios, s)
	}
	if b.loads, b.extras, err = selectLoads(b.loadNames); err != nil {
		return err
	}
	if b.vary != "" {
		if b.variants, err = varied(b.vary); err != nil {
			return err
		}
	}
	// Make the path absolute: exec would look up a name without a slash in PATH.
	if b.sluice, err = filepath.Abs(b.sluice); err != nil {
		return fmt.Errorf("find sluice: %w", err)
	}
	if _, err := os.Stat(b.sluice); err != nil {
		return fmt.Errorf("find sluice: %w: build it with make build, or name it with --sluice", err)
	}
	return ctx.Err()
}

// parseSize parses pods, policies and namespaces, as in "1000/100/20". The default is one
// namespace.
func parseSize(text string) (s result.Scenario, err error) {
	parts := strings.Split(text, "/")
	numbers := []*int{&s.Pods, &s.Policies, &s.Namespaces}
	s.Namespaces = 1
	ok := len(parts) == 2 || len(parts) == 3
	for i := 0; ok && i < len(parts); i++ {
		*numbers[i], err = strconv.Atoi(parts[i])
		ok = err == nil
	}
	if !ok || s.Pods < 10 || s.Pods > 100_000 || s.Policies < 1 || s.Namespaces < 1 {
		return s, fmt.Errorf("size %q: give pods (10 to 100000), policies and namespaces, such as 1000/100/20", text)
	}
	return s, nil
}

// scenario runs all measurements in a cluster of one size.
func (b *bench) scenario(ctx context.Context, s result.Scenario, r *result.Result) (err error) {
	b.progress.in(fmt.Sprintf("%d/%d/%d", s.Pods, s.Policies, s.Namespaces))
	t := &testbed{env: b.env, Scenario: s, sluice: b.sluice}
	defer func() { err = errors.Join(err, t.close()) }()
	started := func(what string) { b.progress.step(b.startTime(s.Pods), "%s", what) }
	if err := t.open(ctx, b.rows, started, r.Note); err != nil {
		return err
	}
	if err := t.rounds(ctx, b, r); err != nil {
		return err
	}
	if err := t.extrasOf(ctx, b, r); err != nil {
		return err
	}
	r.Aims = append(r.Aims, checkAims(r, s)...)
	return nil
}

// startTime is the expected time of the start of a contender in a cluster with this number of pods.
func (b *bench) startTime(pods int) time.Duration {
	return 500*time.Millisecond + time.Duration(pods)*200*time.Microsecond
}

// plan returns the expected time of all steps.
func (b *bench) plan() (total time.Duration) {
	agents, extra := 0, 0
	for _, r := range b.rows {
		if r.hasExtras() {
			extra++
			if r.kind == isSluice {
				agents++
			}
		}
	}
	n := func(count int, each time.Duration) time.Duration { return time.Duration(count) * each }
	for _, s := range b.scenarios {
		for _, r := range b.rows {
			total += b.loadTime(r)
			switch {
			case r.on != "":
			case r.ends != fewPods:
				total += b.startTime(s.Pods + newcomerPods)
			default:
				total += b.startTime(s.Pods)
			}
		}
		for _, x := range []struct {
			name string
			all  time.Duration
		}{
			{"start", n(b.rounds*min(1, agents), b.startTime(s.Pods))}, {"effect", n(b.rounds*agents, 2*probeTime)},
			{"churn", n(b.churnRounds*agents, 2*b.churn)}, {"flood", n(b.rounds*extra, 2*b.window+floodLead)},
		} {
			if b.extras[x.name] {
				total += x.all
			}
		}
	}
	return total
}

// loadTime returns the expected time of all loads of a row in a cluster.
func (b *bench) loadTime(r row) (total time.Duration) {
	for _, l := range b.loads {
		if !l.takesPart(r) {
			continue
		}
		total += b.window
		if r.observed && !l.seen {
			total += observedLead
		}
	}
	return total * time.Duration(b.rounds)
}

// options returns the flags that determine the measurement, so that it can be repeated.
func (b *bench) options() map[string]string {
	o := map[string]string{
		"rounds": strconv.Itoa(b.rounds), "for": b.window.String(), "churn": b.churn.String(), "sizes": strings.Join(b.sizes, ","),
	}
	if len(b.rowNames) > 0 {
		o["rows"] = strings.Join(b.rowNames, ",")
	}
	if len(b.loadNames) > 0 {
		o["loads"] = strings.Join(b.loadNames, ",")
	}
	if b.vary != "" {
		o["vary"] = b.vary
	}
	return o
}

// write prints the tables and writes the files.
func (b *bench) write(r *result.Result) error {
	if err := r.Text(b.stdout); err != nil {
		return err
	}
	return writeFiles(map[string]func(io.Writer) error{b.out: r.Write, b.html: r.HTML, b.page: r.Page})
}

// writeFiles calls each function with a new file of its name. It skips an empty name.
func writeFiles(files map[string]func(io.Writer) error) error {
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if name == "" {
			continue
		}
		f, err := os.Create(name)
		if err == nil {
			err = errors.Join(files[name](f), f.Close())
		}
		if err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}
