package main

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// progress reports the current step and the remaining time. On a terminal it updates one
// line. Otherwise it prints a line every reportInterval.
type progress struct {
	out      io.Writer
	terminal bool
	began    time.Time

	mu       sync.Mutex
	planned  time.Duration // expected time of all steps
	done     time.Duration // expected time of the finished steps
	current  time.Duration
	reported time.Time
	where    string
}

// reportInterval is the interval of reports without a terminal.
const reportInterval = 10 * time.Second

// in sets the scenario of the next steps.
func (p *progress) in(where string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.where = where
}

// step finishes the previous step and begins a step that is expected to take the given time.
func (p *progress) step(takes time.Duration, format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += p.current
	p.current = takes
	now := time.Now()
	if !p.terminal && now.Sub(p.reported) < reportInterval {
		return
	}
	p.reported = now
	text := fmt.Sprintf("%3.0f%%, %s left: %s: %s", 100*p.share(), p.left(now).Round(time.Second), p.where, fmt.Sprintf(format, args...))
	if p.terminal {
		fmt.Fprintf(p.out, "\r\033[K%.110s", text)
	} else {
		fmt.Fprintln(p.out, text)
	}
}

func (p *progress) share() float64 {
	if p.planned <= 0 {
		return 0
	}
	return min(0.99, float64(p.done)/float64(p.planned))
}

// left estimates the remaining time: the expected time of the remaining steps, multiplied by
// (time since the start) / (expected time of the finished steps). The factor is greater than 1,
// because steps also start programs and read counters. left omits it while less than 2% of the
// expected time of all steps is done.
func (p *progress) left(now time.Time) time.Duration {
	rest := max(0, p.planned-p.done)
	if p.done < p.planned/50 {
		return rest
	}
	return time.Duration(float64(rest) * float64(now.Sub(p.began)) / float64(p.done))
}

// end clears the line.
func (p *progress) end() {
	if p.terminal {
		fmt.Fprint(p.out, "\r\033[K")
	}
}
