package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"sluice/bench/load"
	"sluice/bench/testbed/syncbuf"
	"sluice/filter/flow"
)

const (
	// attachTimeout bounds the wait until an observer prints the first connection.
	attachTimeout = 5 * time.Second
	// observedLead is the time for which the load runs with an observer before it is measured. The
	// connection table removes a closed connection after a second or two, a timeout that contender.pods
	// sets. So from then on, as many connections end as begin.
	observedLead = 2 * time.Second
	// settleTimeout bounds the wait for the records that the observer prints after a load. The record
	// about left-out records arrives up to a second later.
	settleTimeout = 5 * time.Second
	// settleQuiet is the time without a new record after which settle expects no more records.
	settleQuiet = 50 * time.Millisecond
)

// watched holds the number of records that an observer has printed, by event, and its CPU time. leftOut
// is the sum of the counts in its records of left-out ones.
type watched struct {
	allowed, denied, ended, leftOut uint64
	cpu                             time.Duration
}

// seen returns the number of connections whose begin was printed or counted as left out.
func (w watched) seen() uint64 { return w.allowed + w.leftOut }

// records returns the number of records that were printed or counted as left out.
func (w watched) records() uint64 { return w.allowed + w.denied + w.ended + w.leftOut }

func (w watched) since(o watched) watched {
	return watched{w.allowed - o.allowed, w.denied - o.denied, w.ended - o.ended, w.leftOut - o.leftOut, w.cpu - o.cpu}
}

// observer is a running "sluice observe".
type observer struct {
	cmd      *exec.Cmd
	stderr   *syncbuf.Buffer
	stopKill func() bool
	ended    chan struct{} // closed when its output has ended

	mu      sync.Mutex
	printed watched
	err     error // from reading its output
}

// startObserver starts "sluice observe" with the flags for passing all flows to another program.
func (s *testbed) startObserver(ctx context.Context, t *contender) (*observer, error) {
	o := &observer{
		cmd:    exec.Command(s.sluice, "observe", "--socket", s.socket(t), "--follow", "--output", "json"),
		stderr: new(syncbuf.Buffer), ended: make(chan struct{}),
	}
	o.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // see env.start
	o.cmd.Stderr = o.stderr
	out, err := o.cmd.StdoutPipe()
	if err == nil {
		err = t.node.Start(o.cmd)
	}
	if err != nil {
		return nil, fmt.Errorf("start sluice observe: %w", err)
	}
	o.stopKill = context.AfterFunc(ctx, func() { _ = o.cmd.Process.Kill() })
	go func() {
		defer close(o.ended)
		if err := o.read(out); err != nil {
			o.mu.Lock()
			o.err = err
			o.mu.Unlock()
		}
	}()
	return o, nil
}

