package agent

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/cache/bpf"
	"sluice/cache/conntrack"
	"sluice/filter"
	"sluice/filter/flow"
	"sluice/filter/packet"
	"sluice/filter/policy"
)

// noEvents is a subscription to a connection table in which nothing happens.
type noEvents struct{}

func (noEvents) Read(ctx context.Context, _ func(*conntrack.Event)) error { <-ctx.Done(); return nil }
func (noEvents) Lost() (uint64, error)                                    { return 0, nil }
func (noEvents) Close() error                                             { return nil }

var (
	flowClient = netip.MustParseAddr("10.0.0.1")
	flowServer = netip.MustParseAddr("10.0.0.2")
)

// newTestFlows returns a recorder for a cluster with a client, and a server with a policy.
func newTestFlows(tb testing.TB, size int) *flows {
	tb.Helper()
	a := newAgent(Options{FlowBuffer: size, NodeName: "n1"}, slog.New(slog.DiscardHandler))
	a.host.connections = func() (connectionEvents, error) { return noEvents{}, nil }
	w := policy.NewStore()
	for name, addr := range map[string]netip.Addr{"client": flowClient, "server": flowServer} {
		w.SetPod(&policy.Pod{Namespace: "shop", Name: name, Addrs: []netip.Addr{addr}, Labels: labels.Set{"app": name}})
	}
	w.SetPolicy(&policy.Policy{
		Ref: policy.Ref{Kind: "NetworkPolicy", Namespace: "shop", Name: "server"}, Tier: policy.NetworkPolicy,
		Subject:  policy.Subject{Namespaces: labels.Everything(), Pods: labels.SelectorFromSet(labels.Set{"app": "server"})},
		Isolates: [2]bool{filter.Ingress: true},
		Rules:    [2][]policy.Rule{filter.Ingress: {{Action: policy.Accept, Ports: []policy.PortRange{{Low: 80, High: 80, Protocol: filter.TCP}}}}},
	})
	s, _ := w.Commit()
	a.published.Publish(s)
	a.flows = newFlows(a, size)
	tb.Cleanup(a.flows.close)
	return a.flows
}

func newConnection(ended bool) *conntrack.Event {
	return &conntrack.Event{Conn: conntrack.Conn{Key: filter.NewKey(flowClient, flowServer, filter.TCP, 80), SrcPort: 40000}, Ended: ended}
}

// drainFlows reads all records that w has, and returns their number for each kind. For LeftOut, it returns
// how many records were left out.
func drainFlows(w *flow.Watcher) map[flow.Kind]int {
	got := make(map[flow.Kind]int)
	for into := make([]flow.Entry, 100); ; {
		n := w.Next(context.Background(), into, false)
		if n == 0 {
			return got
		}
		for _, e := range into[:n] {
			got[e.Kind] += int(max(e.Count, 1))
		}
	}
}

// Each kind of record has its own rate. Records beyond the rate are left out and counted. They do not use
// up the rate of another kind.
func TestFlowsBeyondTheRate(t *testing.T) {
	const added = 100_000
	f := newTestFlows(t, 1<<20)
	w := f.log.Watch(0, true)
	defer w.Close()
	began := time.Now()
	for range added {
		f.connection(newConnection(false))
	}
	took := time.Since(began)
	f.connection(newConnection(true))
	f.denied(&bpf.Event{Key: filter.NewKey(flowClient, flowServer, filter.TCP, 81), Time: time.Now()})
	f.log.Miss(1, time.Now().Add(time.Minute)) // makes the log add a LeftOut with the number of records that were left out
	got := drainFlows(w)
	most := int(20_000 * (1 + took.Seconds() + 1))
	if got[flow.Ended] != 1 || got[flow.Denied] != 1 || got[flow.Opened]+got[flow.LeftOut] != added+1 || got[flow.Opened] > most || got[flow.Opened] < 20_000 {
		t.Errorf("%v of %d connections in %v", got, added, took)
	}
}

