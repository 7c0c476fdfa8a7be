package hubble

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"sluice/filter"
	"sluice/filter/flow"
	"sluice/filter/policy"
)

const callTimeout = 10 * time.Second

// fixture is a server on a unix socket, and a client of it.
type fixture struct {
	log       *flow.Log
	published policy.Published
	store     *policy.Store
	conn      *grpc.ClientConn
	began     time.Time

	path   string
	peers  Peers
	server Server
	within func(context.Context) (context.Context, context.CancelFunc)
}

func newFixture(t *testing.T, peers Peers) *fixture {
	t.Helper()
	return newFixtureWithin(t, peers, nil)
}

func newFixtureWithin(t *testing.T, peers Peers, within func(context.Context) (context.Context, context.CancelFunc)) *fixture {
	t.Helper()
	f := &fixture{within: within, log: flow.NewLog(100, nil), store: policy.NewStore(), began: time.Now().Add(-time.Hour)}
	f.store.SetPod(&policy.Pod{Namespace: "shop", Name: "web", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}})
	f.store.SetPod(&policy.Pod{Namespace: "default", Name: "db", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.2")}})
	f.publish()
	f.path, f.peers = filepath.Join(t.TempDir(), "s"), peers
	f.serve(t)
	var err error
	if f.conn, err = grpc.NewClient("unix://"+f.path, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.conn.Close() })
	return f
}

// serve starts the server, which ends with the test.
func (f *fixture) serve(t *testing.T) {
	t.Helper()
	l, err := net.Listen("unix", f.path)
	if err != nil {
		t.Fatal(err)
	}
	api := New(Options{Log: f.log, Snapshot: f.published.Snapshot, NodeName: "n1", Version: "v1", Peers: f.peers, Logger: slog.New(slog.DiscardHandler), Within: f.within})
	api.peer.interval = time.Millisecond
	f.server = api.NewServer(nil)
	go func() { _ = f.server.Serve(l) }()
	t.Cleanup(func() { _ = f.server.Close() })
}

func (f *fixture) publish() {
	s, _ := f.store.Commit()
	f.published.Publish(s)
}

// add records a flow from web to port n of db, at n seconds after f.began. If kind is LeftOut, it instead
// records that n records are missing.
func (f *fixture) add(kind flow.Kind, n uint16) {
	e := &flow.Entry{Kind: kind, Time: f.began.Add(time.Duration(n) * time.Second), SrcPort: 40000,
		Key: filter.NewKey(netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), filter.TCP, n)}
	if kind == flow.LeftOut {
		f.log.Miss(uint64(n), e.Time)
		return
	}
	if kind == flow.Denied {
		e.Verdict = filter.Verdict{Action: filter.Deny, Reason: filter.IngressDenied}
	}
	s := f.published.Snapshot()
	e.Src, e.Dst = s.Endpoint(e.Key.SrcAddr()), s.Endpoint(e.Key.DstAddr())
	f.log.Add(e)
}

// keep makes the log keep flows to the ports 1 to 5, of which 2 and 4 are denied. After each flow, it adds
// the record of a connection that has ended.
func (f *fixture) keep() {
	w := f.log.Watch(0, true)
	defer w.Close()
	for n := uint16(1); n <= 5; n++ {
		f.add(map[bool]flow.Kind{true: flow.Denied, false: flow.Opened}[n%2 == 0], n)
		f.add(flow.Ended, n)
	}
}

// ports calls GetFlows and returns the destination ports of the flows. For an event about lost flows, it
// returns the negative number of these flows.
func (f *fixture) ports(ctx context.Context, req *observerpb.GetFlowsRequest) (all []int, err error) {
	stream, err := observerpb.NewObserverClient(f.conn).GetFlows(ctx, req)
	if err != nil {
		return nil, err
	}
	for {
		a, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return all, err
		}
		if l := a.GetLostEvents(); l != nil {
			all = append(all, -int(l.GetNumEventsLost()))
			continue
		}
		all = append(all, int(a.GetFlow().GetL4().GetTCP().GetDestinationPort()))
	}
}

