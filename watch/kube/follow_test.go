package kube

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"sluice/bench/testbed/apiserver"
	"sluice/filter"
	"sluice/filter/event"
	"sluice/filter/policy"
)

// TestNothingBeforeAllKinds checks that nothing is published while the list of one kind
// fails, and that afterwards the first snapshot has everything.
func TestNothingBeforeAllKinds(t *testing.T) {
	for _, late := range kinds {
		t.Run(late.name, func(t *testing.T) {
			var answers switchable
			answers.set(func(req *http.Request) *metav1.Status {
				if strings.HasSuffix(req.URL.Path, "/"+late.resource) {
					return &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden, Message: "not yet"}
				}
				return nil
			})
			s, config := serve(t, apiserver.Options{Refuse: answers.answer})
			small(s)
			f := follow(t, config, Options{})
			for _, k := range kinds {
				if k != late {
					f.health(k, "it is synced", func(h KindHealth) bool { return h.Synced })
				}
			}
			f.health(late, "it is refused", func(h KindHealth) bool { return h.Err != nil && h.Errors >= 4 })
			if f.published.Snapshot() != nil {
				t.Fatal("a snapshot was published without a list of this kind")
			}
			answers.set(nil)
			f.until("all is known", func(s *policy.Snapshot) bool {
				if c := s.Counts(); s.Number() == 1 && (c.Pods != 3 || c.Policies != 1) {
					t.Errorf("the first snapshot has %d pods and %d policies, want 3 and 1", c.Pods, c.Policies)
				}
				return true
			})
		})
	}
}

// TestVanished checks that an object that is deleted while the watch is down disappears
// with the next list, and that its replacement comes into force.
func TestVanished(t *testing.T) {
	for name, opts := range map[string]apiserver.Options{"streaming": {}, "pages": {NoStreaming: true}} {
		t.Run(name, func(t *testing.T) {
			var answers switchable
			opts.Refuse = answers.answer
			s, config := serve(t, opts)
			small(s)
			f := follow(t, config, Options{})
			f.verdict("10.1.0.2", "10.1.0.1", 6379, filter.Allow)
			f.watched(s)

			answers.set(func(*http.Request) *metav1.Status {
				return &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Reason: metav1.StatusReasonInternalError, Message: "failing"}
			})
			s.EndWatches()
			f.health(podKind, "the server fails", func(h KindHealth) bool { return h.Err != nil })
			s.Delete(makePod("other", "", nil), makePod("web", "", nil), makePolicy("access-db", ""))
			s.Set(makePod("web", "10.1.0.9", role("frontend"))) // a new pod with the old name
			s.Set(makePod("heir", "10.1.0.3", nil))
			s.Set(makePolicy("other", "unused"))
			s.Compact()
			f.verdict("10.1.0.2", "10.1.0.1", 6379, filter.Allow) // the last state that the source knows
			answers.set(nil)
			f.names("10.1.0.3", "default/heir")
			f.names("10.1.0.2", "")
			f.names("10.1.0.9", "default/web")
			f.verdict("10.1.0.9", "10.1.0.1", 6379, filter.Deny)
			f.health(podKind, "it has recovered", func(h KindHealth) bool { return h.Err == nil && h.Restarts > 0 })
		})
	}
}

// TestServerAway checks that an outage of the server and its end are logged once each, and
// not for each kind.
func TestServerAway(t *testing.T) {
	s := apiserver.New(apiserver.Options{})
	small(s)
	h := httptest.NewServer(s)
	f := follow(t, &rest.Config{Host: h.URL}, Options{})
	f.verdict("10.1.0.3", "10.1.0.1", 6379, filter.Deny)
	address := h.Listener.Addr().String()
	h.CloseClientConnections()
	h.Close()
	for _, k := range kinds {
		f.health(k, "the server is unreachable", func(h KindHealth) bool {
			return h.Synced && h.Err != nil && h.Errors > 1 && strings.Contains(h.Err.Error(), "start the API server")
		})
	}
	if n := f.log.count(event.APIUnreachable); n != 1 {
		t.Errorf("the outage was logged %d times, want once", n)
	}
	f.verdict("10.1.0.3", "10.1.0.1", 6379, filter.Deny)

	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	back := &httptest.Server{Listener: listener, Config: &http.Server{Handler: s}}
	back.Start()
	t.Cleanup(func() {
		back.CloseClientConnections()
		back.Close()
	})
	s.Set(makePod("other", "10.1.0.3", role("frontend")))
	f.verdict("10.1.0.3", "10.1.0.1", 6379, filter.Allow)
	for _, k := range kinds {
		f.health(k, "it has recovered", func(h KindHealth) bool { return h.Err == nil })
	}
	if n := f.log.count(event.APIReachable); n != 1 {
		t.Errorf("the recovery was logged %d times, want once", n)
	}
}

