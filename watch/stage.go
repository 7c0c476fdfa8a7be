package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"sluice/filter/policy"
)

// Change is a snapshot that has been published, and what it changes.
type Change struct {
	Snapshot *policy.Snapshot
	// Addresses are those whose verdicts may differ from those of the snapshot before.
	Addresses policy.Changes
	// Unsettled is set while verdicts of an older snapshot may still take effect, and in
	// the first application after that.
	Unsettled bool
}

// Stage puts changes into force in one place.
type Stage interface {
	fmt.Stringer
	// Apply returns when nothing in that place is decided by an older snapshot. An error
	// ends Run, except for ErrUnsettled and when ctx has ended.
	Apply(ctx context.Context, c Change) error
}

// StageFunc is a stage that consists of one function.
type StageFunc struct {
	Name string
	Func func(ctx context.Context, c Change) error
}

// String names the stage.
func (s StageFunc) String() string { return s.Name }

// Apply calls the function.
func (s StageFunc) Apply(ctx context.Context, c Change) error { return s.Func(ctx, c) }

// ErrUnsettled is the error of a stage where something may still be decided by an older
// snapshot. The later stages get the change as unsettled, and the Keeper applies it again.
var ErrUnsettled = errors.New("an older snapshot is still in use")

const (
	// workersTimeout bounds the wait for a worker. One that takes longer is stuck, and must
	// not keep new policies from all others.
	workersTimeout = 5 * time.Second
	// unsettledInterval is the time after which an unsettled change is applied again.
	unsettledInterval = time.Second
)

// Workers is the stage of the goroutines that decide packets by a published snapshot.
type Workers struct {
	Published *policy.Published
	Logger    *slog.Logger // nil discards
}

// String names the stage.
func (Workers) String() string { return "workers" }

// Apply waits until no worker uses an older snapshot.
func (w Workers) Apply(ctx context.Context, _ Change) error {
	limited, stop := context.WithTimeoutCause(ctx, workersTimeout, ErrUnsettled)
	defer stop()
	err := w.Published.Settle(limited)
	if errors.Is(err, ErrUnsettled) && w.Logger != nil {
		w.Logger.Error("a worker holds on to an old snapshot; going on without it", "waited", workersTimeout)
	}
	if err != nil {
		return fmt.Errorf("wait for the workers: %w", err)
	}
	return nil
}
