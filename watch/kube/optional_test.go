package kube

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"

	"sluice/bench/testbed/apiserver"
	"sluice/filter"
	"sluice/filter/event"
	"sluice/filter/policy"
)

// quickTimes make tests short.
var quickTimes = discoveryTimes{interval: 20 * time.Millisecond, confirm: 20 * time.Millisecond, conflict: 200 * time.Millisecond, patience: 100 * time.Millisecond}

// makeClusterPolicy returns a policy of the tier Admin that denies connections to pods with
// role=db from pods whose role is the given one.
func makeClusterPolicy(name, from string) *v1beta1.ClusterNetworkPolicy {
	pods := func(value string) v1beta1.NamespacedPod {
		return v1beta1.NamespacedPod{PodSelector: metav1.LabelSelector{MatchLabels: role(value)}}
	}
	to, peer := pods("db"), pods(from)
	return &v1beta1.ClusterNetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1beta1.ClusterNetworkPolicySpec{
			Tier: v1beta1.AdminTier, Priority: 10, Subject: v1beta1.ClusterNetworkPolicySubject{Pods: &to},
			Ingress: []v1beta1.ClusterNetworkPolicyIngressRule{{
				Name: "keep-out", Action: v1beta1.ClusterNetworkPolicyRuleActionDeny, From: []v1beta1.ClusterNetworkPolicyIngressPeer{{Pods: &peer}},
			}},
		},
	}
}

// denied calls small, which sets pods and a NetworkPolicy. In addition, it sets a
// ClusterNetworkPolicy that denies what the NetworkPolicy allows.
func denied(s *apiserver.Server) {
	small(s)
	s.Set(makeClusterPolicy("admin", "frontend"))
}

// inForce fails unless the ClusterNetworkPolicy that denied() sets is in force.
func (f *followed) inForce() {
	f.t.Helper()
	f.verdict("10.1.0.2", "10.1.0.1", 6379, filter.Deny)
}

// version waits until the source follows ClusterNetworkPolicies in a version. Without one, it
// waits until it knows that they are not installed.
func (f *followed) version(want string) {
	f.t.Helper()
	f.health(clusterNetworkPolicyKind, "the version is "+want, func(h KindHealth) bool { return h.Version == want && h.Synced && h.Err == nil })
}

// logged fails unless the events have been logged as often as given.
func (f *followed) logged(want map[event.Name]int) {
	f.t.Helper()
	for name, n := range want {
		if got := f.log.count(name); got != n {
			f.t.Errorf("%s was logged %d times, want %d", name, got, n)
		}
	}
}

// TestKindComesAndGoes checks that ClusterNetworkPolicies are followed while they are
// installed, in the preferred one of the served versions, and that each change is logged once.
// While they are not installed, the source is complete without them, and reports no failure.
func TestKindComesAndGoes(t *testing.T) {
	for name, opts := range map[string]apiserver.Options{"streaming": {}, "pages": {NoStreaming: true}} {
		t.Run(name, func(t *testing.T) {
			s, config := serve(t, opts)
			small(s)
			s.Install()
			f := follow(t, config, Options{times: quickTimes})
			f.verdict("10.1.0.2", "10.1.0.1", 6379, filter.Allow)
			f.version("")
			time.Sleep(10 * quickTimes.interval) // discovery is asked several times
			f.logged(map[event.Name]int{event.KindServed: 0, event.KindNotServed: 1})

			for i, step := range []struct {
				installed []string
				version   string
			}{
				{[]string{"v1alpha2"}, "v1alpha2"},
				{[]string{"v1alpha2", "v1beta1"}, "v1beta1"}, // upgraded
				{[]string{"v1beta1"}, "v1beta1"},             // v1alpha2 is not served any more
				{[]string{"v1alpha2"}, "v1alpha2"},           // downgraded
				{[]string{"v1alpha2", "v1beta1", "v1"}, "v1beta1"},
			} {
				s.Install(step.installed...)
				if i == 0 {
					s.Set(makeClusterPolicy("admin", "frontend"))
					f.inForce()
				}
				f.version(step.version)
				f.inForce()
				s.Set(makePod("web", "10.1.0.2", map[string]string{"role": "frontend", "step": step.version})) // other kinds are still followed
				other := makePod("other", "10.1.0.3", role("frontend"))
				s.Set(other)
				f.verdict("10.1.0.3", "10.1.0.1", 6379, filter.Deny)
				s.Set(makeClusterPolicy("admin", "unused"))
				f.verdict("10.1.0.3", "10.1.0.1", 6379, filter.Allow)
				s.Set(makeClusterPolicy("admin", "frontend"))
				f.inForce()
			}
			s.Install()
			f.version("")
			f.verdict("10.1.0.2", "10.1.0.1", 6379, filter.Allow)
			f.until("only the NetworkPolicy is left", func(s *policy.Snapshot) bool { return s.Counts().Policies == 1 })
			time.Sleep(10 * quickTimes.interval)
			f.logged(map[event.Name]int{event.KindServed: 4, event.KindNotServed: 2, event.APIUnreachable: 0, event.APIReachable: 0})
			f.health(clusterNetworkPolicyKind, "nothing has failed", func(h KindHealth) bool { return h.Errors == 0 })
		})
	}
}

