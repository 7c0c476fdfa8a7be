package kube

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"

	"sluice/bench/testbed/apiserver"
	"sluice/filter"
	"sluice/filter/event"
	"sluice/filter/policy"
	"sluice/watch"
)

// waitTimeout bounds each wait of these tests.
const waitTimeout = 2 * time.Minute

// followed is a running Source, with a Controller that applies its updates.
type followed struct {
	t         *testing.T
	source    *Source
	published policy.Published
	changed   chan struct{} // receives a token after each publication
	log       *records
}

// follow runs a source for the server until the test ends.
func follow(t *testing.T, config *rest.Config, opts Options) *followed {
	t.Helper()
	f := &followed{t: t, changed: make(chan struct{}, 1), log: &records{changed: make(chan struct{}, 1)}}
	opts.Logger = slog.New(f.log)
	var err error
	if f.source, err = New(config, opts); err != nil {
		t.Fatal(err)
	}
	store := policy.NewStore()
	store.SetLocalNode(opts.NodeName)
	controller := watch.New(store, &f.published, watch.Options{Stages: []watch.Stage{watch.StageFunc{Name: "notice", Func: func(context.Context, watch.Change) error {
		select {
		case f.changed <- struct{}{}:
		default:
		}
		return nil
	}}}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- controller.Run(ctx, f.source) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return f
}

// until waits until ok returns true for the published snapshot. It calls ok again after
// each publication.
func (f *followed) until(what string, ok func(*policy.Snapshot) bool) {
	f.t.Helper()
	timeout := time.After(waitTimeout)
	for {
		if s := f.published.Snapshot(); s != nil && ok(s) {
			return
		}
		select {
		case <-f.changed:
		case <-timeout:
			f.t.Fatalf("timed out: %s; health: %+v", what, f.source.Health())
		}
	}
}

// verdict waits until a TCP flow gets the verdict.
func (f *followed) verdict(from, to string, port uint16, want filter.Action) {
	f.t.Helper()
	key := filter.NewKey(netip.MustParseAddr(from), netip.MustParseAddr(to), filter.TCP, port)
	f.until(fmt.Sprintf("%s to %s port %d gets: %v", from, to, port, want), func(s *policy.Snapshot) bool { return s.Decide(key).Action == want })
}

// names waits until addr belongs to the named pod, or to no pod if the name is empty.
func (f *followed) names(addr, pod string) {
	f.t.Helper()
	f.until(fmt.Sprintf("%s is %q", addr, pod), func(s *policy.Snapshot) bool { return s.Endpoint(netip.MustParseAddr(addr)).String() == pod })
}

// health waits until ok returns true for the health of a kind.
func (f *followed) health(k *kind, what string, ok func(KindHealth) bool) {
	f.t.Helper()
	deadline := time.Now().Add(waitTimeout)
	for {
		for _, h := range f.source.Health() {
			if h.Kind == k.name && ok(h) {
				return
			}
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("%s: timed out: %s; health: %+v", k.name, what, f.source.Health())
		}
		time.Sleep(time.Millisecond) // poll: there is no event for a change of health
	}
}

// watched waits until the watches of all kinds that are served are open.
func (f *followed) watched(s *apiserver.Server) {
	f.t.Helper()
	for _, k := range kinds {
		f.health(k, "it is watched", func(h KindHealth) bool {
			return h.Synced && (h.Optional && h.Version == "" || s.Watchers(k.resource) > 0)
		})
	}
}

// fails waits until requests of the given sort (following or discovering) fail for a kind.
func (f *followed) fails(k *kind, sort int) {
	f.t.Helper()
	f.health(k, fmt.Sprintf("it fails: %d", sort), func(KindHealth) bool {
		h := f.source.health
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.of(k).failures[sort] != nil
	})
}

// records is a slog.Handler that keeps all records above debug level.
type records struct {
	mu      sync.Mutex
	list    []slog.Record
	changed chan struct{}
}

func (r *records) Enabled(_ context.Context, level slog.Level) bool { return level > slog.LevelDebug }
func (r *records) WithAttrs([]slog.Attr) slog.Handler               { return r }
func (r *records) WithGroup(string) slog.Handler                    { return r }
func (r *records) Handle(_ context.Context, rec slog.Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, rec)
	select {
	case r.changed <- struct{}{}:
	default:
	}
	return nil
}

// eventOf returns the event of a record, or "" if it has none.
func eventOf(rec slog.Record) (name event.Name) {
	rec.Attrs(func(a slog.Attr) bool {
		if a.Key == event.Key {
			name = event.Name(a.Value.String())
		}
		return name == ""
	})
	return name
}

// count returns the number of records of an event.
func (r *records) count(name event.Name) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rec := range r.list {
		if eventOf(rec) == name {
			n++
		}
	}
	return n
}

// switchable lets a test answer requests in place of the server. After set(nil), the server
// answers them again.
type switchable struct {
	refuse atomic.Pointer[func(*http.Request) *metav1.Status]
}

func (s *switchable) set(f func(*http.Request) *metav1.Status) { s.refuse.Store(&f) }
func (s *switchable) answer(req *http.Request) *metav1.Status {
	if f := s.refuse.Load(); f != nil && *f != nil {
		return (*f)(req)
	}
	return nil
}

