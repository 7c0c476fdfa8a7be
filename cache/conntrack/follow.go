package conntrack

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"sluice/filter/event"
	"sluice/filter/policy"
)

// A failed sweep is repeated after firstRetryBackoff, which doubles up to lastRetryBackoff.
const (
	firstRetryBackoff = 50 * time.Millisecond
	lastRetryBackoff  = 5 * time.Second
)

// Follower runs the sweeps: evaluations of live connections after a publication. Most publications
// need no sweep: see due.go. Sweeps run on a goroutine of their own, because a sweep of a large
// table takes longer than a publication.
//
// A sweep uses the latest snapshot, and so covers all changes up to that snapshot. If another
// snapshot is published during a sweep, a further sweep follows. It evaluates only the
// connections of the addresses that the new snapshot changes. That is enough: if a snapshot
// alters the verdict about a connection, one end of the connection is a changed address.
type Follower struct {
	// OnSwept is called after each sweep that succeeds, with the number of the newest snapshot that the
	// sweep covers, even if no connection was concerned. It may be nil, and must be set before the first
	// call of Published.
	OnSwept func(number uint64)

	sweeper  *Sweeper
	tracked  *TrackedFlows // if nil, every change is followed by a sweep
	log      *slog.Logger
	wake     chan struct{}
	sweeping sync.Mutex // held during a sweep

	mu       sync.Mutex
	snapshot *policy.Snapshot
	changes  map[netip.Addr]change // the changed addresses since the last sweep
	steps    []step                // the publications since the last sweep
	all      bool
	gap      bool
	sum      Result
}

// Follow returns a Follower that sweeps with s. If tracked is nil, it sweeps after every
// change. log may be nil.
func Follow(s *Sweeper, tracked *TrackedFlows, log *slog.Logger) *Follower {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Follower{sweeper: s, tracked: tracked, log: log, wake: make(chan struct{}, 1), changes: make(map[netip.Addr]change)}
}

// Published announces a snapshot that is in force, and the addresses that it changes. Call
// it after Synchronize: then no verdict of an older snapshot can still take effect. If
// Synchronize has failed, the scope must be at least ScopeAddresses. Published does not wait
// for the sweep.
func (f *Follower) Published(s *policy.Snapshot, changes policy.Changes, scope Scope) {
	f.mu.Lock()
	before := f.snapshot
	scope = widened(scope, before, s)
	f.snapshot, f.all, f.gap = s, f.all || scope >= ScopeAll, f.gap || scope == ScopeGap
	for _, a := range changes {
		f.record(before, s, a, scope)
	}
	if f.tracked != nil {
		f.tracked.publish(s)
		if before != nil {
			f.steps = append(f.steps, step{before, s, changes})
		}
	}
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default: // a wake-up is pending
	}
}

// Pause stops sweeping until the next Published, because another agent sweeps meanwhile. It
// discards the changes that wait for a sweep, and returns when no sweep is under way.
func (f *Follower) Pause() {
	f.sweeping.Lock()
	defer f.sweeping.Unlock()
	f.take()
}

// Total returns the sum of the results of all sweeps.
func (f *Follower) Total() Result {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sum
}

// Run sweeps until ctx ends. A sweep that fails is repeated until it succeeds.
func (f *Follower) Run(ctx context.Context) {
	retry := firstRetryBackoff
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		}
		err := f.Sweep(ctx)
		if err == nil || ctx.Err() != nil {
			retry = firstRetryBackoff
			continue
		}
		f.log.Error("live connections could not be judged again; retrying", "err", err, "in", retry)
		select {
		case <-ctx.Done():
			return
		case <-time.After(retry):
		}
		retry = min(2*retry, lastRetryBackoff)
		select {
		case f.wake <- struct{}{}:
		default:
		}
	}
}

// Sweep sweeps once for all snapshots that were published since the last sweep, unless they
// concern no connection. After an error it must be called again.
func (f *Follower) Sweep(ctx context.Context) error {
	f.sweeping.Lock()
	defer f.sweeping.Unlock()
	snapshot, changes, steps, all, gap := f.take()
	if snapshot == nil {
		return nil
	}
	err := f.sweep(ctx, snapshot, changes, steps, all, gap)
	if err == nil && f.OnSwept != nil {
		f.OnSwept(snapshot.Number())
	}
	return err
}

// sweep sweeps for the given changes, which lead to a snapshot. After an error, it puts the changes back
// for the next sweep.
func (f *Follower) sweep(ctx context.Context, snapshot *policy.Snapshot, changes map[netip.Addr]change, steps []step, all, gap bool) error {
	due := f.due(snapshot, changes, steps, all)
	if len(due) == 0 && !all {
		f.log.Debug("no live connection is concerned", event.Swept.Attr(), "snapshot", snapshot.Number(), "changed_addresses", len(changes))
		return nil
	}
	res, err := f.sweeper.sweep(ctx, snapshot, due, sweepOptions{all: all, gap: gap, seen: f.tracked})
	level := slog.LevelDebug
	if res.Written() > 0 {
		level = slog.LevelInfo
	}
	if res.Unjudged > 0 {
		f.log.Warn("connections that had passed without a verdict were judged", "unjudged", res.Unjudged, "revoked", res.Revoked)
	}
	f.log.Log(ctx, level, "live connections judged again", event.Swept.Attr(), "snapshot", snapshot.Number(), "connections", res)
	f.mu.Lock()
	f.sum.add(res)
	f.mu.Unlock()
	if err != nil {
		for a := range changes {
			changes[a] = change{need: needSweep}
		}
		f.putBack(changes, all, gap)
	}
	return err
}

// take returns the changes that wait for a sweep, and clears them.
func (f *Follower) take() (s *policy.Snapshot, changes map[netip.Addr]change, steps []step, all, gap bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	changes, f.changes = f.changes, make(map[netip.Addr]change)
	steps, f.steps = f.steps, nil
	all, f.all = f.all, false
	gap, f.gap = f.gap, false
	return f.snapshot, changes, steps, all, gap
}

// putBack records the changes of a failed sweep again. If Published has recorded a newer change
// of one of their addresses during the sweep, putBack raises the need of the newer change to
// needSweep. That need was computed without the older change, so it may be too low.
func (f *Follower) putBack(changes map[netip.Addr]change, all, gap bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all, f.gap = f.all || all, f.gap || gap
	for a, c := range changes {
		if _, newer := f.changes[a]; newer {
			c = change{need: needSweep}
		}
		f.changes[a] = c
	}
}

// add adds o to r.
func (r *Result) add(o Result) {
	r.Evaluated += o.Evaluated
	r.Allowed += o.Allowed
	r.Revoked += o.Revoked
	r.Restored += o.Restored
	r.Unjudged += o.Unjudged
	r.Passes += o.Passes
	r.Duration += o.Duration
}