// TestReinstalled removes the kind together with its policies, and installs it again in the same
// or another version, before or after the source has noticed the removal. It checks that new
// policies come into force.
func TestReinstalled(t *testing.T) {
	for name, opts := range map[string]apiserver.Options{"streaming": {}, "pages": {NoStreaming: true}} {
		t.Run(name, func(t *testing.T) {
			s, config := serve(t, opts)
			denied(s)
			f := follow(t, config, Options{times: quickTimes})
			f.inForce()
			f.version("v1beta1")
			for i, version := range []string{"v1beta1", "v1alpha2", "v1beta1"} {
				for _, noticed := range []bool{true, false} {
					s.Install()
					s.Delete(makeClusterPolicy("admin", ""))
					if noticed {
						f.version("")
						f.verdict("10.1.0.2", "10.1.0.1", 6379, filter.Allow)
					}
					s.Install(version)
					name := fmt.Sprintf("again-%d", i)
					s.Set(makeClusterPolicy(name, "frontend"))
					f.inForce()
					f.version(version)
					f.until("only the new policy is left", func(s *policy.Snapshot) bool { return s.Counts().Policies == 2 })
					s.Delete(makeClusterPolicy(name, ""))
					f.verdict("10.1.0.2", "10.1.0.1", 6379, filter.Allow)
					s.Set(makeClusterPolicy("admin", "frontend"))
					f.inForce()
				}
			}
			f.logged(map[event.Name]int{event.APIUnreachable: 0})
		})
	}
}

// TestRemovedWhileAway removes the kind while all requests fail. It checks that the policies
// stay in force until the server responds that the kind is not served.
func TestRemovedWhileAway(t *testing.T) {
	var answers switchable
	s, config := serve(t, apiserver.Options{Refuse: answers.answer})
	denied(s)
	f := follow(t, config, Options{times: quickTimes})
	f.inForce()
	f.version("v1beta1")
	f.watched(s)
	answers.set(func(*http.Request) *metav1.Status { return statusOf(http.StatusInternalServerError) })
	s.EndWatches()
	f.health(clusterNetworkPolicyKind, "the server fails", func(h KindHealth) bool { return h.Err != nil && h.Errors > 3 })
	s.Install()
	f.inForce()
	answers.set(nil)
	f.version("")
	f.verdict("10.1.0.2", "10.1.0.1", 6379, filter.Allow)
}

