package watch

import (
	"context"

	"sluice/filter/policy"
)

// Starting is the addresses of pods that start as a source of a Controller. They are pending
// at once; the source makes what else depends on them follow.
type Starting struct{ Pods *policy.StartingPods }

// String names the source.
func (Starting) String() string { return "pods that start" }

// Run updates the store when the addresses change, until ctx ends.
func (s Starting) Run(ctx context.Context, update func(Update)) error {
	for {
		changed := s.Pods.Changed() // before they are read, so that no change is missed
		update((*policy.Store).RenewStartingPods)
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}
