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

	"sluice/cmd/sluice/agent/status"
	"sluice/filter/event"
)

const (
	// listenInterval is the time between two attempts to listen, and between two checks of
	// the socket.
	listenInterval = time.Second
	// listenTimeout is the time for which listening must have failed before the agent
	// reports a problem. A shorter failure is normal while an agent takes over, because its
	// predecessor still listens.
	listenTimeout = 30 * time.Second
	// headerTimeout bounds the time to read the header of a request, and readTimeout the time
	// to read the whole request.
	headerTimeout = 5 * time.Second
	readTimeout   = 10 * time.Second
	// writeTimeout bounds the time from the header of a request to the end of its answer, for
	// callers that read slowly or not at all.
	writeTimeout = 30 * time.Second
	// idleTimeout bounds the wait for the next request on a connection. It is longer than
	// the usual interval of a scrape.
	idleTimeout = 90 * time.Second
	// maxHeader and maxBody bound the size of a request, in bytes. Valid requests have a
	// header of some hundred bytes and no body, except for those of policies' versions on the socket.
	maxHeader, maxBody = 8 << 10, 1 << 10
)

// Options configure Serve.
type Options struct {
	Address string // address of the HTTP server; empty disables it
	Socket  string // path of the unix socket for sluice status; empty disables it
	// HandOver answers an agent that wants to take over. nil rejects such requests.
	HandOver http.HandlerFunc
	// Flows streams records of flows, and Denials lists the last denials. nil disables the request.
	Flows, Denials http.HandlerFunc
	// Policies returns the policies in force. If it is nil, the status does not list them.
	Policies func() []status.PolicyInForce
	// Versions answers which versions of given policies are in force. nil disables the request.
	Versions http.HandlerFunc
	// TookOver reports whether this agent has taken over from the agent that listens on the
	// socket. If so, this agent may replace that agent's socket. nil means that no agent has
	// yielded.
	TookOver func() bool
	// Yielded is closed when TookOver becomes true, so that Serve replaces the socket at once. It may be
	// nil.
	Yielded <-chan struct{}
	// Services are further servers. Each has its own address or socket.
	Services []Service
	Logger   *slog.Logger // nil discards all log lines
}

// Service is a server of another protocol. Serve treats it like its own servers: it reopens the listener
// when clients can no longer reach it, and bounds the number of connections.
type Service struct {
	Name string // address, or path of a unix socket that only root may open
	Unix bool
	Flag string // the flag that sets Name; hints name it
	// Problems returns the problems of the service, except those of listening. If it is nil, there are
	// none.
	Problems func() []status.Problem
	Server
}

// Server answers requests that arrive at a listener. An *http.Server is one.
type Server interface {
	Serve(net.Listener) error
	Close() error
}

// Serve answers requests until ctx ends. If it cannot listen, it logs the reason and keeps
// trying. It calls read() to get the state for each request.
func Serve(ctx context.Context, opts Options, read func() *State) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.TookOver == nil {
		opts.TookOver = func() bool { return false }
	}
	may := limitsFor(descriptors())
	node, others, socket := newSlots(may.node, may.node), newSlots(may.others, may.perSource), newSlots(may.socket, may.socket)
	all := []*slots{node, others, socket}
	address := &binding{name: opts.Address, hint: "end the process that listens there, or give another address with --http-address", log: opts.Logger}
	path := &binding{name: opts.Socket, hint: "end the agent or move the file away, or give another path with --socket", log: opts.Logger, free: opts.Yielded}
	bindings := []*binding{address, path}
	var group errgroup.Group
	for _, s := range opts.Services {
		b := &binding{name: s.Name, hint: "end what uses it, or give another one with " + s.Flag, log: opts.Logger, further: s.Problems}
		listen := listenTCP(newSlots(may.node, may.node), newSlots(may.others, may.perSource))
		if s.Unix {
			listen, b.free = listenUnix(opts, newSlots(may.socket, may.socket)), opts.Yielded
		}
		bindings = append(bindings, b)
		group.Go(func() error { b.serve(ctx, s.Server, listen); return nil })
	}
	whole := withServers(read, all, bindings...)
	if opts.Address != "" {
		group.Go(func() error {
			address.serve(ctx, newServer(Handler(whole), maxBody, opts.Logger), listenTCP(node, others))
			return nil
		})
	}
	if opts.Socket != "" {
		group.Go(func() error {
			path.serve(ctx, newServer(socketHandler(opts, whole), status.MaxVersionsRequest, opts.Logger), listenUnix(opts, socket))
			return nil
		})
	}
	group.Go(func() error { warnOfDisplaced(ctx, opts.Logger, all); return nil })
	_ = group.Wait() // no error is possible
}

// withServers wraps the function "read". The function that it returns also sets the servers'
// connections in the state, and adds a problem for each address on which a server cannot
// listen, and the problems of Services.
func withServers(read func() *State, all []*slots, listens ...*binding) func() *State {
	return func() *State {
		s := *read()
		s.Connections = connections(all)
		for _, p := range listens {
			s.Problems = append(slices.Clip(s.Problems), p.problems()...)
		}
		return &s
	}
}

