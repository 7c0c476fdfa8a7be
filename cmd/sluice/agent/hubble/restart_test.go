package hubble

import (
	"context"
	"net/netip"
	"testing"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	peerpb "github.com/cilium/cilium/api/v1/peer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sluice/filter/flow"
	"sluice/filter/policy"
)

// follow calls GetFlows and returns when the server watches the flows.
func (f *fixture) follow(ctx context.Context, t *testing.T) observerpb.Observer_GetFlowsClient {
	t.Helper()
	stream, err := observerpb.NewObserverClient(f.conn).GetFlows(ctx, &observerpb.GetFlowsRequest{Follow: true})
	if err == nil {
		_, err = stream.Header()
	}
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// wantPort receives a flow and checks its destination port.
func wantPort(t *testing.T, stream observerpb.Observer_GetFlowsClient, port uint32) {
	t.Helper()
	a, err := stream.Recv()
	if err != nil || a.GetFlow().GetL4().GetTCP().GetDestinationPort() != port {
		t.Fatalf("%v, %v, want port %d", a, err, port)
	}
}

// When an agent has ended, a client calls the next agent on the same connection, as hubble-relay does. The
// next agent sends all peers. It also sends the flows from then on, each of them once.
func TestAgentRestarts(t *testing.T) {
	f := newFixture(t, Peers{Port: 4244, Addr: netip.MustParseAddr("0.0.0.0")})
	f.store.SetNodeObject(&policy.Node{Name: "n1", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}})
	f.publish()
	ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
	defer cancel()
	flows := f.follow(ctx, t)
	f.add(flow.Denied, 1)
	wantPort(t, flows, 1)
	peer := func() peerpb.Peer_NotifyClient {
		t.Helper()
		stream, err := peerpb.NewPeerClient(f.conn).Notify(ctx, &peerpb.NotifyRequest{})
		if err != nil {
			t.Fatal(err)
		}
		c, err := stream.Recv()
		if err != nil || c.GetType() != peerpb.ChangeNotificationType_PEER_ADDED || c.GetName() != "n1" || c.GetAddress() != "192.0.2.1:4244" {
			t.Fatalf("%v, %v", c, err)
		}
		return stream
	}
	peers := peer()
	_ = f.server.Close()
	if _, err := flows.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("flows: %v", err)
	}
	if _, err := peers.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("peers: %v", err)
	}

	f.serve(t)
	f.conn.ResetConnectBackoff()
	f.until(ctx, t)
	peer()
	flows = f.follow(ctx, t)
	f.add(flow.Denied, 2)
	wantPort(t, flows, 2)
}

// until waits until the server answers.
func (f *fixture) until(ctx context.Context, t *testing.T) {
	t.Helper()
	for {
		_, err := observerpb.NewObserverClient(f.conn).ServerStatus(ctx, &observerpb.ServerStatusRequest{})
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

// When another agent takes over, calls with Follow end, so that clients connect to the other agent.
// Clients can still read the records that this agent has kept.
func TestFollowingEndsWithATakeover(t *testing.T) {
	taken, takeOver := context.WithCancel(t.Context())
	f := newFixtureWithin(t, Peers{}, func(ctx context.Context) (context.Context, context.CancelFunc) {
		limited, stop := context.WithCancel(ctx)
		if taken.Err() != nil {
			stop()
		}
		context.AfterFunc(taken, stop)
		return limited, stop
	})
	ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
	defer cancel()
	flows := f.follow(ctx, t)
	f.add(flow.Denied, 1)
	wantPort(t, flows, 1)
	takeOver()
	if _, err := flows.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("it ends with %v", err)
	}
	if _, err := f.ports(ctx, &observerpb.GetFlowsRequest{Follow: true}); status.Code(err) != codes.Unavailable {
		t.Errorf("the next call ends with %v", err)
	}
	if ports, err := f.ports(ctx, &observerpb.GetFlowsRequest{Number: 10}); err != nil || len(ports) != 1 {
		t.Errorf("what was kept: %v, %v", ports, err)
	}
}
