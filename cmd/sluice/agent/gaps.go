package agent

import (
	"context"
	"time"

	"sluice/cache/conntrack"
)

// Packets pass unjudged while the rules are flushed, and past a full queue with
// --queue-overflow pass. Their connections have no mark; and from then on the rules
// let the replies pass without a verdict. So after each such gap all live connections
// are judged, once the gap is closed.

const (
	// gapInterval bounds how often that is while gaps follow one another.
	gapInterval = time.Second
	// gapShare is how much longer than such a sweep the pause after it is: the sweep of a
	// table of 100,000 connections takes some hundred milliseconds of one CPU, and a pod
	// that keeps a queue full must not keep it busy.
	gapShare = 9
)

// noteGap records that packets may have passed unjudged. It does not wait.
func (a *agent) noteGap() {
	select {
	case a.gaps <- struct{}{}:
	default: // the sweep that is still to come finds them all
	}
}

// closeGaps has the live connections judged after each gap, until ctx ends. A gap
// that is noted during the pause is followed by a sweep when it is over.
func (a *agent) closeGaps(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.gaps:
		}
		began := time.Now()
		a.publishGap()
		if err := a.follower.Sweep(ctx); err != nil && ctx.Err() == nil {
			a.log.Error("connections that may have passed unjudged could not be judged; trying again", "err", err)
			a.noteGap()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(gapInterval, gapShare*time.Since(began))):
		}
	}
}

// publishGap tells the follower, unless others judge all.
func (a *agent) publishGap() {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch a.phase {
	case enforcing:
		a.follower.Published(a.published.Snapshot(), nil, conntrack.ScopeGap)
	case starting, applying:
		a.noteGap() // the sweep of the start may have been before it
	case yielded, leaving: // the next agent judges all
	}
}
