package kube

import (
	"context"
	"log/slog"
)

// debugHandler is a handler for what client-go tells of its work, which is of interest
// to who debugs it: nothing of it is above slog.LevelDebug.
type debugHandler struct{ slog.Handler }

// Enabled says whether anything is wanted that is not even a matter of debugging.
func (d debugHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return d.Handler.Enabled(ctx, min(level, slog.LevelDebug))
}

// Handle passes the record on with its new level.
func (d debugHandler) Handle(ctx context.Context, r slog.Record) error {
	r.Level = min(r.Level, slog.LevelDebug)
	return d.Handler.Handle(ctx, r)
}

// WithAttrs keeps the demotion.
func (d debugHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return debugHandler{d.Handler.WithAttrs(attrs)}
}

// WithGroup keeps the demotion.
func (d debugHandler) WithGroup(name string) slog.Handler {
	return debugHandler{d.Handler.WithGroup(name)}
}