// serve starts a simulated API server and returns the configuration to reach it.
func serve(t *testing.T, opts apiserver.Options) (*apiserver.Server, *rest.Config) {
	t.Helper()
	s := apiserver.New(opts)
	return s, configOf(serveHandler(t, s))
}

// serveHandler serves requests until the test ends, and returns the URL.
func serveHandler(t *testing.T, handler http.Handler) string {
	t.Helper()
	h := httptest.NewServer(handler)
	t.Cleanup(func() {
		h.CloseClientConnections()
		h.Close()
	})
	return h.URL
}

// configOf returns the configuration to reach a server.
func configOf(url string) *rest.Config { return &rest.Config{Host: url, QPS: -1} }

func makePod(name, ip string, labels map[string]string) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: labels, CreationTimestamp: metav1.Unix(1700000000, 0)},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Ports: []corev1.ContainerPort{{Name: "redis", ContainerPort: 6379, Protocol: corev1.ProtocolTCP}}}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, HostIP: "172.16.0.1"},
	}
	if ip != "" {
		p.Status.PodIP, p.Status.PodIPs = ip, []corev1.PodIP{{IP: ip}}
	}
	return p
}

func role(value string) map[string]string { return map[string]string{"role": value} }

// makePolicy returns a policy that allows only pods with role=from to reach pods with
// role=db, and only at their port named redis.
func makePolicy(name, from string) *networkingv1.NetworkPolicy {
	port := intstr.FromString("redis")
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: role("db")},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From:  []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: role(from)}}},
				Ports: []networkingv1.NetworkPolicyPort{{Port: &port}},
			}},
		},
	}
}

func makeNamespace(name string, labels map[string]string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
}

// small sets a database pod, a client pod, an unrelated pod, and a policy. It installs the kind
// ClusterNetworkPolicy, without objects.
func small(s *apiserver.Server) {
	s.Install("v1beta1")
	s.Set(makeNamespace("default", nil),
		makePod("db", "10.1.0.1", role("db")), makePod("web", "10.1.0.2", role("frontend")), makePod("other", "10.1.0.3", nil),
		makePolicy("access-db", "frontend"))
}

// TestFollow checks that the objects of the API server, and later changes of them, come into
// force.
func TestFollow(t *testing.T) {
	for name, opts := range map[string]apiserver.Options{"streaming": {}, "pages": {NoStreaming: true}} {
		t.Run(name, func(t *testing.T) {
			s, config := serve(t, opts)
			small(s)
			f := follow(t, config, Options{})
			f.verdict("10.1.0.2", "10.1.0.1", 6379, filter.Allow)
			f.verdict("10.1.0.3", "10.1.0.1", 6379, filter.Deny)
			f.verdict("10.1.0.2", "10.1.0.1", 80, filter.Deny)

			s.Set(makePod("other", "10.1.0.3", role("frontend")))
			f.verdict("10.1.0.3", "10.1.0.1", 6379, filter.Allow)
			s.Set(makePolicy("access-db", "unused"))
			f.verdict("10.1.0.3", "10.1.0.1", 6379, filter.Deny)
			s.Delete(makePolicy("access-db", "unused"))
			f.verdict("10.1.0.3", "10.1.0.1", 6379, filter.Allow)
			s.Delete(makePod("other", "", nil))
			f.names("10.1.0.3", "")
			s.Set(makePod("late", "", nil))
			s.Bookmark()
			s.Set(makePod("late", "10.1.0.3", nil))
			f.names("10.1.0.3", "default/late")
		})
	}
}

// A pod may be known before its Namespace. Such a pod is denied everything while a policy
// depends on labels of namespaces, because the policy may deny the pod by these labels.
func TestPodBeforeItsNamespace(t *testing.T) {
	s, config := serve(t, apiserver.Options{})
	small(s)
	pod := makePod("early", "10.2.0.1", nil)
	pod.Namespace = "late"
	quarantine := makeClusterPolicy("quarantine", "")
	quarantine.Spec.Subject = v1beta1.ClusterNetworkPolicySubject{Namespaces: &metav1.LabelSelector{MatchLabels: map[string]string{"team": "quarantined"}}}
	quarantine.Spec.Ingress[0].From = []v1beta1.ClusterNetworkPolicyIngressPeer{{Namespaces: &metav1.LabelSelector{}}}
	s.Set(pod, quarantine)
	f := follow(t, config, Options{})
	f.verdict("10.1.0.2", "10.2.0.1", 80, filter.Deny)
	f.verdict("10.1.0.2", "10.1.0.3", 80, filter.Allow)
	s.Set(makeNamespace("late", nil))
	f.verdict("10.1.0.2", "10.2.0.1", 80, filter.Allow)
	s.Set(makeNamespace("late", map[string]string{"team": "quarantined"}))
	f.verdict("10.1.0.2", "10.2.0.1", 80, filter.Deny)
	s.Set(makeNamespace("late", nil))
	f.verdict("10.1.0.2", "10.2.0.1", 80, filter.Allow)
	s.Delete(makeNamespace("late", nil))
	f.verdict("10.1.0.2", "10.2.0.1", 80, filter.Deny)
}
