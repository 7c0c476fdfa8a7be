// Package running runs sluice on a node of a lab, with a folder of manifests, and
// follows what it logs: tests, the demo and benchmarks learn from the log when a
// change is in force, and never wait longer than that.
package running

import (
	"bufio"
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

	"sluice/bench/lab"
)

// Options say which agent to start and where.
type Options struct {
	Sluice string // path of the program
	Node   *lab.Node
	Dir    string   // the folder of manifests
	Args   []string // more arguments of sluice run
	Log    io.Writer
}

// Line is a line of the agent's log.
type Line map[string]any

// Text is a field as text; empty if it is not there.
func (l Line) Text(field string) string {
	if v, ok := l[field]; ok {
		return fmt.Sprint(v)
	}
	return ""
}

// Number is a field as a number; 0 if it is none.
func (l Line) Number(field string) int {
	n, _ := l[field].(float64)
	return int(n)
}

// Time is when the line was written.
func (l Line) Time() time.Time {
	t, _ := time.Parse(time.RFC3339Nano, l.Text("time"))
	return t
}

// Agent is a running agent. Its methods may be called from several goroutines.
type Agent struct {
	dir  string
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	err  error         // how it ended

	mu      sync.Mutex
	lines   []Line
	other   []string // what is no line of the log
	changed chan struct{}
	saves   int
}

// Start starts the agent and returns when it is ready.
func Start(ctx context.Context, opts Options) (*Agent, error) {
	a := &Agent{dir: opts.Dir, done: make(chan struct{}), changed: make(chan struct{})}
	args := append([]string{"run", "--manifests", opts.Dir, "--log-format", "json", "--log-level", "debug"}, opts.Args...)
	a.cmd = exec.Command(opts.Sluice, args...)
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
	if _, err = a.Await(ctx, 0, Message("sluice is ready")); err == nil {
		_, err = a.Await(ctx, 0, Message("policies in force"))
	}
	if err != nil {
		_ = a.cmd.Process.Kill()
		<-a.done
		return nil, fmt.Errorf("start the agent: %w", err)
	}
	return a, nil
}

// follow reads the log until the process ends.
func (a *Agent) follow(r io.ReadCloser, log io.Writer) {
	defer r.Close()
	in := bufio.NewScanner(r)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		if log != nil {
			fmt.Fprintln(log, in.Text())
		}
		var l Line
		a.mu.Lock()
		if err := json.Unmarshal(in.Bytes(), &l); err == nil {
			a.lines = append(a.lines, l)
		} else {
			a.other = append(a.other, in.Text())
		}
		close(a.changed)
		a.changed = make(chan struct{})
		a.mu.Unlock()
	}
	a.err = a.cmd.Wait()
	close(a.done)
}

// Message matches the lines with a message.
func Message(msg string) func(Line) bool {
	return func(l Line) bool { return l.Text("msg") == msg }
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
// It fails when ctx or the agent ends before.
func (a *Agent) Await(ctx context.Context, mark int, match func(Line) bool) (Line, error) {
	for {
		ended := false
		select {
		case <-a.done:
			ended = true // and all that it has written is there
		default:
		}
		a.mu.Lock()
		changed := a.changed
		a.mu.Unlock()
		if found := a.Since(mark, match); len(found) > 0 {
			return found[0], nil
		}
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
	for _, l := range a.lines[max(0, len(a.lines)-15):] {
		text, _ := json.Marshal(l) // it came from JSON
		fmt.Fprintf(&b, "  %s\n", text)
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
		return l.Text("msg") == "policies in force" && strings.Contains(l.Text("changed_by"), "folder "+a.dir)
	})
	if err == nil && published.Number("changed_addresses") > 0 {
		_, err = a.Await(ctx, mark, func(l Line) bool {
			return l.Text("msg") == "live connections judged anew" && l.Number("snapshot") >= published.Number("snapshot")
		})
	}
	if err != nil {
		return nil, fmt.Errorf("await that the manifests are in force: %w", err)
	}
	return published, nil
}

// WriteFile writes a manifest in one step, as a careful editor does.
func WriteFile(dir, name, text string) error {
	temporary := filepath.Join(dir, "."+name)
	if err := os.WriteFile(temporary, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, filepath.Join(dir, name))
}

// Stop ends the agent in order and waits for it.
func (a *Agent) Stop() error { return a.Signal(syscall.SIGTERM) }

// Kill ends the agent without a chance to do anything.
func (a *Agent) Kill() { _ = a.Signal(syscall.SIGKILL) }

// Signal sends a signal that ends the agent, and waits until it has. A process
// that has ended already is no error, unless it ended with one.
func (a *Agent) Signal(s syscall.Signal) error {
	if err := a.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end the agent: %w", err)
	}
	<-a.done
	if a.err != nil {
		return fmt.Errorf("the agent ended with %w\n%s", a.err, a.tail())
	}
	return nil
}
