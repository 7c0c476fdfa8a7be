package apiserver

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"
)

// prefixes are the paths of the served API groups.
var prefixes = map[string]string{
	"pods": "/api/v1/", "namespaces": "/api/v1/", "nodes": "/api/v1/", "networkpolicies": "/apis/networking.k8s.io/v1/",
	"services": "/api/v1/", "replicationcontrollers": "/api/v1/", "endpointslices": "/apis/discovery.k8s.io/v1/",
	"deployments": "/apis/apps/v1/", "statefulsets": "/apis/apps/v1/", "daemonsets": "/apis/apps/v1/", "replicasets": "/apis/apps/v1/",
	"jobs": "/apis/batch/v1/", "cronjobs": "/apis/batch/v1/",
}

// ServeHTTP answers requests to list and watch all objects of a kind in the cluster, to list the
// objects of a kind in a namespace, to get a Namespace, and to get or patch (as JSON patch) a Node.
func (s *Server) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	enc := encodingFor(req)
	if s.opts.Refuse != nil {
		if status := s.opts.Refuse(req); status != nil {
			enc.answer(w, int(status.Code), status)
			return
		}
	}
	if s.exec(w, req) || s.discover(w, req) {
		return
	}
	slash := strings.LastIndexByte(req.URL.Path, '/')
	name := req.URL.Path[slash+1:]
	r := s.resources[name]
	for _, resource := range []string{"nodes", "namespaces"} {
		if r == nil && req.URL.Path[:slash] == prefixes[resource]+resource {
			s.object(w, req, s.resources[resource], types.NamespacedName{Name: name}, enc)
			return
		}
	}
	if of, in := s.policyIn(req.URL.Path[:slash]); r == nil && of != nil {
		s.object(w, req, of, types.NamespacedName{Namespace: in, Name: name}, enc)
		return
	}
	if namespace := namespaceOf(name, req); r != nil && namespace != "" {
		s.list(w, req, r, enc, namespace)
		return
	}
	if r == nil || req.URL.Path != s.pathOf(name, req) {
		enc.answer(w, http.StatusNotFound, failureStatus(http.StatusNotFound, metav1.StatusReasonNotFound, "the server could not find the requested resource"))
		return
	}
	if req.FormValue("watch") == "true" || req.FormValue("watch") == "1" {
		s.watch(w, req, r, enc)
		return
	}
	s.list(w, req, r, enc, "")
}

