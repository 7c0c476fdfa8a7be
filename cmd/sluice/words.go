package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"
)

// within bounds ctx. The cause of its end names what was awaited and for how long:
// "context deadline exceeded" names neither. Who returns an error because a context
// ended takes it from context.Cause.
func within(ctx context.Context, timeout time.Duration, what string) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, timeout, fmt.Errorf("it took longer than %v %s", timeout, what))
}

// worded leaves attributes out of a log line that are empty, such as the field of a
// problem that concerns a whole file. An error without a text is named by its type,
// since that there was one must not be lost.
func worded(_ []string, a slog.Attr) slog.Attr {
	switch a.Value.Kind() {
	case slog.KindString:
		if a.Value.String() == "" {
			return slog.Attr{}
		}
	case slog.KindAny:
		if err, is := a.Value.Any().(error); is && err.Error() == "" {
			return slog.String(a.Key, fmt.Sprintf("an error of type %T without a text", err))
		}
	default:
	}
	return a
}
