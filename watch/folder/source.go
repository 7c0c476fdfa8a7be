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
}

// String names the folder.
func (s Source) String() string { return "folder " + s.Dir }

// Run follows the folder until ctx ends.
func (s Source) Run(ctx context.Context, update func(func(*policy.World))) error {
	return Follow(ctx, s.Dir, s.Logger, func(d Delta) { update(d.Apply) })
}
