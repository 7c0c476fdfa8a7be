package kube

import (
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"sluice/filter/event"
)

// KindHealth is the state of the watch of one kind of objects.
type KindHealth struct {
	Kind   string // as in "Pod"
	Synced bool   // a full list has arrived, and is in the policy store
	// Err is the last failure of a list or watch of the kind. It is nil before the first
	// failure, and again once a watch of the kind has been opened. After a failure, the objects
	// that were read before stay in force.
	Err      error
	Since    time.Time // time of the last change of Err; before the first change, the time at which the source was created
	Objects  int       // number of objects in the last full list
	Events   uint64    // added, changed and deleted objects, except for those in lists
	Restarts uint64    // watches that were opened again
	Errors   uint64    // failed requests, and watches that ended with an error
}

// health records the outcome of requests. It logs each failure once while it lasts.
type health struct {
	host string
	log  *slog.Logger
	now  func() time.Time

	mu     sync.Mutex
	kinds  []*kindState
	logged []string  // keys of the failures logged in the current outage, which lasts until no kind has a failure
	began  time.Time // time of the first failure in the current outage
}

type kindState struct {
	kind    *kind
	view    KindHealth
	failure *APIError
	watched bool // a watch of the kind has been open before
	events  atomic.Uint64
}

func newHealth(host string, log *slog.Logger) *health {
	h := &health{host: host, log: log, now: time.Now}
	for _, k := range kinds {
		h.kinds = append(h.kinds, &kindState{kind: k, view: KindHealth{Kind: k.name, Since: h.now()}})
	}
	return h
}

func (h *health) of(k *kind) *kindState {
	return h.kinds[slices.IndexFunc(h.kinds, func(s *kindState) bool { return s.kind == k })]
}

func (h *health) list() []KindHealth {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []KindHealth
	for _, s := range h.kinds {
		view := s.view
		view.Events = s.events.Load()
		all = append(all, view)
	}
	return all
}

// events counts events. It takes no lock, because it is called for every event.
func (h *health) events(k *kind, n uint64) { h.of(k).events.Add(n) }

// synced records that a full list has arrived.
func (h *health) synced(k *kind, objects int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.of(k)
	s.view.Synced, s.view.Objects = true, objects
	h.log.Debug("listed", "kind", k.name, "objects", objects)
}

// requestDone records the outcome of a request.
func (h *health) requestDone(k *kind, verb string, err error) {
	if isRestart(err) {
		return // no failure: the agent is ending, or the watch has expired and the reflector lists again
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.of(k)
	if err == nil {
		if verb == "watch" {
			if s.watched {
				s.view.Restarts++
			}
			s.watched = true
			h.setFailure(s, nil)
		}
		return // a list does not end an earlier failure; only an open watch does
	}
	s.view.Errors++
	h.setFailure(s, newAPIError(err, h.host, k, verb))
}

// setFailure sets the failure of a kind and logs it. If failure is nil, it clears the
// failure of the kind.
func (h *health) setFailure(s *kindState, failure *APIError) {
	if failure == nil && s.failure == nil || failure != nil && s.failure != nil && s.failure.alike(failure) {
		return
	}
	s.failure, s.view.Err, s.view.Since = failure, nil, h.now()
	if failure == nil {
		h.recovered()
		return
	}
	s.view.Err = failure
	if len(h.logged) == 0 {
		h.began = h.now()
	}
	if key := failure.key(); !slices.Contains(h.logged, key) {
		h.logged = append(h.logged, key)
		h.log.Warn("cannot follow the Kubernetes API; known objects stay in force", event.APIUnreachable.Attr(), "problem", failure)
	}
}

// recovered logs that the API server is reachable again if no kind has a failure any more.
func (h *health) recovered() {
	for _, s := range h.kinds {
		if s.failure != nil {
			return
		}
	}
	if len(h.logged) > 0 {
		h.logged = nil
		h.log.Info("Kubernetes API reachable again", event.APIReachable.Attr(), "server", h.host, "duration_ms", h.now().Sub(h.began).Milliseconds())
	}
}
