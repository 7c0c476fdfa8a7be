package manifests

import (
	"context"
	"log/slog"
	"strings"

	"sluice/filter/policy"
)

// Source is folders of manifests as a source of a watch.Keeper.
type Source struct {
	Dirs   []string     // folders, or single files; of an object that is in two, the first counts
	Logger *slog.Logger // gets what is wrong in the files; nil discards it
	// OnProblems, unless nil, gets all that is wrong in the files, whenever
	// it has changed; before the first call that is nothing. It is called by one
	// goroutine at a time.
	OnProblems func([]Problem)
	// OnNotRead, unless nil, likewise gets the kinds of objects that were passed over
	// and may change what is allowed.
	OnNotRead func([]NotRead)
}

// String names the folders.
func (s Source) String() string { return "folder " + strings.Join(s.Dirs, ", ") }

// Run follows the folders until ctx ends.
func (s Source) Run(ctx context.Context, update func(func(*policy.World))) error {
	return s.follow(ctx, func(d Delta) { update(d.Apply) })
}
