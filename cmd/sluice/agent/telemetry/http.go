package telemetry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// DefaultAddress is the default address of the agent's HTTP server: loopback, and a port that
// other daemons of a node usually leave free.
const DefaultAddress = "127.0.0.1:10301"

// Handler returns the handler of /metrics, /healthz, /readyz and /debug/. Only callers that
// connect from a loopback address get the pages below /debug/, even if the server listens on
// another address too.
func Handler(read func() *State) http.Handler {
	mux := http.NewServeMux()
	// If the server listens beyond loopback, every pod may request these pages, so
	// oneAtATime bounds their CPU time.
	mux.Handle("GET /metrics", oneAtATime(promhttp.HandlerFor(Registry(read), promhttp.HandlerOpts{})))
	mux.Handle("GET /healthz", oneAtATime(&liveness{read: read}))
	mux.Handle("GET /readyz", oneAtATime(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w, read().Unready()) })))
	debug := http.NewServeMux()
	debug.HandleFunc("GET /debug/{$}", index)
	debug.HandleFunc("GET /debug/status", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, read().Status()) })
	debug.HandleFunc("GET /debug/snapshot", func(w http.ResponseWriter, _ *http.Request) { writeSnapshot(w, read()) })
	debug.HandleFunc("GET /debug/endpoint", func(w http.ResponseWriter, r *http.Request) { writeEndpoint(w, r, read().Snapshot) })
	debug.HandleFunc("GET /debug/pprof/", untilDone(pprof.Index))
	debug.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	debug.HandleFunc("GET /debug/pprof/profile", untilDone(pprof.Profile))
	debug.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	debug.HandleFunc("GET /debug/pprof/trace", untilDone(pprof.Trace))
	mux.Handle("/debug/", onlyLocal(debug))
	mux.Handle("GET /{$}", http.RedirectHandler("/debug/", http.StatusFound))
	return mux
}

// onlyLocal rejects callers that do not connect from a loopback address: other machines,
// pods, and processes of this node that connect to another address of the node.
func onlyLocal(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if from, err := netip.ParseAddrPort(r.RemoteAddr); err != nil || !from.Addr().Unmap().IsLoopback() {
			http.Error(w, "/debug/ is only for callers on this node", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

const (
	// pprofDuration is the duration of a profile if the request names none.
	pprofDuration = 30 * time.Second
	// maxPprofDuration bounds the duration that a request may name.
	maxPprofDuration = 5 * time.Minute
)

// untilDone sets the deadline of a request after the end of its profile, which takes
// pprofDuration or the parameter "seconds", whichever is longer.
func untilDone(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		d := pprofDuration
		if text := r.FormValue("seconds"); text != "" {
			seconds, err := strconv.ParseFloat(text, 64)
			if err != nil || !(seconds >= 0 && seconds <= maxPprofDuration.Seconds()) {
				http.Error(w, fmt.Sprintf("seconds: write a number from 0 to %v", maxPprofDuration.Seconds()), http.StatusBadRequest)
				return
			}
			d = max(d, time.Duration(seconds*float64(time.Second)))
		}
		setDeadlines(w, time.Now().Add(d+writeTimeout))
		next(w, r)
	}
}

// oneAtATime lets the handler "next" render at most two pages at the same time: one for a
// caller on this node, and one for any other caller. So the CPU use does not grow with the
// number of callers. oneAtATime buffers each page until it is complete, so that a slow reader
// does not block other callers.
func oneAtATime(next http.Handler) http.Handler {
	node, others := make(chan struct{}, 1), make(chan struct{}, 1)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rendering := others
		if slotOf(r.Context()).source == (netip.Addr{}) {
			rendering = node
		}
		select {
		case rendering <- struct{}{}:
		case <-r.Context().Done():
			return
		}
		p := page{header: w.Header(), status: http.StatusOK}
		func() {
			defer func() { <-rendering }()
			next.ServeHTTP(&p, r)
		}()
		w.WriteHeader(p.status)
		_, _ = w.Write(p.body.Bytes()) // fails only if the caller has hung up
	})
}

// page buffers a response.
type page struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (p *page) Header() http.Header            { return p.header }
func (p *page) WriteHeader(status int)         { p.status = status }
func (p *page) Write(text []byte) (int, error) { return p.body.Write(text) }

// answer writes "ok" or, if the second argument is not empty, status 503 and this argument.
func answer(w http.ResponseWriter, wrong string) {
	if wrong != "" {
		http.Error(w, wrong, http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

// answerTimeout is the time after which the agent counts as dead if packets are queued and
// none is answered.
const answerTimeout = 15 * time.Second

// liveness answers /healthz. If a part of the agent fails, the agent ends, so liveness only
// detects parts that hang. It fails if packets are queued, and the workers have answered
// none for more than answerTimeout. Packets that are held until their pod is known do not
// count, although they are queued in the kernel too.
type liveness struct {
	read func() *State

	mu         sync.Mutex
	answered   uint64    // number of answered packets at the last request
	progressed time.Time // time of the last request that found more answered packets than before, or no packet to answer
}

func (p *liveness) ServeHTTP(w http.ResponseWriter, _ *http.Request) { answer(w, p.failure(p.read())) }

func (p *liveness) failure(s *State) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	answered := s.Queue.Allowed + s.Queue.Denied
	queued := int64(s.Waiting) - s.Queue.Pending
	if queued <= 0 || answered != p.answered || p.progressed.IsZero() {
		p.answered, p.progressed = answered, s.Now
	}
	if still := s.Now.Sub(p.progressed); still > answerTimeout {
		return fmt.Sprintf("%d packets wait in the queues, and none has been answered for %v", queued, still.Round(time.Second))
	}
	return ""
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(v) // fails only if the caller has hung up
}

// CheckAddress returns an error unless text is an address to listen on: an optional IP
// address or localhost, and a port.
func CheckAddress(text string) error {
	host, port, err := net.SplitHostPort(text)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	if err == nil && host != "" && host != "localhost" {
		_, err = netip.ParseAddr(host)
	}
	if err != nil {
		return fmt.Errorf("give an IP address and a port, such as %s, or nothing", DefaultAddress)
	}
	return nil
}