// read counts the records in the output of an observer. It does not decode them, because that would take
// more CPU time than the observer.
func (o *observer) read(out io.Reader) error {
	lines := bufio.NewScanner(out)
	lines.Buffer(make([]byte, 64<<10), 1<<20)
	for lines.Scan() {
		o.mu.Lock()
		err := o.printed.count(lines.Bytes())
		o.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return lines.Err()
}

// count counts a record.
func (w *watched) count(line []byte) error {
	// Only the name of the node is in front of the event, and it has no quotes.
	_, event, _ := bytes.Cut(line, []byte(`"event":"`))
	event, _, _ = bytes.Cut(event, []byte(`"`))
	switch string(event) {
	case flow.Opened.String():
		w.allowed++
	case flow.Denied.String():
		w.denied++
	case flow.Ended.String():
		w.ended++
	case flow.LeftOut.String():
		var r flow.Record
		if err := json.Unmarshal(line, &r); err != nil {
			return fmt.Errorf("read a record: %w", err)
		}
		w.leftOut += r.Count
	case flow.Unrecorded.String(): // a time before the observer was attached
	default:
		return fmt.Errorf("a record has an unknown event: %.200q", line)
	}
	return nil
}

// watched returns the counts of what the observer has printed so far. It returns an error if the observer
// has ended.
func (o *observer) watched() (watched, error) {
	cpu, cpuErr := cpuOf(o.cmd.Process.Pid)
	o.mu.Lock()
	defer o.mu.Unlock()
	w := o.printed
	w.cpu = cpu
	select {
	case <-o.ended:
		if o.err != nil {
			return w, fmt.Errorf("read what sluice observe prints: %w", o.err)
		}
		return w, fmt.Errorf("sluice observe has ended: %s", strings.TrimSpace(o.stderr.String()))
	default:
		return w, cpuErr
	}
}

// settle waits until watched.seen has reached the number seen and the observer prints nothing more, at
// most for timeout. It returns the counts of what the observer has printed, even after the timeout.
func (o *observer) settle(ctx context.Context, seen uint64, timeout time.Duration) (w watched, err error) {
	var last watched
	for quiet, deadline := time.Now(), time.Now().Add(timeout); ctx.Err() == nil; time.Sleep(time.Millisecond) {
		if w, err = o.watched(); err != nil {
			return w, err
		}
		now := time.Now()
		if w.records() != last.records() {
			quiet = now
		}
		if last = w; w.seen() >= seen && now.Sub(quiet) >= settleQuiet || now.After(deadline) {
			return w, nil
		}
	}
	return w, ctx.Err()
}

// stop ends the observer and waits for it.
func (o *observer) stop() {
	o.stopKill()
	_ = o.cmd.Process.Kill() // an error means that the process has already ended
	<-o.ended
	_ = o.cmd.Wait() // the error only reports the kill
}

// attach starts an observer, and returns when it has printed a connection.
func (s *testbed) attach(ctx context.Context, t *contender) (*observer, error) {
	o, err := s.startObserver(ctx, t)
	if err != nil {
		return nil, err
	}
	made := uint64(0)
	for deadline := time.Now().Add(attachTimeout); time.Now().Before(deadline); {
		var a load.Answer
		var w watched
		if a, err = t.traffic.Do(load.Order{Do: "tcp", Target: s.target(t), Clients: 1, For: time.Millisecond}); err == nil {
			w, err = o.settle(ctx, 1, 100*time.Millisecond)
		}
		if made += a.Done; err != nil || w.seen() > 0 {
			break
		}
	}
	w, watchErr := o.watched()
	if err = errors.Join(err, watchErr); err == nil && w.seen() == 0 {
		err = fmt.Errorf("sluice observe has printed none of %d connections", made)
	}
	if err != nil {
		o.stop()
		return nil, err
	}
	return o, nil
}

// observing calls run, which runs a load on a contender and returns the load's result. If the contender's
// row is observed, an observer runs meanwhile, and observing returns the counts of what the observer has
// printed about the load. If the observer prints nothing, observing returns an error.
func (s *testbed) observing(ctx context.Context, t *contender, l loadSpec, run func() (load.Answer, error)) (watched, error) {
	if !t.observed {
		_, err := run()
		return watched{}, err
	}
	o, err := s.attach(ctx, t)
	if err != nil {
		return watched{}, err
	}
	defer o.stop()
	if l.do != "stream" {
		lead := func() (load.Answer, error) {
			a, _, err := s.measure(t, l, observedLead)
			return a, err
		}
		if _, err := o.watch(ctx, l, lead); err != nil {
			return watched{}, err
		}
	}
	return o.watch(ctx, l, run)
}

// watch calls run, which runs a load, and returns the counts of what the observer has printed about the
// load.
func (o *observer) watch(ctx context.Context, l loadSpec, run func() (load.Answer, error)) (watched, error) {
	before, err := o.watched()
	if err != nil {
		return watched{}, err
	}
	a, err := run()
	if err != nil {
		return watched{}, err
	}
	after, err := o.settle(ctx, before.seen()+l.observable(a), settleTimeout)
	return after.since(before), err
}

// observable returns the least number of connections of a load that an observer must print or count as
// left out.
func (l loadSpec) observable(a load.Answer) uint64 {
	if l.do == "tcp" {
		return a.Done
	}
	// A request from a port that another request used within the last second or two is not a new
	// connection.
	return 1
}
