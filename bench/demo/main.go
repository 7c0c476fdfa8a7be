// Command demo shows Sluice on real packets, without a cluster. It builds a node and pods
// out of network namespaces, starts `sluice run` on the node, applies one policy after the
// other, and prints which connections succeed and why other connections do not. `make demo`
// runs this command.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// env is the part of the environment that the demo uses. Tests provide their own.
type env struct {
	stdout, stderr io.Writer
	colour         bool
}

// Exit statuses. They are the same as those of sluice. After an interrupt, the status is 130,
// as in a shell.
const (
	exitWrong       = 1 // a result differs from the expectation
	exitFailed      = 2 // the demo could not run
	exitInterrupted = 130
)

// options are the demo's flags.
type options struct {
	sluice, step             string
	families                 []int // families to probe, as indexes in Host.Addrs
	keep, keepGoing, verbose bool
}

// result is the outcome of the demo.
type result struct {
	wrong int  // probes that did not meet their expectation
	kept  bool // the lab was kept until the interrupt
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, env{os.Stdout, os.Stderr, isTerminal(os.Stdout) && os.Getenv("NO_COLOR") == ""}, os.Args[1:])
	stop()
	os.Exit(status)
}

// run runs the program in an environment, and returns its exit status.
func run(ctx context.Context, e env, args []string) (status int) {
	o, err := parse(e, args)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	var r result
	if err == nil {
		r, err = runDemo(ctx, e, o)
	}
	switch {
	case err != nil:
		fmt.Fprintf(e.stderr, "demo: %v\n", err)
		return exitFailed
	case ctx.Err() != nil && !r.kept:
		fmt.Fprintln(e.stderr, "demo: interrupted; everything is cleaned up")
		return exitInterrupted
	case r.wrong > 0:
		return exitWrong
	}
	return 0
}

func parse(e env, args []string) (o options, err error) {
	fs := flag.NewFlagSet("demo", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // the error is returned and reported once
	fs.StringVar(&o.sluice, "sluice", "bin/sluice", "the `file` to run as sluice")
	fs.StringVar(&o.step, "step", "", "show only this `step`: "+strings.Join(stepNames(), ", "))
	family := fs.String("family", "both", "the address `family` of the pods: ipv4, ipv6, or both")
	fs.BoolVar(&o.keep, "keep", false, "after the last step, keep the node, the pods and the agent until Ctrl-C, to try more")
	fs.BoolVar(&o.keepGoing, "keep-going", false, "show the other steps after one that is not as expected")
	fs.BoolVar(&o.verbose, "verbose", false, "show the agent's log as well")
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fs.SetOutput(e.stdout)
		fmt.Fprintln(e.stdout, "Shows Sluice enforcing NetworkPolicies on real packets, between network namespaces. Needs root.\n\n  bin/demo --sluice bin/sluice\n  bin/demo --step access-demo1 --verbose\n  bin/demo --step both --family ipv6 --keep\n\nFlags:")
		fs.PrintDefaults()
		return o, err
	case err != nil:
		return o, fmt.Errorf("%w (see --help)", err)
	case fs.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q: give only flags (see --help)", fs.Arg(0))
	}
	if _, err := selectSteps(o.step); err != nil {
		return o, err
	}
	o.families, err = parseFamily(*family)
	return o, err
}

// parseFamily returns the address families that the name stands for, as indexes in Host.Addrs.
func parseFamily(name string) ([]int, error) {
	switch name {
	case "ipv4":
		return []int{0}, nil
	case "ipv6":
		return []int{1}, nil
	case "both":
		return []int{0, 1}, nil
	}
	return nil, fmt.Errorf("--family %q: give ipv4, ipv6 or both", name)
}

// runDemo builds the lab, runs the steps, and removes everything.
func runDemo(ctx context.Context, e env, o options) (r result, err error) {
	if os.Geteuid() != 0 {
		return r, errors.New("this needs root, because it makes network namespaces and iptables rules in them: try sudo make demo")
	}
	for _, name := range []string{"iptables", "ip6tables"} {
		if _, err := exec.LookPath(name); err != nil {
			return r, fmt.Errorf("%s is missing: install the package iptables", name)
		}
	}
	// Make the path absolute: exec would look up a name without a slash in PATH.
	if o.sluice, err = filepath.Abs(o.sluice); err != nil {
		return r, fmt.Errorf("find sluice: %w", err)
	}
	if _, err := os.Stat(o.sluice); err != nil {
		return r, fmt.Errorf("find sluice: %w: build it with go build -o bin/sluice ./cmd/sluice, or name it with --sluice", err)
	}
	began := time.Now()
	c, err := build(o.families)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, c.lab.Close()) }()
	dir, err := os.MkdirTemp("", "sluice-demo-")
	if err != nil {
		return r, fmt.Errorf("make a directory for manifests: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	p := &printer{out: &sharedWriter{w: e.stdout}, colour: e.colour}
	p.intro(c)
	s := &runner{cluster: c, dir: dir, socket: filepath.Join(dir, ".socket"), printer: p, keepGoing: o.keepGoing}
	if o.keep {
		var remove func() error
		if s.socket, remove, err = freeSocket(s.socket); err != nil {
			return r, err
		}
		defer func() { err = errors.Join(err, remove()) }()
	}
	selected, _ := selectSteps(o.step) // parse has checked the name
	if err = s.open(ctx, o.sluice, o.verbose); err == nil {
		r.wrong, err = s.runSteps(ctx, selected)
	}
	if errors.Is(err, context.Canceled) {
		err = nil // after an interrupt, run() finds ctx canceled and returns exitInterrupted
	}
	if err == nil && ctx.Err() == nil {
		p.summary(s.shown, len(selected), s.probed, r.wrong, time.Since(began))
		if r.kept = o.keep; r.kept {
			p.kept(c, dir, s.socket, o.sluice)
			<-ctx.Done()
		}
	}
	if s.agent != nil {
		err = errors.Join(err, s.agent.Stop())
	}
	return r, err
}

// defaultSocket is the socket that commands of sluice use without --socket.
const defaultSocket = "/run/sluice/sluice.sock"

// freeSocket returns defaultSocket, so that the user need not give --socket, or other if an agent uses
// defaultSocket or may use it. remove removes the directory that freeSocket has made for it.
func freeSocket(other string) (path string, remove func() error, err error) {
	switch err := os.Mkdir(filepath.Dir(defaultSocket), 0o755); {
	case errors.Is(err, fs.ErrExist):
		if _, err := os.Lstat(defaultSocket); !errors.Is(err, fs.ErrNotExist) {
			return other, func() error { return nil }, nil
		}
		return defaultSocket, func() error { return nil }, nil
	case err != nil:
		return "", nil, fmt.Errorf("make the directory of the agent's socket: %w", err)
	}
	return defaultSocket, func() error { return os.Remove(filepath.Dir(defaultSocket)) }, nil
}

// sharedWriter serializes writes, so that lines of the demo and of the agent's log do not
// mix.
type sharedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *sharedWriter) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(b)
}
