package telemetry

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/filter/policy"
	"sluice/filter/policy/netpol"
)

// get requests a page as a caller on this machine.
func get(h http.Handler, path string) *httptest.ResponseRecorder {
	return getFrom(h, path, "127.0.0.1:5000")
}

func getFrom(h http.Handler, path, from string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.RemoteAddr = from
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestPages(t *testing.T) {
	s := busyState(t)
	h := Handler(func() *State { return s })
	for path, want := range map[string]string{
		"/metrics":                           "sluice_queue_dropped_total 4\n",
		"/healthz":                           "ok\n",
		"/readyz":                            "ok\n",
		"/debug/":                            `<a href="/debug/snapshot">`,
		"/debug/status":                      `"version": "v1.2.3"`,
		"/debug/snapshot":                    `"policies": 4`,
		"/debug/endpoint?pod=default/db":     `"default/access-demo1"`,
		"/debug/endpoint?ip=10.0.0.1":        `"default/access-demo1"`,
		"/debug/endpoint?ip=::ffff:10.0.0.2": `"endpoint": "default/web"`,
		"/debug/endpoint?ip=fe80::1%25eth0":  `"fe80::1"`,
		"/debug/pprof/goroutine?debug=1":     "goroutine profile",
		"/debug/pprof/cmdline":               "telemetry.test",
		"/debug/pprof/":                      "Types of profiles available",
	} {
		if w := get(h, path); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d, want 200 and %q:\n%s", path, w.Code, want, w.Body)
		}
	}
	for path, want := range map[string]int{
		"/debug/endpoint": http.StatusBadRequest,
		"/debug/endpoint?ip=10.0.0.1&pod=default/web": http.StatusBadRequest,
		"/debug/endpoint?ip=ten":                      http.StatusBadRequest,
		"/debug/endpoint?pod=default/none":            http.StatusNotFound,
		"/debug/nothing":                              http.StatusNotFound,
		"/nothing":                                    http.StatusNotFound,
		"/":                                           http.StatusFound,
	} {
		if w := get(h, path); w.Code != want {
			t.Errorf("%s: %d, want %d:\n%s", path, w.Code, want, w.Body)
		}
	}
}

func TestEndpointPage(t *testing.T) {
	s := busyState(t)
	var got endpoint
	w := get(Handler(func() *State { return s }), "/debug/endpoint?ip=fd00::1")
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	tiers := []tierPolicies{{"Admin", []string{"admin/platform"}}, {"NetworkPolicy", []string{"default/access-demo1"}}}
	if !reflect.DeepEqual(got.IngressTiers, tiers) || len(got.EgressTiers) != 0 {
		t.Errorf("the tiers are %v in ingress and %v in egress", got.IngressTiers, got.EgressTiers)
	}
	if got.Endpoint != "default/db" || len(got.Addresses) != 2 || got.Addresses[0].String() != "10.0.0.1" ||
		got.Egress != nil || len(got.Ingress) != 1 || len(got.NamedPorts) != 1 || got.NamedPorts[0] != "redis=6379/TCP" || len(got.IDs) != len(got.Addresses) || got.IDs[0] == 0 {
		t.Errorf("%+v", got)
	}
}

// An address without a pod has the ID of the longest prefix that policies name and that contains the address, or 0.
func TestEndpointPageOfOutsideAddresses(t *testing.T) {
	w := policy.NewStore()
	w.SetNodeRanges("node-2", []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")})
	peers := []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: "192.0.2.0/24", Except: []string{"192.0.2.128/25"}}}}
	w.SetPolicy(netpol.Read(&networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "partners"},
		Spec:       networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{{From: peers}}},
	}))
	s, _ := w.Commit()
	h := Handler(func() *State { return &State{Now: noon, Started: noon, Snapshot: s} })
	ids := make(map[string]policy.ID)
	for ip, want := range map[string]outside{
		"192.0.2.1":        {Prefix: "192.0.2.0/24"},
		"::ffff:192.0.2.2": {Prefix: "192.0.2.0/24"},
		"192.0.2.129":      {Prefix: "192.0.2.128/25"},
		"10.0.1.1":         {Pending: true},
		"2001:db8::1":      {},
	} {
		var got outside
		if err := json.Unmarshal(get(h, "/debug/endpoint?ip="+ip).Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		addr := netip.MustParseAddr(ip).Unmap()
		_, id := s.Identify(addr)
		want.Addresses, want.IDs = []netip.Addr{addr}, []policy.ID{id}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", ip, got, want)
		}
		ids[ip] = id
	}
	if ids["192.0.2.1"] == 0 || ids["192.0.2.1"] != ids["::ffff:192.0.2.2"] || ids["192.0.2.1"] == ids["192.0.2.129"] || ids["2001:db8::1"] != 0 {
		t.Errorf("the IDs are %v", ids)
	}
}

