package kube

import (
	"bytes"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sluice/bench/testbed/apiserver"
	"sluice/filter/event"
)

// spoiler is a ResponseWriter that gives priorities another type than the API's.
type spoiler struct{ http.ResponseWriter }

func (s spoiler) Write(b []byte) (int, error) {
	_, err := s.ResponseWriter.Write(bytes.ReplaceAll(b, []byte(`"priority":10`), []byte(`"priority":""`)))
	return len(b), err
}

func (s spoiler) Unwrap() http.ResponseWriter { return s.ResponseWriter }

// TestUndecodableObjects serves policies that do not fit the API's schema, in a stream and in
// lists. A stream can be opened, but its objects cannot be decoded. The test checks that this is
// a lasting failure, which is logged once.
func TestUndecodableObjects(t *testing.T) {
	for name, opts := range map[string]apiserver.Options{"streaming": {}, "pages": {NoStreaming: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := apiserver.New(opts)
			denied(s)
			var on atomic.Bool
			handler := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if on.Load() && isOfPolicies(req) {
					w = spoiler{w}
				}
				s.ServeHTTP(w, req)
			})
			f := follow(t, configOf(serveHandler(t, handler)), Options{times: quickTimes})
			f.inForce()
			f.version("v1beta1")
			f.watched(s)
			var before uint64
			f.health(clusterNetworkPolicyKind, "restarts", func(h KindHealth) bool { before = h.Restarts; return true })
			on.Store(true)
			s.EndWatches()
			f.health(clusterNetworkPolicyKind, "the watch or the list has been repeated", func(h KindHealth) bool { return h.Restarts > before || h.Err != nil })
			s.Set(makeClusterPolicy("other", "unused"))
			f.health(clusterNetworkPolicyKind, "several requests have failed", func(h KindHealth) bool { return h.Errors >= 4 && h.Err != nil })
			f.inForce()
			f.logged(map[event.Name]int{event.APIUnreachable: 1, event.APIReachable: 0})
			on.Store(false)
			f.version("v1beta1")
			f.inForce()
			f.logged(map[event.Name]int{event.APIUnreachable: 1, event.APIReachable: 1})
		})
	}
}

// TestUnknownVersion checks that a kind that is served only in a version of the future is not
// taken for one that is not installed: its policies stay in force, and at the start nothing is
// published.
func TestUnknownVersion(t *testing.T) {
	s, config := serve(t, apiserver.Options{})
	denied(s)
	f := follow(t, config, Options{times: quickTimes})
	f.inForce()
	f.version("v1beta1")
	s.Install("v1")
	unknown := func(h KindHealth) bool { return h.Err != nil && strings.Contains(h.Err.Error(), "v1: update Sluice") }
	f.health(clusterNetworkPolicyKind, "the version is unknown", unknown)
	f.inForce()

	later := follow(t, config, Options{times: quickTimes})
	later.health(clusterNetworkPolicyKind, "the version is unknown", unknown)
	time.Sleep(10 * quickTimes.interval)
	if later.published.Snapshot() != nil {
		t.Error("a snapshot was published")
	}
	s.Install("v1", "v1beta1")
	f.version("v1beta1")
	later.inForce()
	f.logged(map[event.Name]int{event.KindServed: 1, event.KindNotServed: 0, event.APIUnreachable: 1, event.APIReachable: 1})
}

// TestUnknownVersionLater serves a kind, which was not installed at first, only in a version
// that the source does not know. It checks that the source notices and logs this once, and
// follows a known version later.
func TestUnknownVersionLater(t *testing.T) {
	s, config := serve(t, apiserver.Options{})
	small(s)
	s.Install()
	f := follow(t, config, Options{times: quickTimes})
	f.version("")
	unknown := func(h KindHealth) bool {
		return h.Synced && h.Err != nil && strings.Contains(h.Err.Error(), "v1: update Sluice") && h.Errors > 2
	}
	s.Install("v1")
	f.health(clusterNetworkPolicyKind, "the version is unknown", unknown)
	s.Install() // removed again
	f.version("")
	f.logged(map[event.Name]int{event.KindServed: 0, event.KindNotServed: 1, event.APIUnreachable: 1, event.APIReachable: 1})

	s.Install("v1")
	f.health(clusterNetworkPolicyKind, "the version is unknown", func(h KindHealth) bool { return h.Err != nil })
	s.Install("v1", "v1alpha2")
	s.Set(makeClusterPolicy("admin", "frontend"))
	f.version("v1alpha2")
	f.inForce()
	f.logged(map[event.Name]int{event.KindServed: 1, event.KindNotServed: 1, event.APIUnreachable: 2, event.APIReachable: 2})
}
