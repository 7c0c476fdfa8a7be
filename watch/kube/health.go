package kube

import (
	"cmp"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"sluice/filter/event"
)

// KindHealth is the state of the watch of one kind of objects.
type KindHealth struct {
	Kind string // as in "Pod"
	// Optional reports that a cluster may lack the kind. Version is then the version that is
	// followed, such as "v1beta1". It is empty if the kind is not installed, and until
	// Synced.
	Optional bool
	Version  string
	Synced   bool // a full list has arrived, and is in the policy store
	// Err is the failure that keeps the source from following the kind. It is nil until the
	// first failure, and while the watch of the kind is open. After a failure, the known
	// objects stay in force.
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
	kind     *kind
	view     KindHealth
	failures [2]*APIError // indexed by following and discovering
	watched  bool         // a watch has been open at least once
	stream   bool         // the open watch streams a list that has not arrived yet
	events   atomic.Uint64
}

// The indexes of kindState.failures.
const (
	following   = iota // requests for objects of the kind fail
	discovering        // discovery of the kind's version fails
)

// failure returns the failure to report, or nil. A failure of requests for objects takes
// precedence over one of discovery.
func (s *kindState) failure() *APIError {
	return cmp.Or(s.failures[following], s.failures[discovering])
}

func newHealth(host string, log *slog.Logger) *health {
	h := &health{host: host, log: log, now: time.Now}
	for _, k := range kinds {
		h.kinds = append(h.kinds, &kindState{kind: k, view: KindHealth{Kind: k.name, Optional: k.optional, Since: h.now()}})
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

// failing reports whether a kind has a failure.
func (h *health) failing(k *kind) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.of(k).failure() != nil
}

// skipped logs that the first Update goes ahead without a kind.
func (h *health) skipped(k *kind) {
	h.mu.Lock()
	defer h.mu.Unlock()
	attrs := []any{event.KindSkipped.Attr(), "kind", k.name, "group", k.group.Group}
	if failure := h.of(k).failure(); failure != nil { // it may have ended just now
		attrs = append(attrs, "problem", failure)
	}
	h.log.Warn("cannot read a kind, and the node has no rules yet: enforcing the other policies without it", attrs...)
}

// events counts events. It takes no lock, because it is called for every event.
func (h *health) events(k *kind, n uint64) { h.of(k).events.Add(n) }

// synced records that a full list has arrived.
func (h *health) synced(k *kind, objects int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.of(k)
	s.view.Synced, s.view.Objects = true, objects
	if s.stream {
		s.stream = false
		h.setFailure(s, following, nil)
	}
	h.log.Debug("listed", "kind", k.name, "objects", objects)
}

// streamVerb is the verb of a watch that first streams a list. An earlier failure does not end when
// such a watch is opened, because the objects of the list may be unreadable. It ends when the
// whole list has been read (see synced).
const streamVerb = "stream"

// requestDone records the outcome of a request.
func (h *health) requestDone(k *kind, verb string, err error) {
	if isRestart(err) {
		return // no failure: the agent is ending, or the watch has expired and the reflector lists again
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.of(k)
	s.stream = false
	if err != nil {
		s.view.Errors++
		h.setFailure(s, following, newAPIError(err, h.host, k, verb))
		return
	}
	if verb == "list" {
		return // it does not end an earlier failure; only an open watch does
	}
	if s.watched {
		s.view.Restarts++
	}
	s.watched = true
	if s.stream = verb == streamVerb; !s.stream {
		h.setFailure(s, following, nil)
	}
}

// discovered records the outcome of a discovery.
func (h *health) discovered(k *kind, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.of(k)
	if err == nil {
		h.setFailure(s, discovering, nil)
		return
	}
	s.view.Errors++
	h.setFailure(s, discovering, newDiscoveryError(err, h.host, k))
}

// serves records and logs the version in which an optional kind is followed from now on. If
// known is false, it is the first version that discovery has found, and there is no version
// "before".
func (h *health) serves(k *kind, now, before schema.GroupVersion, known bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.of(k)
	s.view.Version = now.Version
	h.setFailure(s, following, nil) // that failure concerned the previous version
	kind, group := slog.String("kind", k.name), slog.String("group", k.group.Group)
	switch {
	case now != notServed && before != notServed:
		h.log.Info("API version of a kind changed", event.KindServed.Attr(), kind, group, "version", now.Version, "previous", before.Version)
	case now != notServed:
		h.log.Info("kind installed in the cluster", event.KindServed.Attr(), kind, group, "version", now.Version)
	case known:
		h.log.Warn("kind removed from the cluster: its objects are not in force any more", event.KindNotServed.Attr(), kind, group, "previous", before.Version)
	default:
		h.log.Info("kind not installed in the cluster", event.KindNotServed.Attr(), kind, group)
	}
}

// setFailure sets the failure with the index "which" of a kind, and logs it. If failure is nil,
// setFailure clears it.
func (h *health) setFailure(s *kindState, which int, failure *APIError) {
	was, shown := s.failures[which], s.failure()
	if failure == nil && was == nil || failure != nil && was != nil && was.alike(failure) {
		return
	}
	s.failures[which] = failure
	if now := s.failure(); now == nil {
		s.view.Err, s.view.Since = nil, h.now()
	} else if now != shown {
		s.view.Err, s.view.Since = now, h.now()
	}
	if failure == nil {
		h.recovered()
		return
	}
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
		if s.failure() != nil {
			return
		}
	}
	if len(h.logged) > 0 {
		h.logged = nil
		h.log.Info("Kubernetes API reachable again", event.APIReachable.Attr(), "server", h.host, "duration_ms", h.now().Sub(h.began).Milliseconds())
	}
}