// Before the first snapshot, pages that need a snapshot return status 503, and the other
// pages work.
func TestPagesOfANewAgent(t *testing.T) {
	h := Handler(func() *State { return &State{Now: noon, Started: noon} })
	for path, want := range map[string]int{
		"/readyz": http.StatusServiceUnavailable, "/debug/snapshot": http.StatusServiceUnavailable,
		"/debug/endpoint?ip=10.0.0.1": http.StatusServiceUnavailable,
		"/healthz":                    http.StatusOK, "/metrics": http.StatusOK, "/debug/status": http.StatusOK,
	} {
		if w := get(h, path); w.Code != want {
			t.Errorf("%s: %d, want %d:\n%s", path, w.Code, want, w.Body)
		}
	}
}

// Callers on other machines get metrics and health, but no page below /debug/.
func TestDebugIsForThisMachine(t *testing.T) {
	s := busyState(t)
	h := Handler(func() *State { return s })
	for _, from := range []string{"192.0.2.7:5000", "[2001:db8::7]:5000", "[::ffff:192.0.2.7]:5000", "@"} {
		for _, path := range []string{"/debug/", "/debug/endpoint?ip=10.0.0.1", "/debug/pprof/heap", "/debug/status"} {
			if w := getFrom(h, path, from); w.Code != http.StatusForbidden {
				t.Errorf("%s from %s: status %d, want 403", path, from, w.Code)
			}
		}
		if w := getFrom(h, "/metrics", from); w.Code != http.StatusOK {
			t.Errorf("/metrics from %s: status %d, want 200", from, w.Code)
		}
	}
	for _, from := range []string{"[::1]:5000", "[::ffff:127.0.0.1]:5000"} {
		if w := getFrom(h, "/debug/", from); w.Code != http.StatusOK {
			t.Errorf("/debug/ from %s: status %d, want 200", from, w.Code)
		}
	}
}

// The agent counts as dead only if packets wait and none is answered for answerTimeout.
// Packets that it holds until their pod is known do not count, because --hold may be longer than
// answerTimeout.
func TestLiveness(t *testing.T) {
	p := &liveness{}
	s := busyState(t)
	at := func(after time.Duration, waiting int, held int64, answered uint64) string {
		s.Now, s.Waiting, s.Queue.Pending, s.Queue.Allowed, s.Queue.Denied = noon.Add(after), waiting, held, answered, 0
		return p.failure(s)
	}
	for _, step := range []struct {
		after    time.Duration
		waiting  int
		held     int64
		answered uint64
		alive    bool
	}{
		{0, 3, 0, 10, true},
		{time.Hour, 3, 0, 11, true},
		{2 * time.Hour, 0, 0, 11, true},
		{2*time.Hour + answerTimeout, 3, 0, 11, true},
		{2*time.Hour + answerTimeout + time.Second, 3, 0, 11, false},
		{3 * time.Hour, 3, 0, 12, true},
		{3*time.Hour + answerTimeout + 1, 1, 0, 12, false},
		{3*time.Hour + answerTimeout + 2, 0, 0, 12, true},
		{4 * time.Hour, 3, 3, 12, true},
		{4*time.Hour + answerTimeout + 1, 3, 3, 12, true},
		{4*time.Hour + answerTimeout + 2, 2, 3, 12, true}, // 3 held, but only 2 waiting: the counts were not read at the same moment
		{4*time.Hour + 2*answerTimeout, 4, 3, 12, true},
		{4*time.Hour + 3*answerTimeout, 4, 3, 12, false},
	} {
		if wrong := at(step.after, step.waiting, step.held, step.answered); (wrong == "") != step.alive {
			t.Errorf("after %v with %d packets waiting, %d of them held, and %d answered: %q, want alive: %t", step.after, step.waiting, step.held, step.answered, wrong, step.alive)
		}
	}
}

func TestCheckAddress(t *testing.T) {
	for text, good := range map[string]bool{
		DefaultAddress: true, ":9000": true, "[::1]:9000": true, "0.0.0.0:9000": true, "localhost:9000": true, "127.0.0.1:http": true,
		"127.0.0.1": false, "9000": false, "127.0.0.1:99999": false, "example:80": false, "::1:80": false, "127.0.0.1:": true,
	} {
		if err := CheckAddress(text); (err == nil) != good {
			t.Errorf("%q: %v, want valid: %t", text, err, good)
		}
	}
}