// socketHandler answers on the socket, which only root may open.
func socketHandler(opts Options, read func() *State) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		s := read().Status()
		if opts.Policies != nil && r.FormValue("policies") == "true" {
			s.Policies = opts.Policies()
		}
		writeJSON(w, s)
	})
	if opts.Versions != nil {
		mux.HandleFunc("POST /versions", opts.Versions)
	}
	if opts.Denials != nil {
		mux.HandleFunc("GET /denials", opts.Denials)
	}
	if opts.Flows != nil {
		mux.HandleFunc("GET /flows", func(w http.ResponseWriter, r *http.Request) {
			setDeadlines(w, time.Time{}) // none: the answer lasts until the client hangs up
			opts.Flows(w, r)
		})
	}
	if opts.HandOver != nil {
		mux.HandleFunc("POST /handover", func(w http.ResponseWriter, r *http.Request) {
			// The request stays open for as long as the other agent enforces.
			slotOf(r.Context()).set(func(c *slotConn) { c.pinned = true })
			setDeadlines(w, time.Time{})
			opts.HandOver(w, r)
		})
	}
	return mux
}

// listener is a function that opens a listener at an address or path. It also returns a
// function that reports whether clients can no longer reach this listener, so that the
// agent should open another one.
type listener func(context.Context, string) (net.Listener, func() bool, error)

func listenTCP(node, others *slots) listener {
	return func(ctx context.Context, address string) (net.Listener, func() bool, error) {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		return limited{l, tcpSlots(node, others)}, func() bool { return false }, err
	}
}

func listenUnix(opts Options, in *slots) listener {
	return func(_ context.Context, path string) (net.Listener, func() bool, error) {
		s, err := listenSocket(path, opts.occupant())
		if err != nil {
			return nil, nil, err
		}
		lost := func() bool { return !s.inPlace() && checkFree(path, opts.occupant()) == nil }
		return limited{s, unixSlots(in)}, lost, nil
	}
}

// warnOfDisplaced logs the number of displaced connections, at most once in each
// displacedInterval.
func warnOfDisplaced(ctx context.Context, log *slog.Logger, all []*slots) {
	tick := time.NewTicker(displacedInterval)
	defer tick.Stop()
	for last := connections(all).Displaced; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if now := connections(all).Displaced; now > last {
			log.Warn("too many connections; closed the oldest ones of the sources with most connections", "closed", now-last)
			last = now
		}
	}
}

// newServer returns a server with a timeout for each part of a request, and bodies of at most maxBody
// bytes.
func newServer(handler http.Handler, maxBody int64, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           http.MaxBytesHandler(markBusy(handler), maxBody),
		ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeader, ConnContext: withConn,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// markBusy marks the connection of a request as busy until it is answered.
func markBusy(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := slotOf(r.Context())
		c.set(func(c *slotConn) { c.busy = true })
		defer c.set(func(c *slotConn) { c.busy = false })
		next.ServeHTTP(w, r)
	})
}

// setDeadlines sets the deadline for reading and answering a request; zero means none. When
// the deadline for reading expires, net/http also cancels the context of a request in progress.
func setDeadlines(w http.ResponseWriter, until time.Time) {
	control := http.NewResponseController(w)
	// Ignore the errors: they only mean that the writer does not support deadlines.
	_ = control.SetReadDeadline(until)
	_ = control.SetWriteDeadline(until)
}

// binding is an address or a path on which the agent listens.
type binding struct {
	name string
	hint string // what to do if the agent cannot listen there
	log  *slog.Logger
	free <-chan struct{} // closed when another agent has given up the name; may be nil
	// further returns the problems of the server, except those of listening. It may be nil.
	further func() []status.Problem

	mu     sync.Mutex
	failed error     // the reason why the agent does not listen; nil if it does
	since  time.Time // the beginning of the failure
	warned bool      // a warning about this failure was logged
}

// serve listens and answers until ctx ends. It opens a new listener when clients can no
// longer reach the old one, for either of two reasons: the socket was deleted, or an agent
// that took over has replaced the socket with its own and has died since. Requests in
// progress continue.
func (p *binding) serve(ctx context.Context, server Server, listen listener) {
	defer server.Close()
	tick := time.NewTicker(listenInterval)
	defer tick.Stop()
	for free := p.free; ctx.Err() == nil; {
		l, lost, err := listen(ctx, p.name)
		p.report(ctx, err)
		var ended chan error
		if err == nil {
			ended = make(chan error, 1)
			go func() { ended <- server.Serve(l) }()
		}
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return // the server closes its listener
			case err := <-ended:
				p.report(ctx, err)
				ended, lost, waiting = nil, nil, false
			case <-free:
				free, waiting = nil, ended != nil
			case <-tick.C:
				waiting = ended != nil && !lost()
			}
		}
		if ended != nil {
			_ = l.Close() // clients can no longer reach this listener
			<-ended
		}
	}
}

// report logs that the agent listens (err is nil), or the reason why it does not (err). It
// logs a reason only when the reason changes. If the agent has not listened for
// listenTimeout, report also logs one warning.
func (p *binding) report(ctx context.Context, err error) {
	if ctx.Err() != nil || errors.Is(err, http.ErrServerClosed) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.failed
	p.failed = err
	if err == nil {
		p.warned = false
		p.log.Info("listening", "address", p.name)
		return
	}
	if was == nil {
		p.since = time.Now()
	}
	if was == nil || was.Error() != err.Error() {
		p.log.Info("cannot listen yet; trying again", event.AddressInUse.Attr(), "address", p.name, "err", err)
	}
	if !p.warned && time.Since(p.since) > listenTimeout {
		p.warned = true
		p.log.Warn("cannot listen; policies are still enforced", "address", p.name, "err", err, "hint", p.hint)
	}
}

// problems returns the problems that further returns. If the agent has warned that it cannot listen, it
// also returns a problem about this.
func (p *binding) problems() (all []status.Problem) {
	if p.further != nil {
		all = p.further()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed != nil && p.warned {
		all = append(all, status.Problem{Kind: "listen", Where: p.name, Detail: p.failed.Error(), Hint: p.hint})
	}
	return all
}
