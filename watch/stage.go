package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"sluice/filter/policy"
)

// Change is a published snapshot and its difference from the previous one.
type Change struct {
	Snapshot *policy.Snapshot
	// Addresses are the addresses for which a verdict may have changed.
	Addresses policy.Changes
	// Unsettled is set if a stage before this one has returned ErrUnsettled: verdicts of an
	// older snapshot may still take effect. The Controller then applies the change again, and
	// sets Unsettled for all stages of that second pass too.
	Unsettled bool
}

// Stage puts changes into force in one part of the agent.
type Stage interface {
	fmt.Stringer
	// Apply returns when that part uses no snapshot older than c.Snapshot. An error ends
	// Controller.Run, unless it is ErrUnsettled or ctx has ended.
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

// ErrUnsettled is the error of a stage whose part of the agent may still use an older
// snapshot. The later stages get the change with Unsettled set, and the Controller applies
// the change again.
var ErrUnsettled = errors.New("an older snapshot is still in use")

const (
	// workersTimeout bounds the wait for a worker. A worker that takes longer is stuck, and
	// must not delay new policies for the other workers.
	workersTimeout = 5 * time.Second
	// unsettledInterval is the time after which the Controller applies a change again if a
	// stage has returned ErrUnsettled.
	unsettledInterval = time.Second
)

// Workers is the stage of the workers, which decide packets by the published snapshot.
type Workers struct {
	Published *policy.Published
	Logger    *slog.Logger // logs that a worker is stuck; may be nil
}

// String names the stage.
func (Workers) String() string { return "workers" }

// Apply waits until no worker uses an older snapshot.
func (w Workers) Apply(ctx context.Context, _ Change) error {
	limited, stop := context.WithTimeoutCause(ctx, workersTimeout, ErrUnsettled)
	defer stop()
	err := w.Published.Synchronize(limited)
	if errors.Is(err, ErrUnsettled) && w.Logger != nil {
		w.Logger.Error("worker stuck with an old snapshot; continuing without it", "timeout_ms", workersTimeout.Milliseconds())
	}
	if err != nil {
		return fmt.Errorf("wait for the workers: %w", err)
	}
	return nil
}
