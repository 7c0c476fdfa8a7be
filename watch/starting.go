package watch

import (
	"context"

	"sluice/filter/policy"
)

// Starting is a Source that updates the store when the addresses of starting pods change.
// Such an address is pending as soon as Pods has it, even before the update. The update adjusts
// what the store derives from these addresses, such as the owner of an address that several
// pods claim.
type Starting struct{ Pods *policy.StartingPods }

// String names the source.
func (Starting) String() string { return "pods that start" }

// Run updates the store at once, and after each change of the addresses, until ctx ends.
func (s Starting) Run(ctx context.Context, update func(Update)) error {
	for {
		changed := s.Pods.Changed() // get the channel before the update reads the addresses, so that no change is missed
		update((*policy.Store).RenewStartingPods)
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}
