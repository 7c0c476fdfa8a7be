package conntrack

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"sluice/filter/policy"
)

// How long a sweep that failed waits for the next try.
const (
	firstRetry = 50 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// Follower sweeps after each publish, without keeping the publisher waiting: a
// sweep of a big table takes longer than to publish, and what is published
// meanwhile adds up to one more sweep.
//
// That loses nothing. A sweep with the latest snapshot is right for everything
// that changed before it, and a connection that a sweep judged by a snapshot
// which was replaced meanwhile is judged again by the next one: if its verdict
// differs, one of its ends is among that one's changes.
type Follower struct {
	sweeper *Sweeper
	log     *slog.Logger
	wake    chan struct{}
	turn    sync.Mutex // held by the sweep that goes on

	mu       sync.Mutex
	snapshot *policy.Snapshot
	changes  map[netip.Addr]struct{}
	all      bool
	sum      Result
}

// Follow returns a Follower that sweeps with s. A nil logger discards.
func Follow(s *Sweeper, log *slog.Logger) *Follower {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Follower{sweeper: s, log: log, wake: make(chan struct{}, 1), changes: make(map[netip.Addr]struct{})}
}

// Published says that a snapshot is in force, that no verdict of an older one can
// still take effect, and which addresses it changed; all says that every
// connection is to be judged.
func (f *Follower) Published(s *policy.Snapshot, changes policy.Changes, all bool) {
	f.mu.Lock()
	f.snapshot, f.all = s, f.all || all
	for _, a := range changes {
		f.changes[a] = struct{}{}
	}
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default: // it will be seen
	}
}

// Rest leaves the connections to somebody else, until the next Published: it
// forgets what is still to be swept, and returns when no sweep goes on.
func (f *Follower) Rest() {
	f.turn.Lock()
	defer f.turn.Unlock()
	f.take()
}

// Total is what all sweeps have done together.
func (f *Follower) Total() Result {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sum
}

// Run sweeps until ctx ends. A sweep that fails is repeated until it succeeds.
func (f *Follower) Run(ctx context.Context) {
	retry := firstRetry
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		}
		err := f.Sweep(ctx)
		if err == nil || ctx.Err() != nil {
			retry = firstRetry
			continue
		}
		f.log.Error("live connections could not be judged anew; trying again", "err", err, "in", retry)
		select {
		case <-ctx.Done():
			return
		case <-time.After(retry):
		}
		retry = min(2*retry, lastRetry)
		select {
		case f.wake <- struct{}{}:
		default:
		}
	}
}

// Sweep sweeps for all that was published since the last time, and has done so
// when it returns nil. With an error it is still to be done.
func (f *Follower) Sweep(ctx context.Context) error {
	f.turn.Lock()
	defer f.turn.Unlock()
	snapshot, changes, all := f.take()
	if snapshot == nil || len(changes) == 0 && !all {
		return nil
	}
	res, err := f.sweeper.Sweep(ctx, snapshot, changes, all)
	level := slog.LevelDebug
	if res.Written() > 0 {
		level = slog.LevelInfo
	}
	f.log.Log(ctx, level, "live connections judged anew", "snapshot", snapshot.Number(), "connections", res)
	f.mu.Lock()
	f.sum.add(res)
	f.mu.Unlock()
	if err != nil {
		f.putBack(changes, all)
	}
	return err
}

// take takes what is to be swept.
func (f *Follower) take() (s *policy.Snapshot, changes policy.Changes, all bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for a := range f.changes {
		changes = append(changes, a)
	}
	clear(f.changes)
	all, f.all = f.all, false
	return f.snapshot, changes, all
}

// putBack notes what could not be swept.
func (f *Follower) putBack(changes policy.Changes, all bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = f.all || all
	for _, a := range changes {
		f.changes[a] = struct{}{}
	}
}

// add adds up two results.
func (r *Result) add(o Result) {
	r.Looked += o.Looked
	r.Judged += o.Judged
	r.Revoked += o.Revoked
	r.Restored += o.Restored
	r.Passes += o.Passes
	r.Duration += o.Duration
}