// Each kind of request gets the flows that its number, times and filters select, in the order of time.
func TestGetFlows(t *testing.T) {
	f := newFixture(t, Peers{})
	f.keep()
	at := func(n int) *timestamppb.Timestamp {
		return timestamppb.New(f.began.Add(time.Duration(n) * time.Second))
	}
	dropped := []*flowpb.FlowFilter{{Verdict: []flowpb.Verdict{flowpb.Verdict_DROPPED}}}
	for name, tt := range map[string]struct {
		req  *observerpb.GetFlowsRequest
		want []int
	}{
		"all":                  {&observerpb.GetFlowsRequest{}, []int{1, 2, 3, 4, 5}},
		"all, as hubble --all": {&observerpb.GetFlowsRequest{Number: math.MaxUint64}, []int{1, 2, 3, 4, 5}},
		"last":                 {&observerpb.GetFlowsRequest{Number: 2}, []int{4, 5}},
		"more than there are":  {&observerpb.GetFlowsRequest{Number: 20}, []int{1, 2, 3, 4, 5}},
		"first":                {&observerpb.GetFlowsRequest{Number: 2, First: true}, []int{1, 2}},
		"since":                {&observerpb.GetFlowsRequest{Since: at(3)}, []int{3, 4, 5}},
		"until":                {&observerpb.GetFlowsRequest{Until: at(2)}, []int{1, 2}},
		"between, last":        {&observerpb.GetFlowsRequest{Since: at(2), Until: at(4), Number: 1}, []int{4}},
		"whitelist":            {&observerpb.GetFlowsRequest{Whitelist: dropped}, []int{2, 4}},
		"blacklist":            {&observerpb.GetFlowsRequest{Blacklist: dropped}, []int{1, 3, 5}},
		"last denied":          {&observerpb.GetFlowsRequest{Number: 1, Whitelist: dropped}, []int{4}},
		"first denied":         {&observerpb.GetFlowsRequest{Number: 1, First: true, Whitelist: dropped}, []int{2}},
		"until the past":       {&observerpb.GetFlowsRequest{Follow: true, Number: 9, Until: at(3)}, []int{1, 2, 3}},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
		got, err := f.ports(ctx, tt.req)
		cancel()
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, %v, want %v", name, got, err, tt.want)
		}
	}
	if f.log.Watched().Denials {
		t.Error("the log is watched, although no client is there")
	}
}

// A request without Follow gets only flows from before the request, so that its answer ends even on a
// busy node.
func TestGetFlowsEnds(t *testing.T) {
	f := newFixture(t, Peers{})
	f.keep()
	w := f.log.Watch(0, true)
	defer w.Close()
	f.add(flow.Opened, 7200) // after the request
	for _, req := range []*observerpb.GetFlowsRequest{{}, {Number: 1}} {
		got, err := f.ports(t.Context(), req)
		if err != nil || len(got) == 0 || got[len(got)-1] != 5 {
			t.Errorf("%v, %v", got, err)
		}
	}
}

