package kube

import (
	"context"
	"log/slog"
)

// debugHandler lowers client-go's log records to slog.LevelDebug. They are useful only for
// debugging.
type debugHandler struct{ slog.Handler }

// Enabled reports whether the level, lowered to debug, is enabled.
func (d debugHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return d.Handler.Enabled(ctx, min(level, slog.LevelDebug))
}

// Handle lowers the level of the record and passes the record on.
func (d debugHandler) Handle(ctx context.Context, r slog.Record) error {
	r.Level = min(r.Level, slog.LevelDebug)
	return d.Handler.Handle(ctx, r)
}

// WithAttrs keeps the lowered level.
func (d debugHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return debugHandler{d.Handler.WithAttrs(attrs)}
}

// WithGroup keeps the lowered level.
func (d debugHandler) WithGroup(name string) slog.Handler {
	return debugHandler{d.Handler.WithGroup(name)}
}
