package telemetry

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"sluice/filter/event"
)

const (
	// again is how long an address that could not be had is left alone, and how
	// often the socket is looked after.
	again = time.Second
	// patient bounds how long the agent may fail to listen on a place before that is a
	// problem: an agent that takes over waits for the one from before.
	patient = 30 * time.Second
	// hello bounds how long a caller may take for the header of a request, and
	// readTimeout for all of it.
	hello       = 5 * time.Second
	readTimeout = 10 * time.Second
	// writeTimeout bounds how long an answer takes from the request on, with a caller
	// that reads slowly, or not at all.
	writeTimeout = 30 * time.Second
	// idleTimeout bounds the wait for the next request on a connection: longer than
	// the usual interval of a scrape.
	idleTimeout = 90 * time.Second
	// No request that is answered has a header of more than some hundred bytes, or a
	// body.
	maxHeader, maxBody = 8 << 10, 1 << 10
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
	may := allowed(descriptors())
	node, others, socket := newPlaces(may.node, may.node), newPlaces(may.others, may.perSource), newPlaces(may.socket, may.socket)
	all := []*places{node, others, socket}
	address := &place{name: opts.Address, hint: "end the process that listens there, or give another address with --http-address", log: opts.Logger}
	path := &place{name: opts.Socket, hint: "free the path, or give another one with --socket", log: opts.Logger}
	whole := complete(read, all, address, path)
	var group errgroup.Group
	if opts.Address != "" {
		group.Go(func() error { address.serve(ctx, Handler(whole), listenTCP(node, others)); return nil })
	}
	if opts.Socket != "" {
		group.Go(func() error { path.serve(ctx, socketHandler(opts, whole), listenUnix(opts, socket)); return nil })
	}
	group.Go(func() error { warnOfDisplaced(ctx, opts.Logger, all); return nil })
	_ = group.Wait() // none of them fails
}

// complete adds to a state what the server itself counts, and the places on which it
// cannot listen.
func complete(read func() *State, all []*places, listens ...*place) func() *State {
	return func() *State {
		s := *read()
		s.Connections = connections(all)
		for _, p := range listens {
			s.Problems = append(slices.Clip(s.Problems), p.problems()...)
		}
		return &s
	}
}

// socketHandler answers root on this node.
func socketHandler(opts Options, read func() *State) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, read().Status()) })
	if opts.HandOver != nil {
		mux.HandleFunc("POST /handover", func(w http.ResponseWriter, r *http.Request) {
			// The request stays open for as long as the other agent enforces.
			placeOf(r.Context()).set(func(c *placed) { c.stays = true })
			extend(w, time.Time{})
			opts.HandOver(w, r)
		})
	}
	return mux
}

// listener opens a listener, and the function that reports whether it was lost.
type listener func(context.Context, string) (net.Listener, func() bool, error)

func listenTCP(node, others *places) listener {
	return func(ctx context.Context, address string) (net.Listener, func() bool, error) {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		return limited{l, ofTCP(node, others)}, func() bool { return false }, err
	}
}

func listenUnix(opts Options, in *places) listener {
	return func(_ context.Context, path string) (net.Listener, func() bool, error) {
		s, err := listenSocket(path, opts.Displace())
		if err != nil {
			return nil, nil, err
		}
		lost := func() bool { return !s.inPlace() && vacant(path, opts.Displace()) == nil }
		return limited{s, ofSocket(in)}, lost, nil
	}
}

// warnOfDisplaced says once in a while how many connections were closed for others.
func warnOfDisplaced(ctx context.Context, log *slog.Logger, all []*places) {
	tick := time.NewTicker(lookout)
	defer tick.Stop()
	for last := connections(all).Displaced; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if now := connections(all).Displaced; now > last {
			log.Warn("more connections than are answered at once: the oldest of those who have most were closed", "closed", now-last)
			last = now
		}
	}
}

// newServer returns a server that waits for no caller longer than it must.
func newServer(handler http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           http.MaxBytesHandler(occupying(handler), maxBody),
		ReadHeaderTimeout: hello, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeader, ConnContext: withConn,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// occupying marks connections with a request that is being answered.
func occupying(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := placeOf(r.Context())
		c.set(func(c *placed) { c.busy = true })
		defer c.set(func(c *placed) { c.busy = false })
		next.ServeHTTP(w, r)
	})
}

// extend gives a request until a time to be read and answered; zero is without end.
// The end of the time to read also ends the context of a request that is answered.
func extend(w http.ResponseWriter, until time.Time) {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(until)  // where it cannot be set, there is none
	_ = control.SetWriteDeadline(until) // likewise
}

// place is where the agent answers.
type place struct {
	name string
	hint string // what to do if the agent cannot listen there for long
	log  *slog.Logger

	mu     sync.Mutex
	failed error     // why it does not answer; nil if it does
	since  time.Time // when it stopped answering, or first failed to
	warned bool
}

// serve listens and answers until ctx ends, and listens again when the place was
// lost: somebody has cleaned up /run, or the agent that took over from this one is
// gone. Requests that are open do not notice.
func (p *place) serve(ctx context.Context, handler http.Handler, listen listener) {
	server := newServer(handler, p.log)
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
	if ctx.Err() != nil || errors.Is(err, http.ErrServerClosed) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.failed
	p.failed = err
	if err == nil {
		p.warned = false
		p.log.Info("answering", "at", p.name)
		return
	}
	if was == nil {
		p.since = time.Now()
	}
	if was == nil || was.Error() != err.Error() {
		p.log.Info("not answering yet; trying again, and enforcing meanwhile", event.AddressInUse.Attr(), "at", p.name, "because", err)
	}
	if !p.warned && time.Since(p.since) > patient {
		p.warned = true
		p.log.Warn("cannot answer; enforcing all the same", "at", p.name, "err", err)
	}
}

// problems returns the problem that the agent cannot listen there, once the warning
// was logged.
func (p *place) problems() []Problem {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed == nil || !p.warned {
		return nil
	}
	return []Problem{{Kind: "listen", Where: p.name, Detail: p.failed.Error(), Mend: p.hint}}
}