// The agent writes only the records that fulfill the conditions of a request. It writes the records about
// missing flows (left-out and unrecorded) whatever the conditions are.
func TestServeSelectedFlows(t *testing.T) {
	f := newTestFlows(t, 100)
	w := f.log.Watch(0, true)
	f.connection(newConnection(false))
	f.connection(newConnection(true))
	f.denied(&bpf.Event{Key: filter.NewKey(flowClient, flowServer, filter.TCP, 81), Time: time.Now()})
	f.log.Miss(5, time.Now())
	w.Close()
	for query, want := range map[string]string{
		"":                             "allowed ended denied left-out unrecorded",
		"verdict=denied":               "denied left-out unrecorded",
		"verdict=allowed":              "allowed ended left-out unrecorded",
		"port=81":                      "denied left-out unrecorded",
		"from=shop/client&to=server":   "allowed ended denied left-out unrecorded",
		"from=server&namespace=shop":   "left-out unrecorded",
		"policy=shop/server&port=80":   "allowed left-out unrecorded",
		"namespace=shop&namespace=two": "allowed ended denied left-out unrecorded",
	} {
		answer := httptest.NewRecorder()
		f.serveFlows(answer, httptest.NewRequest(http.MethodGet, "/flows?last=100&"+query, nil))
		var got []string
		for line := range strings.Lines(answer.Body.String()) {
			var r flow.Record
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				t.Fatal(err)
			}
			// A request may add a record about the time since the request before it, in which nothing was
			// recorded. Equal events in a row count once here.
			if n := len(got); n == 0 || got[n-1] != r.Event {
				got = append(got, r.Event)
			}
		}
		if text := strings.Join(got, " "); answer.Code != http.StatusOK || text != want {
			t.Errorf("%s: status %d, %q, want %q", query, answer.Code, text, want)
		}
	}
	answer := httptest.NewRecorder()
	f.serveFlows(answer, httptest.NewRequest(http.MethodGet, "/flows?port=x", nil))
	if answer.Code != http.StatusBadRequest || !strings.Contains(answer.Body.String(), "port: ") {
		t.Errorf("status %d: %s", answer.Code, answer.Body)
	}
}

// discard is a client that reads everything.
type discard struct{ *httptest.ResponseRecorder }

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// BenchmarkFlows measures three steps: to make a record of an event of the kernel, without adding it to
// the log; to leave out an event beyond the rate; and to write a record to a stream.
func BenchmarkFlows(b *testing.B) {
	for _, ended := range []bool{false, true} {
		b.Run(map[bool]string{false: "begin", true: "end"}[ended], func(b *testing.B) {
			f := newTestFlows(b, flow.DefaultBuffer)
			b.ReportAllocs()
			for c := newConnection(ended); b.Loop(); {
				f.connection(c)
			}
		})
	}
	b.Run("beyond the rate", func(b *testing.B) {
		f := newTestFlows(b, flow.DefaultBuffer)
		defer f.log.Watch(0, true).Close()
		b.ReportAllocs()
		for c := newConnection(false); b.Loop(); {
			f.connection(c)
		}
	})
	b.Run("stream", func(b *testing.B) {
		f := newTestFlows(b, flow.DefaultBuffer)
		w := f.log.Watch(0, true)
		defer w.Close()
		f.connection(newConnection(false))
		var one [1]flow.Entry
		w.Next(b.Context(), one[:], false)
		b.ReportAllocs()
		b.ResetTimer()
		left := b.N
		f.writeFlows(discard{httptest.NewRecorder()}, new(flow.Filter), func(into []flow.Entry) int {
			n := min(left, len(into))
			for i := range into[:n] {
				into[i] = one[0]
			}
			left -= n
			return n
		})
	})
}

// A connection that changed policies have revoked is recorded as such. It is not recorded if it has ended
// for its ends, if it is allowed, or if it was revoked before.
func TestRevokedConnections(t *testing.T) {
	f := newTestFlows(t, 100)
	w := f.log.Watch(0, false)
	defer w.Close()
	p := packet.Packet{Key: filter.NewKey(flowClient, flowServer, filter.TCP, 81), SrcPort: 40000}
	deny := filter.Verdict{Action: filter.Deny, Reason: filter.IngressDenied}
	for _, c := range []conntrack.Marked{
		{Packet: p, Verdict: deny, Closed: true}, {Packet: p, Verdict: deny, WasRevoked: true}, {Packet: p, Verdict: filter.Verdict{Action: filter.Allow}},
		{Packet: p, Verdict: deny},
	} {
		f.Marked(&c)
	}
	into := make([]flow.Entry, 9)
	if n := w.Next(t.Context(), into, false); n != 1 || into[0].Kind != flow.Denied || !into[0].Revoked || into[0].Dst == nil {
		t.Errorf("%d records: %+v", n, into[0])
	}
	if all := f.denials.All(); len(all) != 1 || !all[0].Revoked {
		t.Errorf("%+v", all)
	}
}

// A request for the last flows with conditions gets the last ones that fulfill them.
func TestServeLastSelectedFlows(t *testing.T) {
	f := newTestFlows(t, 100)
	w := f.log.Watch(0, true)
	for range 3 {
		f.denied(&bpf.Event{Key: filter.NewKey(flowClient, flowServer, filter.TCP, 81), Time: time.Now()})
	}
	for range 5 {
		f.connection(newConnection(false))
	}
	w.Close()
	for query, want := range map[string]int{"last=2": 2, "last=2&port=81": 2, "last=9&port=81": 3, "last=1&port=80": 1, "port=81": 0, "last=5&port=82": 0} {
		answer := httptest.NewRecorder()
		f.serveFlows(answer, httptest.NewRequest(http.MethodGet, "/flows?"+query, nil))
		if n := strings.Count(answer.Body.String(), `"dport"`); n != want {
			t.Errorf("%s: %d flows, want %d", query, n, want)
		}
	}
}
