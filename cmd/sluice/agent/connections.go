package agent

import (
	"context"
	"time"

	"sluice/cache/conntrack"
	"sluice/watch"
)

// This file passes the agent's events to the follower in sluice/cache/conntrack. due.go
// there decides which live connections are judged again, and when.

// scope returns the scope of the live connections that a change concerns.
func (a *agent) scope(c watch.Change) conntrack.Scope {
	if c.Unsettled {
		return conntrack.ScopeAddresses
	}
	return conntrack.ScopeFlows
}

// judgeAll requests that the connections in scope are judged by the snapshot in force. If
// this agent does not enforce, judgeAll requests nothing and returns false.
func (a *agent) judgeAll(scope conntrack.Scope) (judged bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.phase != enforcing {
		return false
	}
	a.follower.Published(a.published.Snapshot(), nil, scope)
	return true
}

// predecessorInterval is the time between two reads of the length of the predecessor's
// queues.
const predecessorInterval = 20 * time.Millisecond

// judgeAfterPredecessor waits until the predecessor has answered the packets in its queues,
// and then requests that all live connections are judged: the predecessor may have decided
// by an older state of the cluster.
func (a *agent) judgeAfterPredecessor(ctx context.Context) error {
	tick := time.NewTicker(predecessorInterval)
	defer tick.Stop()
	// Two successive reads must find the queues empty: the kernel stops counting a packet
	// before it carries out the verdict.
	for empty := 0; empty < 2; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		switch n, err := a.predecessor.Queued(); {
		case err != nil:
			a.log.Warn("cannot read the predecessor's queues; judging live connections without waiting for it", "err", err)
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
	// gapInterval is the shortest pause after a sweep of sweepAfterGaps.
	gapInterval = time.Second
	// gapPauseFactor makes the pause longer after a long sweep: the pause lasts at least this
	// many times as long as the sweep. A sweep of 100,000 connections takes some hundred milliseconds of one
	// CPU, and a pod that keeps a queue full must not keep that CPU busy.
	gapPauseFactor = 9
)

// recordGap records a gap: packets may have passed unjudged, while the rules were flushed or
// because a queue was full with --queue-overflow pass. Their connections have no mark, and
// the rules let the replies pass without a verdict. recordGap does not block.
func (a *agent) recordGap() {
	select {
	case a.gaps <- struct{}{}:
	default: // a requested sweep has not begun yet, and covers this gap too
	}
}

// sweepAfterGaps judges the live connections after each gap (see recordGap), until ctx ends.
// A gap during the pause after a sweep causes another sweep when the pause is over.
func (a *agent) sweepAfterGaps(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.gaps:
		}
		began := time.Now()
		if !a.judgeAll(conntrack.ScopeGap) && a.is(starting, applying, resuming) {
			a.recordGap() // judge later: the sweep at the agent's start may have run before the gap
		}
		if err := a.follower.Sweep(ctx); err != nil && ctx.Err() == nil {
			a.log.Error("cannot judge the connections that may have passed unjudged; trying again", "err", err)
			a.recordGap()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(gapInterval, gapPauseFactor*time.Since(began))):
		}
	}
}
