// Package agenttest runs sluice on a node of a lab, with a folder of manifests, and
// follows what it logs: tests, the demo and benchmarks learn from the log when a
// change is in force, and never wait longer than that.
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

// Options say which agent to start and where.
type Options struct {
	Sluice string // path of the program
	Node   *lab.Node
	Dir    string   // the folder of manifests; empty if Args name a cluster
	Args   []string // more arguments of sluice run
	// Log gets the agent's log while it is written, in a form for people: each
	// Write is one line.
	Log io.Writer
	// Goodbye is how long the agent may take to end once it was told to; 0 is two
	// minutes: it takes a fraction of a second, and longer on a busy machine.
	Goodbye time.Duration
}

// Agent is a running agent. Its methods may be called from several goroutines.
type Agent struct {
	dir     string
	cmd     *exec.Cmd
	goodbye time.Duration
	done    chan struct{} // closed when the process has ended
	err     error         // how it ended

	mu      sync.Mutex
	lines   []Line
	last    []string // the last lines, as they were written
	other   []string // what is no line of the log, which a crash is told in
	changed chan struct{}
	saves   int
}

// lastWords is how many lines of the log an error shows.
const lastWords = 15

// Start starts the agent and returns when it is ready. If ctx ends before, the
// agent is told to end, in order, and has ended when Start returns.
func Start(ctx context.Context, opts Options) (*Agent, error) {
	a := &Agent{
		dir: opts.Dir, goodbye: cmp.Or(opts.Goodbye, 2*time.Minute),
		done: make(chan struct{}), changed: make(chan struct{}),
	}
	args := []string{"run", "--log-format", "json", "--log-level", "debug"}
	if opts.Dir != "" {
		// Names that begin with a dot are none of manifests'.
		args = append(args, "--manifests", opts.Dir, "--socket", filepath.Join(opts.Dir, ".socket"))
	}
	a.cmd = exec.Command(opts.Sluice, append(args, opts.Args...)...)
	// A group of its own: a terminal's Ctrl-C is for the caller, who then ends the
	// agent.
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// A pipe of our own: StderrPipe would be closed by Wait with lines unread.
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
	// The line of the first publish comes last, and must not be taken for that of a
	// change.
	if _, err = a.Await(ctx, 0, Event(event.Ready)); err == nil {
		_, err = a.Await(ctx, 0, Event(event.Published))
	}
	if err == nil {
		return a, nil
	}
	if late := a.end(); late != nil {
		// Not wrapped: who only looks whether ctx has ended must not miss this.
		return nil, fmt.Errorf("start the agent: %v; %w", err, late) //nolint:errorlint // as said above
	}
	return nil, fmt.Errorf("start the agent: %w", err)
}

// PID is the number of the agent's process.
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
	_, _ = io.Copy(io.Discard, r) // a line beyond all bounds must not block the agent
	a.err = a.cmd.Wait()
	close(a.done)
}

// line takes in a line of the log.
func (a *Agent) line(text string) {
	var l Line
	err := json.Unmarshal([]byte(text), &l)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil {
		a.lines = append(a.lines, l)
		a.last = append(a.last[max(0, len(a.last)-lastWords+1):], text)
	} else {
		a.other = append(a.other, text)
	}
	close(a.changed)
	a.changed = make(chan struct{})
}

// Mark is a place in the log: all that is written later comes after it.
func (a *Agent) Mark() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.lines)
}

// Since are the lines after a mark that match.
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

// Await returns the first line after a mark that matches, as soon as it is there.
// It fails when ctx or the agent ends before. match is called once for each line,
// in order, so that it may also gather what several lines tell.
func (a *Agent) Await(ctx context.Context, mark int, match func(Line) bool) (Line, error) {
	for {
		ended := false
		select {
		case <-a.done:
			ended = true // and all that it has written is there
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

// exit is how the process ended.
func (a *Agent) exit() error {
	if a.err == nil {
		return errors.New("exit status 0")
	}
	return a.err
}

// tail is the end of the log, for errors.
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

// Save writes a file of the folder, at once and as a whole, and returns when what
// it says is in force: new connections are judged by it, and live ones have been.
// It returns the line of the publish.
func (a *Agent) Save(ctx context.Context, name, text string) (Line, error) {
	a.mu.Lock()
	a.saves++
	saves := a.saves
	a.mu.Unlock()
	// A Namespace that is another one each time, so that there is always a change.
	text += fmt.Sprintf("\n---\n{apiVersion: v1, kind: Namespace, metadata: {name: save-%s, labels: {save: \"%d\"}}}\n",
		strings.ReplaceAll(name, ".", "-"), saves)
	return a.change(ctx, func() error { return WriteFile(a.dir, name, text) })
}

// Remove takes a file out of the folder, and returns when its objects are gone.
func (a *Agent) Remove(ctx context.Context, name string) (Line, error) {
	return a.change(ctx, func() error { return os.Remove(filepath.Join(a.dir, name)) })
}

func (a *Agent) change(ctx context.Context, f func() error) (Line, error) {
	mark := a.Mark()
	if err := f(); err != nil {
		return nil, fmt.Errorf("change the manifests: %w", err)
	}
	published, err := a.Await(ctx, mark, func(l Line) bool {
		return l.Is(event.Published) && strings.Contains(l.Text("changed_by"), "folder "+a.dir)
	})
	if err == nil && published.Number("changed_addresses") > 0 {
		_, err = a.Await(ctx, mark, Followed(published))
	}
	if err != nil {
		return nil, fmt.Errorf("await that the manifests are in force: %w", err)
	}
	return published, nil
}

// Followed is whether a line says that the live connections follow what another one
// says is in force.
func Followed(published Line) func(Line) bool {
	return func(l Line) bool {
		return l.Is(event.Swept) && l.Number("snapshot") >= published.Number("snapshot")
	}
}

// WriteFile writes a manifest in one step, as a careful editor does.
func WriteFile(dir, name, text string) error {
	temporary := filepath.Join(dir, "."+name)
	if err := os.WriteFile(temporary, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, filepath.Join(dir, name))
}

// Stop ends the agent in order and waits for it. An agent that has ended before,
// that ends with an error, or that must be killed because it takes too long, is
// an error.
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

// Kill ends the agent without a chance to do anything.
func (a *Agent) Kill() {
	_ = a.cmd.Process.Kill() // it may have ended, which is as good
	<-a.done
}

// end tells the agent to end, and kills it if it will not. It has ended
// afterwards; the error says that it was not by its own doing.
func (a *Agent) end() error {
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		a.Kill()
		return fmt.Errorf("tell the agent to end: %w", err)
	}
	select {
	case <-a.done:
		return nil
	case <-time.After(a.goodbye):
		a.Kill()
		return fmt.Errorf("the agent did not end within %v and was killed\n%s", a.goodbye, a.tail())
	}
}