// A client asks for the last flow (Number: 1) and for all that follow. It gets the last flow from before
// its request. It then gets the flow that is in the log already, but is later than the request.
func TestFollowAtOnce(t *testing.T) {
	f := newFixture(t, Peers{})
	f.keep()
	w := f.log.Watch(0, true)
	defer w.Close()
	f.add(flow.Opened, 7200) // after the request
	ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
	defer cancel()
	stream, err := observerpb.NewObserverClient(f.conn).GetFlows(ctx, &observerpb.GetFlowsRequest{Follow: true, Number: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []uint32{5, 7200} {
		a, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if got := a.GetFlow().GetL4().GetTCP().GetDestinationPort(); got != want {
			t.Errorf("port %d, want %d", got, want)
		}
	}
}

// A client that follows gets the last flows. It then gets new flows, and the number of flows that are
// missing. If it is the only watcher and wants only denials, connections are not watched.
func TestFollow(t *testing.T) {
	f := newFixture(t, Peers{})
	f.keep()
	ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
	defer cancel()
	stream, err := observerpb.NewObserverClient(f.conn).GetFlows(ctx, &observerpb.GetFlowsRequest{
		Follow: true, Number: 1, Whitelist: []*flowpb.FlowFilter{{Verdict: []flowpb.Verdict{flowpb.Verdict_DROPPED}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	next := func() *observerpb.GetFlowsResponse {
		t.Helper()
		a, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	if got := next().GetFlow(); got.GetL4().GetTCP().GetDestinationPort() != 4 || got.GetSource().GetPodName() != "web" || got.GetNodeName() != "n1" {
		t.Errorf("before: %v", got)
	}
	if w := f.log.Watched(); !w.Denials || w.Connections {
		t.Errorf("watched: %+v", w)
	}
	f.add(flow.Opened, 6)
	f.add(flow.LeftOut, 7)
	f.add(flow.Denied, 8)
	if got := next().GetLostEvents().GetNumEventsLost(); got != 7 {
		t.Errorf("left out: %d", got)
	}
	if got := next().GetFlow().GetL4().GetTCP().GetDestinationPort(); got != 8 {
		t.Errorf("then: %d", got)
	}
}

// A client that follows and sets no Number gets no earlier flows.
func TestFollowFromNow(t *testing.T) {
	f := newFixture(t, Peers{})
	f.keep()
	ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
	defer cancel()
	stream, err := observerpb.NewObserverClient(f.conn).GetFlows(ctx, &observerpb.GetFlowsRequest{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil { // arrives when the flows are watched
		t.Fatal(err)
	}
	f.add(flow.Opened, 9)
	if a, err := stream.Recv(); err != nil || a.GetFlow().GetL4().GetTCP().GetDestinationPort() != 9 {
		t.Errorf("%v, %v", a, err)
	}
}

// If a request has a field mask, the flows have only the fields in the mask.
func TestFieldMask(t *testing.T) {
	f := newFixture(t, Peers{})
	f.keep()
	stream, err := observerpb.NewObserverClient(f.conn).GetFlows(t.Context(), &observerpb.GetFlowsRequest{
		Number: 1, FieldMask: &fieldmaskpb.FieldMask{Paths: []string{"source.pod_name", "verdict", "l4"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	a, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	got := a.GetFlow()
	if got.GetSource().GetPodName() != "web" || got.GetSource().GetNamespace() != "" || got.GetDestination() != nil || got.GetUuid() != "" ||
		got.GetVerdict() != flowpb.Verdict_FORWARDED || got.GetL4().GetTCP().GetDestinationPort() != 5 {
		t.Errorf("%v", got)
	}
}

// A request that Sluice cannot fulfill gets an error that names the field. Too many clients are refused.
func TestRefused(t *testing.T) {
	f := newFixture(t, Peers{})
	for field, req := range map[string]*observerpb.GetFlowsRequest{
		"http_method": {Whitelist: []*flowpb.FlowFilter{{HttpMethod: []string{"GET"}}}},
		"node_labels": {Blacklist: []*flowpb.FlowFilter{{NodeLabels: []string{"a=b"}}}},
		"field_mask":  {FieldMask: &fieldmaskpb.FieldMask{Paths: []string{"no_such"}}},
		"first":       {First: true, Follow: true},
		"since":       {Since: &timestamppb.Timestamp{Nanos: -1}},
	} {
		if _, err := f.ports(t.Context(), req); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range maxStreams {
		stream, err := observerpb.NewObserverClient(f.conn).GetFlows(ctx, &observerpb.GetFlowsRequest{Follow: true})
		if err == nil {
			_, err = stream.Header()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.ports(t.Context(), &observerpb.GetFlowsRequest{}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one client too many: %v", err)
	}
}

// The calls other than GetFlows are answered: health, status, nodes, namespaces and agent events.
func TestDescriptions(t *testing.T) {
	f := newFixture(t, Peers{})
	f.keep()
	c := observerpb.NewObserverClient(f.conn)
	h, err := healthpb.NewHealthClient(f.conn).Check(t.Context(), &healthpb.HealthCheckRequest{Service: observerService})
	if err != nil || h.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", h, err)
	}
	s, err := c.ServerStatus(t.Context(), &observerpb.ServerStatusRequest{})
	if err != nil || s.GetNumFlows() != 10 || s.GetMaxFlows() != 100 || s.GetSeenFlows() != 10 || s.GetUptimeNs() == 0 || s.GetVersion() != "sluice v1" || s.GetFlowsRate() <= 0 {
		t.Errorf("status: %v, %v", s, err)
	}
	n, err := c.GetNodes(t.Context(), &observerpb.GetNodesRequest{})
	if err != nil || len(n.GetNodes()) != 1 || n.GetNodes()[0].GetName() != "n1" {
		t.Errorf("nodes: %v, %v", n, err)
	}
	ns, err := c.GetNamespaces(t.Context(), &observerpb.GetNamespacesRequest{})
	if all := ns.GetNamespaces(); err != nil || len(all) != 2 || all[0].GetNamespace() != "default" || all[1].GetNamespace() != "shop" {
		t.Errorf("namespaces: %v, %v", ns, err)
	}
	events, err := c.GetAgentEvents(t.Context(), &observerpb.GetAgentEventsRequest{})
	if err == nil {
		_, err = events.Recv()
	}
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("agent events: %v", err)
	}
}

// A panic in a call becomes an error of this call.
func TestPanic(t *testing.T) {
	api := New(Options{Logger: slog.New(slog.DiscardHandler)})
	_, err := api.recoverCall(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: "/x"}, func(context.Context, any) (any, error) { panic("boom") })
	if status.Code(err) != codes.Internal {
		t.Errorf("%v", err)
	}
}
