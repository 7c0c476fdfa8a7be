package main

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// progress says what is going on and how long it will still take. On a terminal it
// is one line that changes; elsewhere a line now and then.
type progress struct {
	out      io.Writer
	terminal bool
	began    time.Time

	mu      sync.Mutex
	planned time.Duration // what all steps should take
	done    time.Duration // what those should have taken that are over
	current time.Duration
	said    time.Time
	where   string
}

// sayEvery is how often something is said where there is no terminal.
const sayEvery = 10 * time.Second

// in says in which scenario the next steps are.
func (p *progress) in(where string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.where = where
}

// step begins a step that should take so long; the one before is over.
func (p *progress) step(takes time.Duration, format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += p.current
	p.current = takes
	now := time.Now()
	if !p.terminal && now.Sub(p.said) < sayEvery {
		return
	}
	p.said = now
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

// left is what the rest will take if it goes on as up to now. A step takes longer
// than planned, by starting programs and reading counters, and that share is learnt.
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
