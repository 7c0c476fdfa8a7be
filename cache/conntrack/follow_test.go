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

// follow returns a follower of the rig's sweeper.
func (r *rig) follow() *conntrack.Follower { return conntrack.Follow(r.Sweeper, nil, nil) }

// publish commits and tells the follower.
func (r *rig) publish(f *conntrack.Follower, scope conntrack.Scope) {
	s, changes := r.world.Commit()
	f.Published(s, changes, scope)
}

func TestFollowerSweepsForAllThatWasPublished(t *testing.T) {
	r := newRig(t)
	f := r.follow()
	toDB := r.track(web, db, filter.TCP, 80, judged)
	toIdle := r.track(web, idle, filter.TCP, 80, judged)
	r.world.SetPolicy(netpol.Read(guard("db")))
	r.publish(f, conntrack.ScopeFlows)
	r.world.SetPolicy(netpol.Read(guard("idle")))
	r.publish(f, conntrack.ScopeFlows) // before the first was swept for
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
		t.Errorf("%d dumps with nothing new", again-dumps)
	}
	if sum := f.Total(); sum.Revoked != 2 {
		t.Errorf("%+v, want 2 revoked in all", sum)
	}
}

// A sweep that fails is repeated, for the same changes, until it succeeds.
func TestFollowerTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		f := r.follow()
		toDB := r.track(web, db, filter.TCP, 80, judged)
		toIdle := r.track(web, idle, filter.TCP, 80, judged)
		var failing atomic.Bool
		failing.Store(true)
		r.table.Interrupt = failing.Load
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { f.Run(ctx); close(done) }()
		r.world.SetPolicy(netpol.Read(guard("db")))
		r.world.SetPolicy(netpol.Read(guard("idle")))
		r.publish(f, conntrack.ScopeFlows)
		synctest.Wait()
		r.want(toDB, revoked) // in the half that was seen
		r.want(toIdle, judged)
		failing.Store(false)
		for mark := uint32(judged); mark == judged; {
			synctest.Wait()
			time.Sleep(time.Second) // in the test's own time
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
	for range 2 { // it is still to be done
		if err := f.Sweep(t.Context()); err == nil {
			t.Error("a table that cannot be read is no error")
		}
	}
}

// A follower that rests leaves the connections to another agent, whatever was
// still to be done, until something new is published.
func TestFollowerRests(t *testing.T) {
	r := newRig(t)
	f := r.follow()
	toDB := r.track(web, db, filter.TCP, 80, judged)
	r.world.SetPolicy(netpol.Read(guard("db")))
	r.publish(f, conntrack.ScopeAll)
	f.Pause()
	if err := f.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.want(toDB, judged)
	r.publish(f, conntrack.ScopeAll)
	if err := f.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.want(toDB, revoked)
}