// TestAPIErrors checks that each failure of the server or the connection is reported with a
// hint.
func TestAPIErrors(t *testing.T) {
	secure := httptest.NewTLSServer(apiserver.New(apiserver.Options{}))
	t.Cleanup(secure.Close)
	secure.Config.ErrorLog = quietLog
	plain := httptest.NewServer(apiserver.New(apiserver.Options{}))
	t.Cleanup(plain.Close)
	other := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(other.Close)
	refuses := func(code int32, reason metav1.StatusReason) string {
		_, config := serve(t, apiserver.Options{Refuse: func(*http.Request) *metav1.Status {
			return &metav1.Status{Status: metav1.StatusFailure, Code: code, Reason: reason, Message: "no"}
		}})
		return config.Host
	}
	for name, test := range map[string]struct{ host, want string }{
		"no server":       {"http://127.0.0.1:1", "start the API server, or correct its address"},
		"no such name":    {"http://api.invalid", "correct the server's name"},
		"unknown signer":  {secure.URL, "certificate-authority"},
		"no TLS":          {strings.Replace(plain.URL, "http:", "https:", 1), "write http://"},
		"not an API":      {other.URL, "does not serve pods of v1"},
		"forbidden":       {refuses(http.StatusForbidden, metav1.StatusReasonForbidden), `let this user list and watch pods of API group ""`},
		"unauthorized":    {refuses(http.StatusUnauthorized, metav1.StatusReasonUnauthorized), "give credentials"},
		"unavailable":     {refuses(http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable), "see the API server's log"},
		"kind not served": {refuses(http.StatusNotFound, metav1.StatusReasonNotFound), "does not serve pods of v1"},
		"too many":        {refuses(http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests), "see the API server's log"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := follow(t, &rest.Config{Host: test.host}, Options{})
			f.health(podKind, test.want, func(h KindHealth) bool {
				var failure *APIError
				return errors.As(h.Err, &failure) && strings.Contains(failure.Hint, test.want) && failure.Server == test.host && failure.LogValue().Group() != nil
			})
			if f.published.Snapshot() != nil {
				t.Error("a snapshot was published although nothing is known")
			}
		})
	}
}

// TestJSON checks that a server which sends JSON instead of protobuf is supported.
func TestJSON(t *testing.T) {
	s := apiserver.New(apiserver.Options{})
	small(s)
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		req.Header.Set("Accept", runtime.ContentTypeJSON)
		s.ServeHTTP(w, req)
	}))
	t.Cleanup(func() {
		h.CloseClientConnections()
		h.Close()
	})
	f := follow(t, &rest.Config{Host: h.URL}, Options{})
	f.verdict("10.1.0.2", "10.1.0.1", 6379, filter.Allow)
	f.verdict("10.1.0.3", "10.1.0.1", 6379, filter.Deny)
	s.Set(makePod("other", "10.1.0.3", role("frontend")))
	f.verdict("10.1.0.3", "10.1.0.1", 6379, filter.Allow)
}

// TestRanges checks that the first snapshot has the pod ranges of the Nodes, and that later
// snapshots follow changes of these ranges.
func TestRanges(t *testing.T) {
	s, config := serve(t, apiserver.Options{})
	small(s)
	node := func(name string, ranges ...string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: ranges}}
	}
	s.Set(node("here", "10.1.0.0/24", "fd00:1::/64"), node("there", "10.1.1.0/24", "nonsense"))
	f := follow(t, config, Options{NodeName: "here", NodeRanges: true})
	f.until("something is known", func(*policy.Snapshot) bool { return true })
	check := func(addr string, want policy.Pending) {
		t.Helper()
		f.until(fmt.Sprintf("%s is pending (2 here, 1 elsewhere, 0 not): %d", addr, want), func(s *policy.Snapshot) bool {
			return s.Pending(netip.MustParseAddr(addr)) == want
		})
	}
	first := f.published.Snapshot()
	for addr, want := range map[string]policy.Pending{
		"10.1.0.9": policy.PendingLocal, "fd00:1::7": policy.PendingLocal, "10.1.1.1": policy.PendingRemote, "10.2.0.1": policy.Known,
	} {
		if got := first.Pending(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %d, want %d", addr, got, want)
		}
	}
	if n := f.log.count(event.NodeRangeUnreadable); n != 1 {
		t.Errorf("the malformed range was logged %d times, want once", n)
	}
	s.Delete(node("there"))
	s.Set(node("here", "10.3.0.0/24"))
	f.health(nodeKind, "both events have arrived", func(h KindHealth) bool { return h.Events >= 2 })
	check("10.1.1.1", policy.Known)
	check("10.1.0.1", policy.Known)
	check("10.3.0.1", policy.PendingLocal)
	s.Delete(node("here"))
	f.health(nodeKind, "this node's Node is deleted", func(h KindHealth) bool { return h.Events >= 3 })
	check("10.3.0.1", policy.Known)
	if n := f.log.count(event.NodeUnknown); n != 1 {
		t.Errorf("the missing Node of this node was logged %d times, want once", n)
	}
}

