package watch

import (
	"context"

	"sluice/filter/policy"
)

// Starting is a Source that updates the store when the addresses of starting pods change.
// The addresses themselves are pending at once, without an update. The update is for
// everything else that depends on them.
type Starting struct{ Pods *policy.StartingPods }

// String names the source.
func (Starting) String() string { return "pods that start" }

// Run updates the store, and again after each change of the addresses, until ctx ends.
func (s Starting) Run(ctx context.Context, update func(Update)) error {
	for {
		changed := s.Pods.Changed() // taken before the update reads the addresses, so that no change is missed
		update((*policy.Store).RenewStartingPods)
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}
