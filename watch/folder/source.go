package folder

import (
	"context"
	"log/slog"

	"sluice/filter/policy"
)

// Source is a folder of manifests as a source of a watch.Keeper.
type Source struct {
	Dir    string       // a folder, or a single file
	Logger *slog.Logger // gets what is wrong in the files; nil discards it
	// OnProblems, unless nil, gets all that is wrong in the files, whenever
	// it has changed; before the first call that is nothing. It is called by one
	// goroutine at a time.
	OnProblems func([]Problem)
}

// String names the folder.
func (s Source) String() string { return "folder " + s.Dir }

// Run follows the folder until ctx ends.
func (s Source) Run(ctx context.Context, update func(func(*policy.World))) error {
	return s.follow(ctx, func(d Delta) { update(d.Apply) })
}