func statusOf(code int32) *metav1.Status {
	reasons := map[int32]metav1.StatusReason{
		http.StatusUnauthorized: metav1.StatusReasonUnauthorized, http.StatusForbidden: metav1.StatusReasonForbidden,
		http.StatusNotFound: metav1.StatusReasonNotFound, http.StatusGone: metav1.StatusReasonGone,
		http.StatusTooManyRequests: metav1.StatusReasonTooManyRequests, http.StatusInternalServerError: metav1.StatusReasonInternalError,
		http.StatusServiceUnavailable: metav1.StatusReasonServiceUnavailable,
	}
	return &metav1.Status{Status: metav1.StatusFailure, Code: code, Reason: reasons[code], Message: "no"}
}

// isDiscovery reports whether a request asks for groups, or for the versions of the group
// of ClusterNetworkPolicies.
func isDiscovery(req *http.Request) bool {
	return req.URL.Path == "/apis" || isDiscoveryOfVersion(req)
}

func isDiscoveryOfVersion(req *http.Request) bool {
	return strings.HasPrefix(req.URL.Path, "/apis/"+v1beta1.GroupName) && !isOfPolicies(req)
}

// isOfPolicies reports whether a request asks for ClusterNetworkPolicies.
func isOfPolicies(req *http.Request) bool {
	return strings.HasSuffix(req.URL.Path, "/"+clusterNetworkPolicyKind.resource)
}

// failures are responses that a server, or a proxy in front of it, gives to some requests. None
// of them proves that the kind is not installed.
var failures = map[string]struct {
	of     func(*http.Request) bool
	status int32
	body   string // the response body; if it is empty and status is not 200, the response is a Status
	hint   string // hint of the failure that health shows; "" if it shows none
}{
	"discovery: 401":                          {isDiscovery, 401, "", "give credentials"},
	"discovery: 403":                          {isDiscovery, 403, "", "as the ClusterRole system:discovery does"},
	"discovery: 410":                          {isDiscovery, 410, "", "see the API server's log"},
	"discovery: 429":                          {isDiscovery, 429, "", "see the API server's log"},
	"discovery: 500":                          {isDiscovery, 500, "", "see the API server's log"},
	"discovery: 503":                          {isDiscovery, 503, "", "see the API server's log"},
	"discovery: 404 of a proxy":               {isDiscovery, 404, "default backend - 404", "a proxy before it"},
	"discovery: 404 as a Status":              {isDiscovery, 404, "", "a proxy before it"},
	"discovery: HTML":                         {isDiscovery, 200, "<html></html>", "sluice retries"},
	"discovery: JSON of another kind":         {isDiscovery, 200, `{"kind": "Status", "apiVersion": "v1"}`, "sluice retries"},
	"discovery: nothing":                      {isDiscovery, 200, "", "sluice retries"},
	"discovery of the version: 403":           {isDiscoveryOfVersion, 403, "", "as the ClusterRole system:discovery does"},
	"discovery of the version: 404":           {isDiscoveryOfVersion, 404, "", ""}, // the objects are served
	"discovery of the version: 503":           {isDiscoveryOfVersion, 503, "", "see the API server's log"},
	"objects: 401":                            {isOfPolicies, 401, "", "give credentials"},
	"objects: 403":                            {isOfPolicies, 403, "", "let this user list and watch clusternetworkpolicies"},
	"objects: 404, but discovery offers them": {isOfPolicies, 404, "", "does not serve clusternetworkpolicies"},
	"objects: 410":                            {isOfPolicies, 410, "", ""}, // the list is read again
	"objects: 429":                            {isOfPolicies, 429, "", "see the API server's log"},
	"objects: 500":                            {isOfPolicies, 500, "", "see the API server's log"},
	"objects: 503":                            {isOfPolicies, 503, "", "see the API server's log"},
	"objects: HTML":                           {isOfPolicies, 200, "<html></html>", "sluice retries"},
	"objects: of another schema":              {isOfPolicies, 200, `{"apiVersion": "policy.networking.k8s.io/v1beta1", "kind": "ClusterNetworkPolicyList", "metadata": {}, "items": [{"metadata": {"name": "a"}, "spec": {"priority": "high"}}]}`, "check the CustomResourceDefinition"},
	"all: 404":                                {func(*http.Request) bool { return true }, 404, "", "a proxy before it"},
	"all: 404 of a proxy":                     {func(*http.Request) bool { return true }, 404, "default backend - 404", "a proxy before it"},
	"all: 503":                                {func(*http.Request) bool { return true }, 503, "", "see the API server's log"},
}