// TestConfig checks that an error in a kubeconfig is reported with the file and a hint.
func TestConfig(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const clusters = "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: \"https://192.0.2.1:6443\"}}]\nusers: [{name: u, user: {token: t}}]\n"
	good := write("good", clusters+"contexts: [{name: one, context: {cluster: c, user: u}}, {name: two, context: {cluster: c, user: u}}]\ncurrent-context: one\n")
	config, err := Config(ConfigOptions{Kubeconfig: good, Version: "v1.2.3"})
	if err != nil {
		t.Fatal(err)
	}
	if config.Host != "https://192.0.2.1:6443" || config.BearerToken != "t" || config.UserAgent != "sluice/v1.2.3" || config.Timeout != 0 {
		t.Errorf("config: %+v", config)
	}
	if _, err := Config(ConfigOptions{Kubeconfig: good, Context: "two"}); err != nil {
		t.Error(err)
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	for name, test := range map[string]struct {
		opts ConfigOptions
		want []string
	}{
		"not in a pod":    {ConfigOptions{}, []string{"is not in a pod", "--kubeconfig"}},
		"no file":         {ConfigOptions{Kubeconfig: filepath.Join(dir, "none")}, []string{"none", "give the path"}},
		"invalid YAML":    {ConfigOptions{Kubeconfig: write("bad", ":\n- [")}, []string{"bad", "kubectl config view"}},
		"no such context": {ConfigOptions{Kubeconfig: good, Context: "three"}, []string{good, `"three"`, "--context", "one, two"}},
		"no current one":  {ConfigOptions{Kubeconfig: write("uncurrent", clusters+"contexts: [{name: one, context: {cluster: c, user: u}}]\n")}, []string{"no current-context", "one"}},
		"no contexts":     {ConfigOptions{Kubeconfig: write("empty", clusters)}, []string{"has no contexts"}},
		"no such cluster": {ConfigOptions{Kubeconfig: write("lost", "apiVersion: v1\nkind: Config\ncontexts: [{name: one, context: {cluster: gone, user: u}}]\ncurrent-context: one\n")}, []string{"lost"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Config(test.opts)
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range test.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q lacks %q", err, w)
				}
			}
		})
	}
}

// TestFindTarget checks that FindTarget returns the cluster that kubectl would use.
func TestFindTarget(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "config")
	const text = `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://192.0.2.1:6443"}}]
users: [{name: u, user: {token: t}}]
contexts: [{name: one, context: {cluster: c, user: u, namespace: shop}}, {name: two, context: {cluster: c, user: u}}]
current-context: one
`
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	t.Setenv("KUBECONFIG", filepath.Join(dir, "none")+string(filepath.ListSeparator)+config)
	if target, err := FindTarget(ConfigOptions{}); err != nil || target.String() != "context one" || target.Namespace != "shop" || target.Host != "https://192.0.2.1:6443" {
		t.Errorf("current context: %v, %v", target, err)
	}
	if target, err := FindTarget(ConfigOptions{Context: "two"}); err != nil || target.String() != "context two" || target.Namespace != "" {
		t.Errorf("another context: %v, %v", target, err)
	}
	t.Setenv("KUBECONFIG", filepath.Join(dir, "none"))
	if _, err := FindTarget(ConfigOptions{Context: "foo"}); err == nil || errors.Is(err, ErrNoCluster) || !strings.Contains(err.Error(), `there is no kubeconfig in `+filepath.Join(dir, "none")+`, and so no context "foo"`) {
		t.Errorf("a context without a kubeconfig: %v", err)
	}
	if _, err := FindTarget(ConfigOptions{}); !errors.Is(err, ErrNoCluster) || !strings.Contains(err.Error(), "none") {
		t.Errorf("no kubeconfig: %v", err)
	}
	if target, err := FindTarget(ConfigOptions{Kubeconfig: config}); err != nil || target.Context != "one" {
		t.Errorf("a file: %v, %v", target, err)
	}
}