// policyIn returns the resource of the policies whose objects are below a path, and the namespace in the
// path. It returns nil if the path is not that of a list of policies.
func (s *Server) policyIn(path string) (of *resource, namespace string) {
	const policies = "networkpolicies"
	rest, below := strings.CutPrefix(path, prefixes[policies]+"namespaces/")
	if namespace, in := strings.CutSuffix(rest, "/"+policies); below && in {
		return s.resources[policies], namespace
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, version := range s.installed {
		if path == "/apis/"+v1beta1.GroupName+"/"+version+"/"+clusterPolicies {
			return s.resources[clusterPolicies], ""
		}
	}
	return nil, ""
}

// namespaceOf returns the namespace in a request for the objects of a resource; "" if the request is for
// the objects of the whole cluster.
func namespaceOf(resource string, req *http.Request) string {
	rest, below := strings.CutPrefix(req.URL.Path, prefixes[resource]+"namespaces/")
	namespace, in := strings.CutSuffix(rest, "/"+resource)
	if !below || !in || strings.Contains(namespace, "/") {
		return ""
	}
	return namespace
}

func failureStatus(code int32, reason metav1.StatusReason, message string) *metav1.Status {
	return &metav1.Status{Status: metav1.StatusFailure, Code: code, Reason: reason, Message: message}
}

// list answers with a page of objects: those of the namespace, or, if it is empty, all. The token for
// the next page contains the version of the first page and the name of the next object. Objects may
// change between pages. This is harmless, because the client then watches from the version of the first
// page.
func (s *Server) list(w http.ResponseWriter, req *http.Request, r *resource, enc encoding, namespace string) {
	s.mu.Lock()
	all, version := r.sorted(), s.version
	s.mu.Unlock()
	if selector, err := labels.Parse(req.FormValue("labelSelector")); err == nil && !selector.Empty() {
		all = slices.DeleteFunc(all, func(o *stored) bool { return !selector.Matches(labels.Set(o.object.GetLabels())) })
	}
	if namespace != "" {
		all = slices.DeleteFunc(all, func(o *stored) bool { return o.object.GetNamespace() != namespace })
	}
	if token, err := base64.RawURLEncoding.DecodeString(req.FormValue("continue")); err == nil && len(token) > 0 {
		v, rest, _ := strings.Cut(string(token), " ")
		version, _ = strconv.ParseUint(v, 10, 64)
		namespace, name, _ := strings.Cut(rest, "/")
		from, _ := slices.BinarySearchFunc(all, types.NamespacedName{Namespace: namespace, Name: name}, func(o *stored, n types.NamespacedName) int {
			return compareNames(nameOf(o.object), n)
		})
		all = all[from:]
	}
	list := r.list.DeepCopyObject()
	m, err := meta.ListAccessor(list)
	if err == nil {
		m.SetResourceVersion(strconv.FormatUint(version, 10))
		// Like a real server, ignore the limit of a request that allows an answer from the
		// cache.
		if limit, _ := strconv.Atoi(req.FormValue("limit")); limit > 0 && limit < len(all) && req.FormValue("resourceVersion") != "0" {
			m.SetContinue(base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d %s", version, nameOf(all[limit].object))))
			all = all[:limit]
		}
		items := make([]runtime.Object, len(all))
		for i, o := range all {
			items[i] = o.object
		}
		err = meta.SetList(list, items)
	}
	if err != nil {
		enc.answer(w, http.StatusInternalServerError, failureStatus(http.StatusInternalServerError, metav1.StatusReasonInternalError, err.Error()))
		return
	}
	enc.answer(w, http.StatusOK, list)
}

func compareNames(a, b types.NamespacedName) int {
	return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

// watcher is one watch. It queues events without a limit if the connection is slow.
type watcher struct {
	mu     sync.Mutex
	events []*stored
	wake   chan struct{}
	ended  bool
}

func (w *watcher) send(events ...*stored) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, events...)
	w.signal()
}

func (w *watcher) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	w.signal()
}

func (w *watcher) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *watcher) take() (events []*stored, ended bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	events, w.events = w.events, nil
	return events, w.ended
}

func (s *Server) watch(w http.ResponseWriter, req *http.Request, r *resource, enc encoding) {
	events, status := s.startWatch(r, req)
	if status != nil {
		enc.answer(w, int(status.Code), status)
		return
	}
	defer s.removeWatcher(r, events)
	timeout := time.Hour
	if seconds, err := strconv.Atoi(req.FormValue("timeoutSeconds")); err == nil {
		timeout = time.Duration(seconds) * time.Second
	}
	over := time.NewTimer(timeout)
	defer over.Stop()
	stream := enc.stream(w)
	_ = http.NewResponseController(w).Flush()
	for {
		batch, ended := events.take()
		for _, e := range batch {
			if stream(e) != nil {
				return // the client is gone
			}
		}
		_ = http.NewResponseController(w).Flush()
		if ended {
			return
		}
		select {
		case <-req.Context().Done():
			return
		case <-over.C:
			return
		case <-events.wake:
		}
	}
}

// startWatch registers a watch and queues its first events.
func (s *Server) startWatch(r *resource, req *http.Request) (*watcher, *metav1.Status) {
	w := &watcher{wake: make(chan struct{}, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	from, _ := strconv.ParseUint(req.FormValue("resourceVersion"), 10, 64)
	initial := req.FormValue("sendInitialEvents") == "true"
	switch {
	case initial && s.opts.NoStreaming:
		return nil, failureStatus(http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled")
	case initial || from == 0:
		for _, o := range r.sorted() {
			w.events = append(w.events, &stored{event: watch.Added, version: o.version, object: o.object, encoded: o.encodings()})
		}
		if initial {
			w.events = append(w.events, s.bookmark(r, map[string]string{metav1.InitialEventsAnnotationKey: "true"}))
		}
	case from < r.compacted:
		w.events = []*stored{{event: watch.Error}}
		w.ended = true
	default:
		next, _ := slices.BinarySearchFunc(r.history, from+1, func(o *stored, v uint64) int { return cmp.Compare(o.version, v) })
		w.events = slices.Clone(r.history[next:])
	}
	r.watchers[w] = struct{}{}
	return w, nil
}

func (s *Server) removeWatcher(r *resource, w *watcher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(r.watchers, w)
}
