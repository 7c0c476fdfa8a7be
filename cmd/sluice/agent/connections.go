package agent

import (
	"context"
	"time"

	"sluice/cache/conntrack"
	"sluice/watch"
)

// When a live connection is judged again is answered in sluice/cache/conntrack, in due.go.
// Here are the events of the agent.

// scope is which live connections a change concerns.
func (a *agent) scope(c watch.Change) conntrack.Scope {
	if c.Unsettled {
		return conntrack.ScopeAddresses
	}
	return conntrack.ScopeFlows
}

// judgeAll has all connections judged by the snapshot in force, unless another agent judges
// them.
func (a *agent) judgeAll(scope conntrack.Scope) (judged bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.phase != enforcing {
		return false
	}
	a.follower.Published(a.published.Snapshot(), nil, scope)
	return true
}

// predecessorInterval is the time between two looks at the predecessor's queues.
const predecessorInterval = 20 * time.Millisecond

// judgeAfterPredecessor waits until the predecessor has answered the packets in its queues,
// and then has all live connections judged: it may have known less than this agent.
func (a *agent) judgeAfterPredecessor(ctx context.Context) error {
	tick := time.NewTicker(predecessorInterval)
	defer tick.Stop()
	// It must be empty twice: the kernel stops counting a packet before it carries out the
	// verdict.
	for empty := 0; empty < 2; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		switch n, err := a.predecessor.Queued(); {
		case err != nil:
			a.log.Warn("cannot tell whether the predecessor has answered all packets", "err", err)
			empty = 2
		case n == 0:
			empty++
		default:
			empty = 0
		}
	}
	a.judgeAll(conntrack.ScopeAll)
	return nil
}

const (
	// gapInterval bounds how often all connections are judged while gaps follow one another.
	gapInterval = time.Second
	// gapShare is how much longer than such a sweep the pause after it is: the sweep of a
	// table of 100,000 connections takes some hundred milliseconds of one CPU, and a pod
	// that keeps a queue full must not keep it busy.
	gapShare = 9
)

// noteGap records that packets may have passed unjudged, as they do while the rules are
// flushed, and past a full queue with --queue-overflow pass. Their connections have no mark,
// and the rules let the replies pass without a verdict. noteGap does not wait.
func (a *agent) noteGap() {
	select {
	case a.gaps <- struct{}{}:
	default: // the sweep that is still to come finds them all
	}
}

// closeGaps has the live connections judged after each gap, until ctx ends. A gap during
// the pause is followed by a sweep when the pause is over.
func (a *agent) closeGaps(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.gaps:
		}
		began := time.Now()
		if !a.judgeAll(conntrack.ScopeGap) && a.is(starting, applying, resuming) {
			a.noteGap() // the sweep of the start may have been before it
		}
		if err := a.follower.Sweep(ctx); err != nil && ctx.Err() == nil {
			a.log.Error("cannot judge the connections that may have passed unjudged; trying again", "err", err)
			a.noteGap()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(gapInterval, gapShare*time.Since(began))):
		}
	}
}
