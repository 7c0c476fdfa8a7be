// Package apiserver is a fake of the reading side of a Kubernetes API server. It serves
// list and watch in the protocol and the encodings of a real server, with streaming lists,
// bookmarks and expired versions. Nodes can also be patched. ClusterNetworkPolicies can be
// installed and removed, in each of their versions. Tests provoke situations that are rare
// with a real server, and benchmarks fill it with more objects than a real server would
// accept.
package apiserver

import (
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"
)

// Object is an object of one of the served kinds: Pods, Namespaces, Nodes, NetworkPolicies,
// ClusterNetworkPolicies, Services, EndpointSlices and workloads. A ClusterNetworkPolicy always has the
// Go type of v1beta1; clients may read it in any served version.
type Object interface {
	runtime.Object
	metav1.Object
}

// Options are the ways in which a Server differs from a current API server.
type Options struct {
	// NoStreaming refuses streaming lists, as servers before Kubernetes 1.32 do.
	NoStreaming bool
	// Refuse, if not nil, is called for each request. If it returns a Status, the server
	// answers with this Status. If it returns nil, the server serves the request.
	Refuse func(*http.Request) *metav1.Status
	// Exec, if not nil, runs the commands that clients execute in pods, and returns their exit status.
	Exec func(Command) int
}

// Server is a fake API server for the kinds of Object. It is an http.Handler. Its methods may be
// called concurrently.
type Server struct {
	opts Options

	mu        sync.Mutex
	version   uint64 // resource version of the last change
	resources map[string]*resource
	installed []string // the served versions of ClusterNetworkPolicy
}

// resource holds the objects of one kind.
type resource struct {
	name      string // such as "pods"
	empty     Object
	list      runtime.Object
	objects   map[types.NamespacedName]*stored
	history   []*stored // past events, oldest first
	compacted uint64    // history has only events after this version
	watchers  map[*watcher]struct{}
}

// stored is a version of an object, with those of its encodings that have been computed.
type stored struct {
	event   watch.EventType
	version uint64
	object  Object
	mu      sync.Mutex
	encoded encoded
}

// encoded are the encodings of an object: protobuf, or JSON in one of the versions.
type encoded [1 + len(jsonVersions)][]byte

// New returns a server without objects.
func New(opts Options) *Server {
	s := &Server{opts: opts, version: 1, resources: make(map[string]*resource)}
	for _, r := range []*resource{
		{name: "pods", empty: &corev1.Pod{}, list: &corev1.PodList{}},
		{name: "namespaces", empty: &corev1.Namespace{}, list: &corev1.NamespaceList{}},
		{name: "nodes", empty: &corev1.Node{}, list: &corev1.NodeList{}},
		{name: "networkpolicies", empty: &networkingv1.NetworkPolicy{}, list: &networkingv1.NetworkPolicyList{}},
		{name: "services", empty: &corev1.Service{}, list: &corev1.ServiceList{}},
		{name: "endpointslices", empty: &discoveryv1.EndpointSlice{}, list: &discoveryv1.EndpointSliceList{}},
		{name: "deployments", empty: &appsv1.Deployment{}, list: &appsv1.DeploymentList{}},
		{name: "statefulsets", empty: &appsv1.StatefulSet{}, list: &appsv1.StatefulSetList{}},
		{name: "daemonsets", empty: &appsv1.DaemonSet{}, list: &appsv1.DaemonSetList{}},
		{name: "replicasets", empty: &appsv1.ReplicaSet{}, list: &appsv1.ReplicaSetList{}},
		{name: "jobs", empty: &batchv1.Job{}, list: &batchv1.JobList{}},
		{name: "cronjobs", empty: &batchv1.CronJob{}, list: &batchv1.CronJobList{}},
		{name: "replicationcontrollers", empty: &corev1.ReplicationController{}, list: &corev1.ReplicationControllerList{}},
		{name: clusterPolicies, empty: &v1beta1.ClusterNetworkPolicy{}, list: &v1beta1.ClusterNetworkPolicyList{}},
	} {
		r.objects, r.watchers = make(map[types.NamespacedName]*stored), make(map[*watcher]struct{})
		s.resources[r.name] = r
	}
	return s
}

// resourceOf returns the resource of an object, such as "pods".
func (s *Server) resourceOf(o Object) *resource {
	for _, r := range s.resources {
		if reflect.TypeOf(r.empty) == reflect.TypeOf(o) {
			return r
		}
	}
	panic(fmt.Sprintf("apiserver: objects of type %T are not served", o))
}

// Set creates objects, or replaces objects with the same names. The server keeps the
// objects and sets their resource versions, so the caller must not change them.
func (s *Server) Set(objects ...Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range objects {
		r := s.resourceOf(o)
		event := watch.Added
		if r.objects[nameOf(o)] != nil {
			event = watch.Modified
		}
		s.record(r, event, o)
	}
}

// Delete removes objects. It ignores objects that do not exist.
func (s *Server) Delete(objects ...Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range objects {
		r := s.resourceOf(o)
		if old := r.objects[nameOf(o)]; old != nil {
			s.record(r, watch.Deleted, old.copy())
		}
	}
}

// Get returns a copy of the stored object with the kind and name of o; nil if there is none.
func (s *Server) Get(o Object) Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.resourceOf(o).objects[nameOf(o)]; st != nil {
		return st.copy()
	}
	return nil
}

func (s *Server) record(r *resource, event watch.EventType, o Object) {
	s.version++
	o.SetResourceVersion(strconv.FormatUint(s.version, 10))
	st := &stored{event: event, version: s.version, object: o}
	if event == watch.Deleted {
		delete(r.objects, nameOf(o))
	} else {
		r.objects[nameOf(o)] = st
	}
	r.history = append(r.history, st)
	for w := range r.watchers {
		w.send(st)
	}
}

// Bookmark sends a bookmark to all watchers.
func (s *Server) Bookmark() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.resources {
		for w := range r.watchers {
			w.send(s.bookmark(r, nil))
		}
	}
}

func (s *Server) bookmark(r *resource, annotations map[string]string) *stored {
	o := r.empty.DeepCopyObject().(Object)
	o.SetResourceVersion(strconv.FormatUint(s.version, 10))
	o.SetAnnotations(annotations)
	return &stored{event: watch.Bookmark, version: s.version, object: o}
}

// Compact removes all past events. A watch from an earlier version gets the error that the
// version is too old.
func (s *Server) Compact() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.resources {
		r.history, r.compacted = nil, s.version
	}
}

// EndWatches ends all watches, as a server does from time to time. Clients then start new
// watches.
func (s *Server) EndWatches() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.resources {
		for w := range r.watchers {
			w.end()
		}
	}
}

// Watchers returns the number of watches of a resource.
func (s *Server) Watchers(resource string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.resources[resource].watchers)
}

// sorted returns a resource's objects by name, in the order of a list.
func (r *resource) sorted() []*stored {
	return slices.SortedFunc(maps.Values(r.objects), func(a, b *stored) int {
		return compareNames(nameOf(a.object), nameOf(b.object))
	})
}

func nameOf(o Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}
