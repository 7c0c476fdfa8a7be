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
	// Err is why the kind cannot be followed; nil while its watch is open. If it is not
	// nil, the known objects stay in force.
	Err      error
	Since    time.Time // when Err changed, or became another kind of error
	Objects  int       // in the last full list
	Events   uint64    // added, changed and deleted objects, without those of lists
	Restarts uint64    // watches that were opened again
	Errors   uint64    // failed requests, and watches that ended with an error
}

// health records the outcome of requests, and logs each failure once while it lasts.
type health struct {
	host string
	log  *slog.Logger
	now  func() time.Time

	mu     sync.Mutex
	kinds  []*kindState
	logged []string // keys of the logged failures; empty once all are over
	began  time.Time
}

type kindState struct {
	kind    *kind
	view    KindHealth
	failure *APIError
	watched bool // a watch has been open
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

// events counts events. It takes no lock, because it is called for each object.
func (h *health) events(k *kind, n uint64) { h.of(k).events.Add(n) }

// synced records the arrival of a full list.
func (h *health) synced(k *kind, objects int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.of(k)
	s.view.Synced, s.view.Objects = true, objects
	h.log.Debug("listed", "kind", k.name, "objects", objects)
}

// asked records the outcome of a request.
func (h *health) asked(k *kind, verb string, err error) {
	if isRestart(err) {
		return // the agent ends, or the reflector lists again
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
		return // the failure lasts until a watch is open
	}
	s.view.Errors++
	h.setFailure(s, newAPIError(err, h.host, k, verb))
}

// setFailure replaces the failure of a kind, where nil is none, and logs the change.
func (h *health) setFailure(s *kindState, t *APIError) {
	if t == nil && s.failure == nil || t != nil && s.failure != nil && s.failure.alike(t) {
		return
	}
	s.failure, s.view.Err, s.view.Since = t, nil, h.now()
	if t == nil {
		h.recovered()
		return
	}
	s.view.Err = t
	if len(h.logged) == 0 {
		h.began = h.now()
	}
	if key := t.key(); !slices.Contains(h.logged, key) {
		h.logged = append(h.logged, key)
		h.log.Warn("cannot follow the Kubernetes API; known objects stay in force", event.APIUnreachable.Attr(), "problem", t)
	}
}

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
