package kube

import (
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"sluice/filter/event"
)

// KindHealth is how it is with one kind of object.
type KindHealth struct {
	Kind   string // as in "Pod"
	Synced bool   // a full list has come, and the World goes by it
	// Err is why nothing of it is heard; nil while the watch stands. What is known
	// stays in force all the same.
	Err      error
	Since    time.Time // since when Err is as it is, by the error's nature
	Objects  int       // in the last full list
	Events   uint64    // objects that came, changed or went, without those of lists
	Restarts uint64    // watches that were begun again
	Errors   uint64    // requests that failed, and watches that broke off with an error
}

// health notes what becomes of the requests, and logs each trouble once for as long
// as it is there.
type health struct {
	host string
	log  *slog.Logger
	now  func() time.Time

	mu     sync.Mutex
	kinds  []*kindState
	logged []string // the troubles that have been logged, until none is left
	began  time.Time
}

type kindState struct {
	kind    *kind
	view    KindHealth
	failure *APIError
	watched bool // a watch has stood
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

// events counts. It takes no lock: it is called for each object.
func (h *health) events(k *kind, n uint64) { h.of(k).events.Add(n) }

// synced notes that a full list has come.
func (h *health) synced(k *kind, objects int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.of(k)
	s.view.Synced, s.view.Objects = true, objects
	h.log.Debug("listed", "kind", k.name, "objects", objects)
}

// asked notes the answer to a request.
func (h *health) asked(k *kind, verb string, err error) {
	if isRestart(err) {
		return // the agent ends, or the reflector starts over by itself
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
		return // a list is not yet all: the watch is still to come
	}
	s.view.Errors++
	h.setFailure(s, newAPIError(err, h.host, k, verb))
}

// setFailure gives a kind its trouble, or none, and logs what that changes.
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
		h.log.Warn("the Kubernetes API cannot be followed; what is known stays in force", event.APIUnreachable.Attr(), "problem", t)
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
		h.log.Info("the Kubernetes API can be followed again", event.APIReachable.Attr(), "server", h.host, "after", h.now().Sub(h.began).Round(time.Millisecond))
	}
}
