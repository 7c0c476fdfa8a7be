package policy_test

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"sluice/filter/policy"
)

// Readers act on snapshots while newer ones are published. When Synchronize has returned, no
// decision of an older snapshot may still take effect.
func TestSynchronizeLeavesNoOlderEffect(t *testing.T) {
	const readers, rounds = 4, 2_000
	ctx := context.Background()
	w := policy.NewStore()
	var pub policy.Published
	publish := func() uint64 {
		s, _ := w.Commit()
		pub.Publish(s)
		return s.Number()
	}
	publish()

	var synchronized atomic.Uint64 // number of the oldest snapshot whose decisions may still take effect
	var stop atomic.Bool
	var stale, acted atomic.Uint64
	var workers sync.WaitGroup
	for range readers {
		workers.Go(func() {
			for !stop.Load() {
				r := pub.NewReader() // replaced after 50 decisions, as when a worker restarts
				for range 50 {
					number := r.Enter().Number()
					for range 3 { // deciding takes time
						runtime.Gosched()
					}
					if number < synchronized.Load() {
						stale.Add(1)
					}
					r.Exit()
					acted.Add(1)
				}
				r.Close()
			}
		})
	}
	for range rounds {
		number := publish()
		if err := pub.Synchronize(ctx); err != nil {
			t.Fatal(err)
		}
		synchronized.Store(number)
	}
	stop.Store(true)
	workers.Wait()
	if n := stale.Load(); n > 0 {
		t.Errorf("%d of %d effects came from a snapshot older than the one that Synchronize had returned for", n, acted.Load())
	}
}

// Synchronize waits only for readers in a read section, and at most until the context ends.
func TestSynchronizeWaitsForReadSections(t *testing.T) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	var pub policy.Published
	idle, busy := pub.NewReader(), pub.NewReader()
	if err := pub.Synchronize(ended); err != nil {
		t.Errorf("with all readers idle: %v", err)
	}
	busy.Enter()
	if err := pub.Synchronize(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("with a reader in a section: %v, want %v", err, context.Canceled)
	}
	busy.Exit()
	if err := pub.Synchronize(ended); err != nil {
		t.Errorf("after the section: %v", err)
	}
	busy.Enter()
	busy.Close()
	if err := pub.Synchronize(ended); err != nil {
		t.Errorf("with the busy reader closed: %v", err)
	}
	idle.Enter()
	if err := pub.Synchronize(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("with the other reader in a section: %v, want %v", err, context.Canceled)
	}
}

// Synchronize does not wait for read sections that begin after the call.
func TestSynchronizeIgnoresLaterReadSections(t *testing.T) {
	var pub policy.Published
	r := pub.NewReader()
	r.Enter()
	done := make(chan error)
	go func() { done <- pub.Synchronize(context.Background()) }()
	for {
		r.Exit()
		r.Enter()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			return
		default:
			runtime.Gosched()
		}
	}
}

func TestPublishedIsEmptyAtFirst(t *testing.T) {
	var pub policy.Published
	if s := pub.Snapshot(); s != nil {
		t.Errorf("snapshot %d before the first Publish", s.Number())
	}
	if s := pub.NewReader().Enter(); s != nil {
		t.Errorf("a reader gets snapshot %d before the first Publish", s.Number())
	}
	s, _ := policy.NewStore().Commit()
	pub.Publish(s)
	if pub.Snapshot() != s {
		t.Error("Snapshot does not return the published snapshot")
	}
}
