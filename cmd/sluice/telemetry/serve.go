package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// again is how long an address that could not be had is left alone.
	again = 2 * time.Second
	// hello is how long a caller may take to say what it wants.
	hello = 5 * time.Second
)

// Options say where an agent answers.
type Options struct {
	Address string // of HTTP; empty for none
	Socket  string // path of the unix socket of sluice status; empty for none
	// HandOver answers an agent that wants to take over; nil refuses.
	HandOver http.HandlerFunc
	Logger  *slog.Logger
}

// Serve answers until ctx ends. What cannot be listened on is said once, and
// tried again until it can.
func Serve(ctx context.Context, opts Options, read func() *State) {
	var group errgroup.Group
	if opts.Address != "" {
		group.Go(func() error {
			serve(ctx, opts.Logger, opts.Address, Handler(read), func() (net.Listener, error) {
				return new(net.ListenConfig).Listen(ctx, "tcp", opts.Address)
			})
			return nil
		})
	}
	if opts.Socket != "" {
		status := http.NewServeMux()
		status.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, read().Status()) })
		if opts.HandOver != nil {
			status.HandleFunc("POST /handover", opts.HandOver)
		}
		group.Go(func() error {
			serve(ctx, opts.Logger, opts.Socket, status, func() (net.Listener, error) { return listenSocket(opts.Socket) })
			return nil
		})
	}
	_ = group.Wait() // none of them fails
}

// serve listens and answers, and does so again if that fails.
func serve(ctx context.Context, log *slog.Logger, at string, handler http.Handler, listen func() (net.Listener, error)) {
	said := ""
	for ctx.Err() == nil {
		err := answerOn(ctx, handler, listen, func() {
			said = ""
			log.Info("answering", "at", at)
		})
		if err != nil && ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			log.Warn("cannot answer; trying again, and enforcing meanwhile", "at", at, "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(again):
		}
	}
}

// answerOn answers until ctx ends or the listener fails.
func answerOn(ctx context.Context, handler http.Handler, listen func() (net.Listener, error), begun func()) error {
	l, err := listen()
	if err != nil {
		return err
	}
	begun()
	server := &http.Server{Handler: handler, ReadHeaderTimeout: hello}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		_ = l.Close()
		return fmt.Errorf("answer: %w", err)
	}
	return nil
}
