package conntrack_test

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"sluice/cache/conntrack"
	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/netpol"
)

// follow returns a follower that uses the sweeper of the fixture.
func (r *fixture) follow() *conntrack.Follower { return conntrack.Follow(r.Sweeper, nil, nil) }

// publish commits the store and passes the snapshot to the follower.
func (r *fixture) publish(f *conntrack.Follower, scope conntrack.Scope) {
	s, changes := r.store.Commit()
	f.Published(s, changes, scope)
}

func TestFollowerSweepsOnceForManySnapshots(t *testing.T) {
	r := newFixture(t)
	f := r.follow()
	toDB := r.track(web, db, filter.TCP, 80, allowed)
	toIdle := r.track(web, idle, filter.TCP, 80, allowed)
	r.store.SetPolicy(netpol.Read(guard("db")))
	r.publish(f, conntrack.ScopeFlows)
	r.store.SetPolicy(netpol.Read(guard("idle")))
	r.publish(f, conntrack.ScopeFlows) // published before the sweep for the first snapshot
	if err := f.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.want(toDB, revoked)
	r.want(toIdle, revoked)
	dumps, _ := r.table.Uses()
	if err := f.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again, _ := r.table.Uses(); again != dumps {
		t.Errorf("%d dumps, although nothing was published", again-dumps)
	}
	if sum := f.Total(); sum.Revoked != 2 {
		t.Errorf("%+v, want 2 revoked in all", sum)
	}
}

// A sweep that fails is repeated, for the same changes, until it succeeds.
func TestFollowerTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newFixture(t)
		f := r.follow()
		toDB := r.track(web, db, filter.TCP, 80, allowed)
		toIdle := r.track(web, idle, filter.TCP, 80, allowed)
		var failing atomic.Bool
		failing.Store(true)
		r.table.Interrupt = failing.Load
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { f.Run(ctx); close(done) }()
		r.store.SetPolicy(netpol.Read(guard("db")))
		r.store.SetPolicy(netpol.Read(guard("idle")))
		r.publish(f, conntrack.ScopeFlows)
		synctest.Wait()
		r.want(toDB, revoked) // the interrupted dump reports only the half of the table with toDB
		r.want(toIdle, allowed)
		failing.Store(false)
		for mark := uint32(allowed); mark == allowed; {
			synctest.Wait()
			time.Sleep(time.Second) // virtual time of synctest
			mark, _ = r.table.Mark(toIdle)
		}
		r.want(toIdle, revoked)
		stop()
		<-done
	})
}

// broken is a table that cannot be read.
type broken struct{ conntrack.Fake }

func (*broken) Dump(context.Context, []netip.Addr, func(*conntrack.Conn)) error {
	return errors.New("no table")
}

func TestFollowerReportsAFailure(t *testing.T) {
	f := conntrack.Follow(conntrack.New(new(broken), conntrack.DefaultMarks, nil, nil), nil, nil)
	if err := f.Sweep(t.Context()); err != nil {
		t.Errorf("without a snapshot: %v", err)
	}
	s, _ := policy.NewStore().Commit()
	f.Published(s, nil, conntrack.ScopeAll)
	for range 2 { // the second call also fails: after an error, the sweep is still due
		if err := f.Sweep(t.Context()); err == nil {
			t.Error("no error, although the table cannot be read")
		}
	}
}

// After Pause, a follower sweeps no connections, even if a sweep was due, because another agent
// judges them. The pause ends when the next snapshot is published.
func TestFollowerPause(t *testing.T) {
	r := newFixture(t)
	f := r.follow()
	toDB := r.track(web, db, filter.TCP, 80, allowed)
	r.store.SetPolicy(netpol.Read(guard("db")))
	r.publish(f, conntrack.ScopeAll)
	f.Pause()
	if err := f.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.want(toDB, allowed)
	r.publish(f, conntrack.ScopeAll)
	if err := f.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.want(toDB, revoked)
}

// A sweep evaluates all connections by a snapshot that the kernel's flow cache does not have yet. A connection
// that the cache then allows by the old snapshot is judged again after the cache has the new one.
func TestFollowerSweepsDuringAPublication(t *testing.T) {
	h, k := quiet(t)
	h.open(k, false)
	h.store.SetPolicy(netpol.Read(guard("p0", 1)))
	s, changes := h.store.Commit()
	h.follower.Published(s, nil, conntrack.ScopeGap)
	if err := h.follower.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	ref := h.open(filter.NewKey(netip.MustParseAddr("198.51.100.1"), k.DstAddr(), filter.TCP, 80), true)
	h.follower.Published(s, changes, conntrack.ScopeFlows)
	if err := h.follower.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.want(ref, revoked)
}
