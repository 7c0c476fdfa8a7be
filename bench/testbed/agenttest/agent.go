// Package agenttest runs sluice on a node of a lab, with a directory of manifests, and
// follows its log. Tests, the demo and the benchmarks wait for the event in the log that
// reports that a change is in force, so they wait no longer than necessary.
package agenttest

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"sluice/bench/testbed/lab"
	"sluice/filter/event"
)

// Options are the agent to start and its arguments.
type Options struct {
	Sluice string // path of the program
	Node   *lab.Node
	Dir    string   // the directory of manifests; empty if Args name a cluster
	Args   []string // more arguments of sluice run
	// Log, if not nil, receives the agent's log while it is written, in a readable form.
	// Each Write is one line.
	Log io.Writer
	// StopTimeout bounds the time from SIGTERM until the agent has ended. 0 means two
	// minutes. An agent needs a fraction of a second, or longer on a busy machine.
	StopTimeout time.Duration
}

// Agent is a running agent. Its methods may be called concurrently.
type Agent struct {
	dir         string
	cmd         *exec.Cmd
	stopTimeout time.Duration
	done        chan struct{} // closed when the process has ended
	err         error         // the error with which the process ended

	mu      sync.Mutex
	lines   []Line
	last    []string // last lines of the log, as written
	other   []string // lines that are not in the log's format, such as those of a panic
	changed chan struct{}
	saves   int
}

// tailLines is the number of lines of the log that an error shows.
const tailLines = 15

// Start starts the agent and returns when it is ready. If ctx ends first, Start stops the
// agent gracefully and returns an error when the agent has ended.
func Start(ctx context.Context, opts Options) (*Agent, error) {
	a := &Agent{
		dir: opts.Dir, stopTimeout: cmp.Or(opts.StopTimeout, 2*time.Minute),
		done: make(chan struct{}), changed: make(chan struct{}),
	}
	args := []string{"run", "--log-format", "json", "--log-level", "debug"}
	if opts.Dir != "" {
		// The source of manifests ignores names that begin with a dot.
		args = append(args, "--manifests", opts.Dir, "--socket", filepath.Join(opts.Dir, ".socket"))
	}
	a.cmd = exec.Command(opts.Sluice, append(args, opts.Args...)...)
	// In a process group of its own, the agent does not receive a terminal's Ctrl-C. Only
	// the caller receives it, and stops the agent.
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// Not StderrPipe: Wait would close it before all lines have been read.
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start the agent: %w", err)
	}
	a.cmd.Stderr = write
	err = opts.Node.Start(a.cmd)
	_ = write.Close()
	if err != nil {
		_ = read.Close()
		return nil, fmt.Errorf("start the agent: %w", err)
	}
	go a.follow(read, opts.Log)
	// The agent logs its first event.Published after event.Ready. Wait for both, so that the
	// caller does not mistake the first publication for the publication of a change.
	if _, err = a.Await(ctx, 0, Event(event.Ready)); err == nil {
		_, err = a.Await(ctx, 0, Event(event.Published))
	}
	if err == nil {
		return a, nil
	}
	if endErr := a.end(); endErr != nil {
		// err is not wrapped: a caller that ignores context.Canceled must not ignore endErr.
		return nil, fmt.Errorf("start the agent: %v; %w", err, endErr) //nolint:errorlint // see above
	}
	return nil, fmt.Errorf("start the agent: %w", err)
}

// PID returns the process ID of the agent.
func (a *Agent) PID() int { return a.cmd.Process.Pid }

// follow reads the log until the process ends.
func (a *Agent) follow(r io.ReadCloser, log io.Writer) {
	defer r.Close()
	in := bufio.NewScanner(r)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		if log != nil {
			fmt.Fprintln(log, readable(in.Text()))
		}
		a.line(in.Text())
	}
	_, _ = io.Copy(io.Discard, r) // the scanner stops at a line that is too long, but the agent must not block
	a.err = a.cmd.Wait()
	close(a.done)
}

// line records a line of the log.
func (a *Agent) line(text string) {
	var l Line
	err := json.Unmarshal([]byte(text), &l)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil {
		a.lines = append(a.lines, l)
		a.last = append(a.last[max(0, len(a.last)-tailLines+1):], text)
	} else {
		a.other = append(a.other, text)
	}
	close(a.changed)
	a.changed = make(chan struct{})
}

// Mark returns the current end of the log, for Since and Await.
func (a *Agent) Mark() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.lines)
}

// Since returns the matching lines after a mark.
func (a *Agent) Since(mark int, match func(Line) bool) []Line {
	a.mu.Lock()
	defer a.mu.Unlock()
	var found []Line
	for _, l := range a.lines[mark:] {
		if match(l) {
			found = append(found, l)
		}
	}
	return found
}

