package kube

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sluice/bench/testbed/apiserver"
	"sluice/filter"
	"sluice/filter/event"
	"sluice/filter/policy"
)

// startWithout returns options with which a source starts without an optional kind while
// agreed is set, and the number of times that it has asked.
func startWithout(agreed *atomic.Bool) (opts Options, asked *atomic.Int32) {
	asked = new(atomic.Int32)
	return Options{times: quickTimes, StartWithout: func(context.Context) bool {
		asked.Add(1)
		return agreed.Load()
	}}, asked
}

// TestStartWithout checks that where StartWithout agrees, a lasting failure to read an
// optional kind does not keep the other policies from being enforced. The failure stays
// visible, and the kind comes into force as soon as it can be read.
func TestStartWithout(t *testing.T) {
	for name, test := range failures {
		if test.hint == "" || strings.HasPrefix(name, "all") {
			continue // not a lasting failure of this kind alone
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := apiserver.New(apiserver.Options{})
			denied(s)
			var on, agreed atomic.Bool
			on.Store(true)
			opts, asked := startWithout(&agreed)
			f := follow(t, configOf(proxy(t, s, &on, test.of, test.status, test.body)), opts)
			for asked.Load() < 2 {
				time.Sleep(time.Millisecond)
			}
			if f.published.Snapshot() != nil {
				t.Fatal("a snapshot was published, but StartWithout has not agreed")
			}
			f.logged(map[event.Name]int{event.KindSkipped: 0})
			agreed.Store(true)
			f.verdict("10.1.0.2", "10.1.0.1", 6379, filter.Allow)
			f.verdict("10.1.0.2", "10.1.0.1", 80, filter.Deny) // by the NetworkPolicy
			f.health(clusterNetworkPolicyKind, "the failure is shown: "+test.hint, func(h KindHealth) bool {
				var failure *APIError
				return !h.Synced && errors.As(h.Err, &failure) && strings.Contains(failure.Hint, test.hint)
			})
			on.Store(false)
			f.inForce()
			f.version("v1beta1")
			f.logged(map[event.Name]int{event.KindSkipped: 1, event.APIUnreachable: 1, event.APIReachable: 1})
		})
	}
}

// TestStartWithoutOptionalOnly checks that StartWithout is not asked while another kind is
// missing, or while an optional kind has no failure.
func TestStartWithoutOptionalOnly(t *testing.T) {
	slow := make(chan struct{})
	for name, answer := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"NetworkPolicies refused too": func(w http.ResponseWriter, req *http.Request) bool {
			refused := isOfPolicies(req) || strings.HasSuffix(req.URL.Path, "/networkpolicies")
			if refused {
				w.WriteHeader(http.StatusForbidden)
			}
			return refused
		},
		"a slow list": func(_ http.ResponseWriter, req *http.Request) bool {
			if isOfPolicies(req) {
				select {
				case <-slow:
				case <-req.Context().Done():
				}
			}
			return false
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := apiserver.New(apiserver.Options{})
			denied(s)
			var agreed atomic.Bool
			agreed.Store(true)
			opts, asked := startWithout(&agreed)
			f := follow(t, configOf(serveHandler(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if !answer(w, req) {
					s.ServeHTTP(w, req)
				}
			}))), opts)
			time.Sleep(5 * quickTimes.patience)
			if asked.Load() != 0 || f.published.Snapshot() != nil {
				t.Errorf("asked %d times, published %v", asked.Load(), f.published.Snapshot() != nil)
			}
		})
	}
	close(slow)
}

// TestSkip checks that a list that arrives after its kind was skipped is a change like any other.
func TestSkip(t *testing.T) {
	q := newQueue(podKind, clusterNetworkPolicyKind)
	h := newHealth("test", quietSlog)
	pods, policies := newTable(podKind, q, h), newTable(clusterNetworkPolicyKind, q, h)
	if err := pods.Replace(nil, ""); err != nil {
		t.Fatal(err)
	}
	if _, ok := q.take(true); ok || !slices.Equal(q.awaited(), []*kind{clusterNetworkPolicyKind}) {
		t.Errorf("a take without the list of %v", q.awaited())
	}
	if !q.skip(clusterNetworkPolicyKind) || q.skip(clusterNetworkPolicyKind) || q.skip(podKind) {
		t.Error("a kind is skipped only if its list is missing")
	}
	if changes, ok := q.take(true); !ok || len(changes) != 0 {
		t.Errorf("the first take: %d changes, %v", len(changes), ok)
	}
	o := clusterNetworkPolicyKind.slim(makeClusterPolicy("late", "x"), newPools())
	if err := policies.Replace([]any{o}, ""); err != nil {
		t.Fatal(err)
	}
	changes, ok := q.take(false)
	if !ok || len(changes) != 1 || changes[0].name.Name != "late" {
		t.Errorf("the late list: %v, %v", changes, ok)
	}
	w := policy.NewStore()
	changes[0].apply(w)
	if snapshot, _ := w.Commit(); snapshot.Counts().Policies != 1 {
		t.Error("the policy is not in force")
	}
	if err := policies.Replace(nil, ""); err != nil {
		t.Fatal(err)
	}
	if changes, ok = q.take(false); !ok || len(changes) != 1 || changes[0].object != nil {
		t.Errorf("the empty list after it: %v, %v", changes, ok)
	}
}