// proxy starts a proxy in front of s, and returns its URL. The proxy forwards requests to s. While
// on is set, it itself answers the requests for which the function "of" returns true.
func proxy(t *testing.T, s *apiserver.Server, on *atomic.Bool, of func(*http.Request) bool, status int32, body string) string {
	t.Helper()
	return serveHandler(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch {
		case !on.Load() || !of(req):
			s.ServeHTTP(w, req)
		case status == http.StatusOK || body != "":
			if strings.HasPrefix(body, "{") {
				w.Header().Set("Content-Type", "application/json")
			}
			w.WriteHeader(int(status))
			_, _ = w.Write([]byte(body))
		default:
			apiserver.New(apiserver.Options{Refuse: func(*http.Request) *metav1.Status { return statusOf(status) }}).ServeHTTP(w, req)
		}
	}))
}

// TestFailuresKeepPolicies checks that after each of the failures, the known policies stay
// in force and health shows it, and that the source recovers. TestKindComesAndGoes has the
// responses that do remove policies.
func TestFailuresKeepPolicies(t *testing.T) {
	for name, test := range failures {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := apiserver.New(apiserver.Options{})
			denied(s)
			var on atomic.Bool
			times, all := quickTimes, strings.HasPrefix(name, "all: ")
			if all {
				times.conflict = time.Hour // discovery may recover long before the next request for objects
			}
			f := follow(t, configOf(proxy(t, s, &on, test.of, test.status, test.body)), Options{times: times})
			f.inForce()
			f.version("v1beta1")
			f.watched(s)
			on.Store(true)
			s.Compact()
			s.EndWatches()
			if test.hint == "" {
				time.Sleep(20 * quickTimes.interval)
			}
			f.health(clusterNetworkPolicyKind, "the failure is shown: "+test.hint, func(h KindHealth) bool {
				var failure *APIError
				return h.Err == nil && test.hint == "" || errors.As(h.Err, &failure) && strings.Contains(failure.Hint, test.hint)
			})
			time.Sleep(10 * quickTimes.interval)
			f.inForce()
			if c := f.published.Snapshot().Counts(); c.Policies != 2 {
				t.Errorf("%d policies are in force, want 2", c.Policies)
			}
			f.logged(map[event.Name]int{event.KindNotServed: 0, event.KindServed: 1})
			if all { // otherwise some requests may recover before others fail, as two outages
				for _, k := range kinds {
					if !k.optional || test.status != http.StatusNotFound { // such a 404 alone is no failure
						f.fails(k, following)
					}
				}
				f.fails(clusterNetworkPolicyKind, discovering)
			}
			on.Store(false)
			f.version("v1beta1")
			s.Set(makeClusterPolicy("admin", "unused"))
			f.verdict("10.1.0.2", "10.1.0.1", 6379, filter.Allow)
			for _, k := range kinds {
				f.health(k, "it has recovered", func(h KindHealth) bool { return h.Err == nil })
			}
			if n := f.log.count(event.APIReachable); (n == 1) != (test.hint != "") {
				t.Errorf("the recovery was logged %d times", n)
			}
		})
	}
}

