package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sluice/bench/lab"
)

// goodbye is how long the agent may take to end.
const goodbye = 15 * time.Second

// flow is a connection as the agent's log names it.
type flow struct {
	src, dst netip.Addr
	proto    string
	port     uint16
}

// verdict is why a flow was denied.
type verdict struct{ reason, policy string }

func (v verdict) String() string {
	return v.reason + ": no rule of " + strings.ReplaceAll(v.policy, ",", " or ") + " allows it"
}

// agent is a running `sluice run` and what its log has told.
type agent struct {
	cmd  *exec.Cmd
	echo io.Writer // gets the log

	mu       sync.Mutex
	changed  chan struct{} // closed at the next line
	ready    bool
	snapshot uint64 // number of the one in force
	policies uint64 // in force
	denials  map[flow]verdict
	tail     []string      // the last lines
	ended    chan struct{} // closed when the log is at its end
}

// startAgent starts sluice on a node. The log is read from standard error; debug
// lines are needed because only they tell each change of policy.
func startAgent(node *lab.Host, sluice, dir string, echo io.Writer) (*agent, error) {
	a := &agent{
		cmd: exec.Command(sluice, "run", "--manifests", dir, "--on-exit", "remove",
			"--log-verdicts", "all", "--log-verdicts-rate", "0", "--log-level", "debug"),
		echo: echo, changed: make(chan struct{}), ended: make(chan struct{}), denials: make(map[flow]verdict),
	}
	// A group of its own: Ctrl-C is for the demo, which then ends the agent.
	a.cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	log, err := a.cmd.StderrPipe()
	if err != nil {
		return nil, fmt.Errorf("read the agent's log: %w", err)
	}
	if err := node.Start(a.cmd); err != nil {
		return nil, err
	}
	go a.read(log)
	return a, nil
}

func (a *agent) read(log io.Reader) {
	defer close(a.ended)
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fmt.Fprintf(a.echo, "  sluice: %s\n", lines.Text())
		a.line(lines.Text())
	}
	_, _ = io.Copy(io.Discard, log) // a line beyond all bounds must not block the agent
}

// line takes in a line of the log.
func (a *agent) line(text string) {
	f := fields(text)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tail = append(a.tail[max(0, len(a.tail)-9):], text)
	switch f["msg"] {
	case "sluice is ready":
		a.ready = true
	case "policies in force":
		a.snapshot, a.policies = number(f["snapshot"]), number(f["policies"])
	case "verdict":
		src, _ := netip.ParseAddr(f["src"]) // a malformed packet has no addresses
		dst, _ := netip.ParseAddr(f["dst"])
		key := flow{src, dst, f["proto"], uint16(number(f["dport"]))}
		if f["verdict"] == "deny" {
			a.denials[key] = verdict{f["reason"], f["policy"]}
		}
	}
	close(a.changed)
	a.changed = make(chan struct{})
}

// number is 0 for what is none, which no snapshot and no port is.
func number(text string) uint64 {
	n, _ := strconv.ParseUint(text, 10, 64)
	return n
}

// fields reads a line of slog's text format.
func fields(line string) map[string]string {
	f := make(map[string]string)
	for line != "" {
		key, rest, ok := strings.Cut(strings.TrimLeft(line, " "), "=")
		if !ok {
			break
		}
		value, after, _ := strings.Cut(rest, " ")
		if quoted, err := strconv.QuotedPrefix(rest); err == nil {
			value, _ = strconv.Unquote(quoted) // it is quoted well
			after = rest[len(quoted):]
		}
		f[key], line = value, after
	}
	return f
}

// await waits until the log has told what the condition asks, or the agent ends.
// The condition is called with the agent locked.
func (a *agent) await(ctx context.Context, condition func() bool) error {
	for {
		a.mu.Lock()
		ok, changed := condition(), a.changed
		a.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-a.ended:
			return fmt.Errorf("sluice has ended; its last words:\n%s", a.lastWords())
		}
	}
}

func (a *agent) lastWords() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(slices.Clone(a.tail), "\n")
}

// forget drops the verdicts of the step before, and returns the number of the
// snapshot in force.
func (a *agent) forget() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.denials)
	return a.snapshot
}

// stop ends the agent in order, or kills it if it will not. That it has ended
// before is an error.
func (a *agent) stop() error {
	select {
	case <-a.ended:
		return fmt.Errorf("sluice ended by itself: %w", cmp.Or(a.cmd.Wait(), errors.New("exit status 0")))
	default:
	}
	var late error
	if err := a.cmd.Process.Signal(unix.SIGTERM); err != nil {
		late = fmt.Errorf("tell it: %w", err)
	}
	select {
	case <-a.ended:
	case <-time.After(goodbye):
		late = fmt.Errorf("it did not end within %v and was killed", goodbye)
		_ = a.cmd.Process.Kill() // it may have ended just now
		<-a.ended
	}
	err := a.cmd.Wait()
	if status, ok := a.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signal() == unix.SIGTERM && a.forget() == 0 {
		err = nil // it had not begun to listen to signals, nor to do anything else
	}
	if err := errors.Join(late, err); err != nil {
		return fmt.Errorf("end sluice: %w; its last words:\n%s", err, a.lastWords())
	}
	return nil
}