// Await waits for the first matching line after a mark, and returns the line. It fails if
// ctx or the agent ends first. It calls match() once for each line, in order, so match() may
// also collect lines.
func (a *Agent) Await(ctx context.Context, mark int, match func(Line) bool) (Line, error) {
	for {
		ended := false
		select {
		case <-a.done:
			ended = true // no further line of the log will come
		default:
		}
		a.mu.Lock()
		lines, changed := a.lines[mark:], a.changed
		a.mu.Unlock()
		for _, l := range lines {
			if match(l) {
				return l, nil
			}
		}
		mark += len(lines)
		if ended {
			return nil, fmt.Errorf("the agent has ended (%w)\n%s", a.exit(), a.tail())
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w; the agent's log ends with\n%s", ctx.Err(), a.tail())
		case <-a.done:
		case <-changed:
		}
	}
}

// exit returns the error with which the process ended. It is not nil, even if the exit status
// was 0.
func (a *Agent) exit() error {
	if a.err == nil {
		return errors.New("exit status 0")
	}
	return a.err
}

// tail returns the end of the log, for errors.
func (a *Agent) tail() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var b strings.Builder
	for _, text := range a.last {
		fmt.Fprintf(&b, "  %s\n", readable(text))
	}
	for _, text := range a.other {
		fmt.Fprintf(&b, "  %s\n", text)
	}
	return b.String()
}

// Save atomically replaces a file in the agent's directory of manifests. When the new content
// is in force for new and live connections, Save returns the log line of the publication.
func (a *Agent) Save(ctx context.Context, name, text string) (Line, error) {
	a.mu.Lock()
	a.saves++
	saves := a.saves
	a.mu.Unlock()
	// Append a Namespace with a new label. Otherwise the agent would publish nothing if the
	// text were the same as before.
	text += fmt.Sprintf("\n---\n{apiVersion: v1, kind: Namespace, metadata: {name: save-%s, labels: {save: \"%d\"}}}\n",
		strings.ReplaceAll(name, ".", "-"), saves)
	return a.change(ctx, func() error { return WriteFile(a.dir, name, text) })
}

// Remove removes a file from the agent's directory of manifests. When the change is in force
// for new and live connections, Remove returns the log line of the publication.
func (a *Agent) Remove(ctx context.Context, name string) (Line, error) {
	return a.change(ctx, func() error { return os.Remove(filepath.Join(a.dir, name)) })
}

func (a *Agent) change(ctx context.Context, f func() error) (Line, error) {
	mark := a.Mark()
	if err := f(); err != nil {
		return nil, fmt.Errorf("change the manifests: %w", err)
	}
	published, err := a.Await(ctx, mark, func(l Line) bool {
		return l.Is(event.Published) && strings.Contains(l.Text("changed_by"), "manifests "+a.dir)
	})
	if err == nil && published.Number("changed_addresses") > 0 {
		_, err = a.Await(ctx, mark, Followed(published))
	}
	if err != nil {
		return nil, fmt.Errorf("await that the manifests are in force: %w", err)
	}
	return published, nil
}

// Followed matches the line which reports that live connections have been swept for the
// given publication or a later one.
func Followed(published Line) func(Line) bool {
	return func(l Line) bool {
		return l.Is(event.Swept) && l.Number("snapshot") >= published.Number("snapshot")
	}
}

// WriteFile writes a manifest atomically: it writes another file and renames it.
func WriteFile(dir, name, text string) error {
	temporary := filepath.Join(dir, "."+name)
	if err := os.WriteFile(temporary, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, filepath.Join(dir, name))
}

// Stop stops the agent gracefully and waits until it has ended. It returns an error if the
// agent had already ended, ends with an error, or was killed after StopTimeout.
func (a *Agent) Stop() error {
	select {
	case <-a.done:
		return fmt.Errorf("the agent had ended by itself (%w)\n%s", a.exit(), a.tail())
	default:
	}
	if err := a.end(); err != nil {
		return err
	}
	if a.err != nil {
		return fmt.Errorf("the agent ended with %w\n%s", a.err, a.tail())
	}
	return nil
}

// Kill ends the agent with SIGKILL.
func (a *Agent) Kill() {
	_ = a.cmd.Process.Kill() // an error means that the agent has already ended
	<-a.done
}

// end sends SIGTERM to the agent, kills it if it has not ended after stopTimeout, and waits
// for its end. An error means that end killed the agent.
func (a *Agent) end() error {
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		a.Kill()
		return fmt.Errorf("tell the agent to end: %w", err)
	}
	select {
	case <-a.done:
		return nil
	case <-time.After(a.stopTimeout):
		a.Kill()
		return fmt.Errorf("the agent did not end within %v and was killed\n%s", a.stopTimeout, a.tail())
	}
}
