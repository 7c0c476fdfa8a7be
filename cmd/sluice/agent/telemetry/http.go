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

// DefaultAddress is where an agent answers HTTP: on loopback, at a port that the
// usual agents of a node leave free.
const DefaultAddress = "127.0.0.1:10301"

// Handler answers /metrics, /healthz, /readyz and /debug/. What is below /debug/
// is for callers on this machine alone, whatever the address that is listened on.
func Handler(read func() *State) http.Handler {
	mux := http.NewServeMux()
	// Every pod may request these pages, so inTurn bounds the CPU time that they take.
	mux.Handle("GET /metrics", inTurn(promhttp.HandlerFor(Registry(read), promhttp.HandlerOpts{})))
	mux.Handle("GET /healthz", inTurn(&pulse{read: read}))
	mux.Handle("GET /readyz", inTurn(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w, read().Unready()) })))
	debug := http.NewServeMux()
	debug.HandleFunc("GET /debug/{$}", index)
	debug.HandleFunc("GET /debug/status", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, read().Status()) })
	debug.HandleFunc("GET /debug/snapshot", func(w http.ResponseWriter, _ *http.Request) { writeSnapshot(w, read()) })
	debug.HandleFunc("GET /debug/endpoint", func(w http.ResponseWriter, r *http.Request) { writeEndpoint(w, r, read().Snapshot) })
	debug.HandleFunc("GET /debug/pprof/", long(pprof.Index))
	debug.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	debug.HandleFunc("GET /debug/pprof/profile", long(pprof.Profile))
	debug.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	debug.HandleFunc("GET /debug/pprof/trace", long(pprof.Trace))
	mux.Handle("/debug/", here(debug))
	mux.Handle("GET /{$}", http.RedirectHandler("/debug/", http.StatusFound))
	return mux
}

// here lets callers on this machine pass.
func here(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if from, err := netip.ParseAddrPort(r.RemoteAddr); err != nil || !from.Addr().Unmap().IsLoopback() {
			http.Error(w, "what is below /debug/ is for callers on this node alone", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

const (
	// pprofDefault is how long pprof takes for a profile if the request does not say.
	pprofDefault = 30 * time.Second
	// pprofMost bounds what a request may ask for.
	pprofMost = 5 * time.Minute
)

// long gives a request the seconds that it asks for.
func long(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		d := pprofDefault
		if text := r.FormValue("seconds"); text != "" {
			seconds, err := strconv.ParseFloat(text, 64)
			if err != nil || !(seconds >= 0 && seconds <= pprofMost.Seconds()) {
				http.Error(w, fmt.Sprintf("seconds: write a number from 0 to %v", pprofMost.Seconds()), http.StatusBadRequest)
				return
			}
			d = max(d, time.Duration(seconds*float64(time.Second)))
		}
		extend(w, time.Now().Add(d+writeTimeout))
		next(w, r)
	}
}

// inTurn makes one page at a time, one for callers on this node beside one for
// others, so that many who ask cost no more than one. A page is sent when the next
// one may be made: who reads slowly keeps no others waiting.
func inTurn(next http.Handler) http.Handler {
	node, others := make(chan struct{}, 1), make(chan struct{}, 1)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		turn := others
		if placeOf(r.Context()).source == (netip.Addr{}) {
			turn = node
		}
		select {
		case turn <- struct{}{}:
		case <-r.Context().Done():
			return
		}
		p := page{header: w.Header(), status: http.StatusOK}
		func() {
			defer func() { <-turn }()
			next.ServeHTTP(&p, r)
		}()
		w.WriteHeader(p.status)
		_, _ = w.Write(p.body.Bytes()) // the caller has gone, if anything
	})
}

// page is an answer before it is sent.
type page struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (p *page) Header() http.Header            { return p.header }
func (p *page) WriteHeader(status int)         { p.status = status }
func (p *page) Write(text []byte) (int, error) { return p.body.Write(text) }

// answer says ok, or what is wrong.
func answer(w http.ResponseWriter, wrong string) {
	if wrong != "" {
		http.Error(w, wrong, http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

// stuck is how long packets may wait with none of them answered, before the agent
// counts as dead. It is far longer than any packet is held.
const stuck = 15 * time.Second

// pulse answers /healthz. A part that fails ends the agent, so that what is left
// to find is one that hangs: packets wait, and none is answered.
type pulse struct {
	read func() *State

	mu       sync.Mutex
	answered uint64
	moved    time.Time // when packets were last seen to be answered, or none to wait
}

func (p *pulse) ServeHTTP(w http.ResponseWriter, _ *http.Request) { answer(w, p.wrong(p.read())) }

func (p *pulse) wrong(s *State) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	answered := s.Queue.Allowed + s.Queue.Denied
	if s.Waiting == 0 || answered != p.answered || p.moved.IsZero() {
		p.answered, p.moved = answered, s.Now
	}
	if still := s.Now.Sub(p.moved); still > stuck {
		return fmt.Sprintf("%d packets wait in the queues, and none has been answered for %v", s.Waiting, still.Round(time.Second))
	}
	return ""
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(v) // the caller has gone, if anything
}

// CheckAddress says what is wrong with an address to listen on: a host or
// nothing, and a port.
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