// TestFailuresAtStart checks that no snapshot is published while a failure hides whether the
// kind is installed, or prevents the source from reading its objects.
func TestFailuresAtStart(t *testing.T) {
	for name, test := range failures {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := apiserver.New(apiserver.Options{})
			denied(s)
			var on atomic.Bool
			on.Store(true)
			f := follow(t, configOf(proxy(t, s, &on, test.of, test.status, test.body)), Options{times: quickTimes})
			if test.status == 404 && test.hint == "" {
				f.inForce() // the objects are served, whatever discovery says
				return
			}
			f.health(clusterNetworkPolicyKind, "the failure is shown: "+test.hint, func(h KindHealth) bool {
				var failure *APIError
				return test.hint == "" || errors.As(h.Err, &failure) && strings.Contains(failure.Hint, test.hint)
			})
			time.Sleep(10 * quickTimes.interval)
			if f.published.Snapshot() != nil {
				t.Error("a snapshot was published")
			}
			on.Store(false)
			f.until("the first snapshot has the policy", func(s *policy.Snapshot) bool {
				if c := s.Counts(); s.Number() == 1 && c.Policies != 2 {
					t.Errorf("the first snapshot has %d policies, want 2", c.Policies)
				}
				return true
			})
			f.inForce()
		})
	}
}

// TestOtherGroupsMayFail checks that the source requests no API groups but those of its kinds,
// so that failures of other groups do not matter.
func TestOtherGroupsMayFail(t *testing.T) {
	var asked atomic.Pointer[string]
	s, config := serve(t, apiserver.Options{Refuse: func(req *http.Request) *metav1.Status {
		for _, path := range []string{"/api/v1/", "/apis/networking.k8s.io/v1/", "/apis/" + v1beta1.GroupName + "/"} {
			if strings.HasPrefix(req.URL.Path, path) {
				return nil
			}
		}
		if req.URL.Path == "/apis" {
			return nil
		}
		asked.Store(&req.URL.Path)
		return statusOf(http.StatusServiceUnavailable)
	}})
	small(s)
	s.Install()
	f := follow(t, config, Options{times: quickTimes})
	f.version("")
	denied(s)
	f.inForce()
	if path := asked.Load(); path != nil {
		t.Errorf("%s was requested", *path)
	}
}

// TestAbsentKindCosts checks the number of requests about a kind that is not installed. At the
// start, it is one for each of its two versions, and one for the list of groups; later, only this
// list.
func TestAbsentKindCosts(t *testing.T) {
	var requests [3]atomic.Int32
	s, config := serve(t, apiserver.Options{Refuse: func(req *http.Request) *metav1.Status {
		switch {
		case isOfPolicies(req):
			requests[0].Add(1)
		case isDiscoveryOfVersion(req):
			requests[1].Add(1)
		case isDiscovery(req):
			requests[2].Add(1)
		}
		return nil
	}})
	small(s)
	s.Install()
	f := follow(t, config, Options{times: discoveryTimes{interval: time.Hour, confirm: time.Hour, conflict: time.Hour}})
	f.verdict("10.1.0.2", "10.1.0.1", 6379, filter.Allow) // at once: none of the times above has passed
	f.version("")
	if objects, versions, groups := requests[0].Load(), requests[1].Load(), requests[2].Load(); objects != 0 || versions != 2 || groups != 1 {
		t.Errorf("%d requests for objects, %d for versions, %d for groups; want 0, 2, 1", objects, versions, groups)
	}
	if version, err := f.source.client.discover(t.Context(), clusterNetworkPolicyKind, false); version != notServed || err != nil {
		t.Errorf("%v, %v", version, err)
	}
	if objects, versions, groups := requests[0].Load(), requests[1].Load(), requests[2].Load(); objects != 0 || versions != 2 || groups != 2 {
		t.Errorf("later: %d requests for objects, %d for versions, %d for groups; want 0, 2, 2", objects, versions, groups)
	}
}

// TestNoticedWithin30Seconds checks that, with the default times, a change is noticed within 30 s.
func TestNoticedWithin30Seconds(t *testing.T) {
	d := defaultTimes
	if sum := d.interval + d.interval/3 + d.confirm + discoveryTimeout; sum > 30*time.Second {
		t.Errorf("a change is noticed within %v", sum)
	}
}

