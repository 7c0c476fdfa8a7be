package kube

import (
	"context"
	"log/slog"
)

// demoted is a handler for what client-go tells of its work, which is of interest
// to who debugs it: nothing of it is above slog.LevelDebug.
type demoted struct{ slog.Handler }

// Enabled says whether anything is wanted that is not even a matter of debugging.
func (d demoted) Enabled(ctx context.Context, level slog.Level) bool {
	return d.Handler.Enabled(ctx, min(level, slog.LevelDebug))
}

// Handle passes the record on with its new level.
func (d demoted) Handle(ctx context.Context, r slog.Record) error {
	r.Level = min(r.Level, slog.LevelDebug)
	return d.Handler.Handle(ctx, r)
}

// WithAttrs keeps the demotion.
func (d demoted) WithAttrs(attrs []slog.Attr) slog.Handler {
	return demoted{d.Handler.WithAttrs(attrs)}
}

// WithGroup keeps the demotion.
func (d demoted) WithGroup(name string) slog.Handler { return demoted{d.Handler.WithGroup(name)} }
