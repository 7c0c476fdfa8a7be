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

// judgeAfterPredecessor waits until the agent from which this one takes over (the predecessor)
// has answered all packets in its queues. Then it requests a sweep that judges all live
// connections again: the predecessor may have decided by an older state of the cluster.
func (a *agent) judgeAfterPredecessor(ctx context.Context) error {
	tick := time.NewTicker(predecessorInterval)
	defer tick.Stop()
	// The kernel removes a packet from the queue's length shortly before it carries out the
	// packet's verdict. So the loop ends only after two successive reads of length 0: the time
	// between them is enough for the last verdict.
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
	// gapPauseFactor is the smallest ratio of the pause after a sweep to the duration of the
	// sweep, so that sweeps take at most a tenth of one CPU even if a pod keeps a queue full. A
	// sweep of 100,000 connections takes some hundred milliseconds of CPU time.
	gapPauseFactor = 9
)

// recordGap requests a sweep after a gap: a time in which packets may have passed without a
// verdict, because the rules were missing, or because a queue was full with --queue-overflow
// pass. The connections of these packets have no mark, and the rules let their replies pass, so
// only a sweep can revoke them. recordGap does not block.
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
			// The agent does not enforce yet, so judgeAll has requested nothing. Request the
			// sweep again for the time after the pause: when the agent begins to enforce, it
			// sweeps too, but that sweep may precede the gap.
			a.recordGap()
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
