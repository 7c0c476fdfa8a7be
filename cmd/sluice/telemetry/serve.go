package telemetry

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// again is how long an address that could not be had is left alone, and how
	// often the socket is looked after.
	again = time.Second
	// patient is for how long it is no news that a place cannot be had: an agent that
	// takes over waits for the one from before.
	patient = 30 * time.Second
	// hello is how long a caller may take to say what it wants.
	hello = 5 * time.Second
)

// Options say where an agent answers.
type Options struct {
	Address string // of HTTP; empty for none
	Socket  string // path of the unix socket of sluice status; empty for none
	// HandOver answers an agent that wants to take over; nil refuses.
	HandOver http.HandlerFunc
	// Displace says whether the agent that answers on the socket has yielded to
	// this one; nil says never.
	Displace func() bool
	Logger   *slog.Logger // nil discards
}

// Serve answers until ctx ends. What cannot be listened on is said once, and
// tried again until it can.
func Serve(ctx context.Context, opts Options, read func() *State) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Displace == nil {
		opts.Displace = func() bool { return false }
	}
	var group errgroup.Group
	if opts.Address != "" {
		place := &place{name: opts.Address, log: opts.Logger}
		group.Go(func() error { place.serve(ctx, Handler(read), listenTCP); return nil })
	}
	if opts.Socket != "" {
		mux := http.NewServeMux()
		mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, read().Status()) })
		if opts.HandOver != nil {
			mux.HandleFunc("POST /handover", opts.HandOver)
		}
		place := &place{name: opts.Socket, log: opts.Logger}
		group.Go(func() error {
			place.serve(ctx, mux, func(_ context.Context, path string) (net.Listener, func() bool, error) {
				s, err := listenSocket(path, opts.Displace())
				if err != nil {
					return nil, nil, err
				}
				lost := func() bool { return !s.inPlace() && vacant(path, opts.Displace()) == nil }
				return s, lost, nil
			})
			return nil
		})
	}
	_ = group.Wait() // none of them fails
}

func listenTCP(ctx context.Context, address string) (net.Listener, func() bool, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	return l, func() bool { return false }, err
}

// place is where the agent answers.
type place struct {
	name string
	log  *slog.Logger
	// What keeps it from answering, what of that was said, and since when it is so.
	said   string
	warned bool
	since  time.Time
}

// serve listens and answers until ctx ends, and listens again when the place was
// lost: somebody has cleaned up /run, or the agent that took over from this one is
// gone. Requests that are open do not notice.
func (p *place) serve(ctx context.Context, handler http.Handler, listen func(context.Context, string) (net.Listener, func() bool, error)) {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: hello}
	defer server.Close()
	tick := time.NewTicker(again)
	defer tick.Stop()
	for ctx.Err() == nil {
		l, lost, err := listen(ctx, p.name)
		p.say(ctx, err)
		var ended chan error
		if err == nil {
			ended = make(chan error, 1)
			go func() { ended <- server.Serve(l) }()
		}
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return // and the server closes what it listens on
			case err := <-ended:
				p.say(ctx, err)
				ended, lost, waiting = nil, nil, false
			case <-tick.C:
				waiting = ended != nil && !lost()
			}
		}
		if ended != nil {
			_ = l.Close() // nobody can reach it
			<-ended
		}
	}
}

// say logs what keeps the agent from answering, once, and once more as a warning
// if it stays so; or that it answers.
func (p *place) say(ctx context.Context, err error) {
	switch {
	case ctx.Err() != nil || errors.Is(err, http.ErrServerClosed):
	case err == nil:
		p.said, p.warned = "", false
		p.log.Info("answering", "at", p.name)
	case err.Error() != p.said:
		p.said, p.warned, p.since = err.Error(), false, time.Now()
		p.log.Info("not answering yet; trying again, and enforcing meanwhile", "at", p.name, "because", err)
	case !p.warned && time.Since(p.since) > patient:
		p.warned = true
		p.log.Warn("cannot answer; enforcing all the same", "at", p.name, "err", err)
	}
}