// TestOneLateServer checks that one response without the kind does not remove its policies,
// and that two do, even with failures in between.
func TestOneLateServer(t *testing.T) {
	served, older := clusterNetworkPolicyKind.group, clusterNetworkPolicyKind.older[0]
	failure := schema.GroupVersion{Version: "failure"}
	for name, test := range map[string]struct {
		answers []schema.GroupVersion
		want    []string // in order: each version that is followed, and "empty" when all objects are removed
	}{
		"installed":              {[]schema.GroupVersion{served, served}, []string{"v1beta1"}},
		"one late server":        {[]schema.GroupVersion{served, notServed, served, notServed, served}, []string{"v1beta1"}},
		"one late, with older":   {[]schema.GroupVersion{served, older, served, older, served}, []string{"v1beta1"}},
		"downgraded":             {[]schema.GroupVersion{served, older, older}, []string{"v1beta1", "v1alpha2"}},
		"removed":                {[]schema.GroupVersion{served, notServed, notServed, notServed}, []string{"v1beta1", "empty"}},
		"removed after failures": {[]schema.GroupVersion{served, failure, notServed, failure, failure, notServed}, []string{"v1beta1", "empty"}},
		"failures":               {[]schema.GroupVersion{served, failure, failure, failure}, []string{"v1beta1"}},
		"not installed":          {[]schema.GroupVersion{notServed, notServed, failure, notServed}, []string{"empty"}},
		"installed later":        {[]schema.GroupVersion{notServed, served, served}, []string{"empty", "v1beta1"}},
		"upgraded":               {[]schema.GroupVersion{older, served}, []string{"v1alpha2", "v1beta1"}},
		"downgraded by one late": {[]schema.GroupVersion{served, notServed, older, notServed, served}, []string{"v1beta1", "v1alpha2", "v1beta1"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got []string
			ctx, cancel := context.WithCancel(t.Context())
			o := &optional{kind: clusterNetworkPolicyKind, times: quickTimes, health: newHealth("test", quietSlog), wake: make(chan struct{}, 1)}
			started := make(chan string)
			o.follow = func(ctx context.Context, version schema.GroupVersion) {
				started <- version.Version
				<-ctx.Done()
			}
			go func() {
				for range test.want {
					got = append(got, <-started)
				}
				close(started)
			}()
			o.empty = func() { started <- "empty" }
			left := test.answers
			o.discover = func(context.Context, bool) (schema.GroupVersion, error) {
				if len(left) == 0 {
					cancel()
					return notServed, ctx.Err()
				}
				answer := left[0]
				if left = left[1:]; answer == failure {
					return notServed, errors.New("failure")
				}
				return answer, nil
			}
			o.run(ctx)
			<-started
			if !slices.Equal(got, test.want) {
				t.Errorf("followed %v, want %v", got, test.want)
			}
		})
	}
}

// TestConflict checks that the response 404 to requests for objects is a failure only if it lasts
// while discovery offers the version: an outage of discovery does not count.
func TestConflict(t *testing.T) {
	o := &optional{kind: clusterNetworkPolicyKind, times: defaultTimes, health: newHealth("test", quietSlog), wake: make(chan struct{}, 1)}
	check := func(when string, want bool) {
		t.Helper()
		if o.conflict(); o.health.failing(o.kind) != want {
			t.Errorf("%s: failing %t, want %t", when, !want, want)
		}
	}
	notFound := func() { o.requestDone("list", apierrors.NewNotFound(schema.GroupResource{}, "")) }
	notFound()
	check("after the first 404", false)
	long := time.Now().Add(-time.Hour)
	o.notFound.first, o.notFound.last = long, long
	check("an hour after the first 404", false)
	o.setNotFound(nil) // discovery fails
	notFound()
	check("after an outage of discovery", false)
	o.notFound.first = long
	notFound()
	check("after an hour of such responses", true)
	o.requestDone("watch", nil)
	check("after the watch was opened", false)
}
