// Package hubble serves the part of Hubble's API that shows flows, so that Hubble's clients can show the
// flows of this node: hubble, hubble-relay and hubble-ui.
//
// Only a running call of GetFlows makes the agent watch flows. While there is none, the API costs
// nothing.
package hubble

import (
	"context"
	"log/slog"
	"runtime/debug"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	peerpb "github.com/cilium/cilium/api/v1/peer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"sluice/filter/flow"
	"sluice/filter/policy"
)

const (
	// maxStreams bounds the calls of GetFlows that run at the same time, over all connections. Each call
	// may hold the earlier records that it has selected. They take up to 4 MiB with the default
	// --flow-buffer.
	maxStreams = 16
	// maxRequest bounds the size of a request, in bytes. Most of it are lists of filters.
	maxRequest = 256 << 10
	// maxCalls bounds the calls that run at the same time on one connection. maxPeers bounds the calls of
	// Notify that run at the same time, over all connections.
	maxCalls, maxPeers = 32, 64
	// handshakeTimeout bounds the time of a new connection until its handshakes are complete.
	handshakeTimeout = 10 * time.Second
	// keepaliveInterval is the time after which the server pings a client that sends nothing.
	// keepaliveTimeout bounds the wait for the answer.
	keepaliveInterval, keepaliveTimeout = 30 * time.Second, 10 * time.Second
	// pingInterval is the least time between two pings that a client may send.
	pingInterval = 10 * time.Second
	// observerService is the name by which hubble asks for the health of the server.
	observerService = "hubble.server.Observer"
)

// Options are the data of the answers, and where to log.
type Options struct {
	Log      *flow.Log
	Snapshot func() *policy.Snapshot // returns the snapshot in force; nil before the first one
	NodeName string
	Version  string
	Peers    Peers
	// Within returns a context that ends when the given context ends, and also when another agent takes
	// over: Log does not have the flows about which that agent decides. If this agent does not enforce,
	// the context has already ended. The caller must call stop. If Within is nil, contexts end for none of
	// these reasons.
	Within func(context.Context) (limited context.Context, stop context.CancelFunc)
	Logger *slog.Logger
}

// API answers the calls of clients. maxStreams and maxPeers apply to all its servers together.
type API struct {
	observer *observer
	peer     *peer
	logger   *slog.Logger
}

// New returns an API.
func New(opts Options) *API {
	if opts.Within == nil {
		opts.Within = context.WithCancel
	}
	return &API{
		observer: &observer{Options: opts, started: time.Now(), streams: make(chan struct{}, maxStreams)},
		peer:     &peer{Options: opts, calls: make(chan struct{}, maxPeers), interval: peerInterval},
		logger:   opts.Logger,
	}
}

// Server is a server of an API.
type Server struct {
	*grpc.Server
	// Failure returns the reason for which clients are refused, or for which their connections have an old
	// certificate. It returns "" if there is no failure. The field is nil if the server does not encrypt.
	Failure func() string
}

// Close ends all calls.
func (s Server) Close() error {
	s.Stop()
	return nil
}

// NewServer returns a server. If c is nil, the server does not encrypt.
func (a *API) NewServer(c credentials.TransportCredentials) Server {
	opts := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxRequest), grpc.MaxConcurrentStreams(maxCalls), grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveInterval, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingInterval, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(a.recoverCall), grpc.StreamInterceptor(a.recoverStream),
	}
	if c != nil {
		opts = append(opts, grpc.Creds(c))
	}
	s := grpc.NewServer(opts...)
	observerpb.RegisterObserverServer(s, a.observer)
	peerpb.RegisterPeerServer(s, a.peer)
	h := health.NewServer()
	h.SetServingStatus(observerService, healthpb.HealthCheckResponse_SERVING)
	healthpb.RegisterHealthServer(s, h)
	return Server{Server: s}
}

// recoverCall and recoverStream recover from a panic in a call, and answer the call with an error, because
// a mistake in this package must not end the enforcement of policies.
func (a *API) recoverCall(ctx context.Context, req any, call *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (answer any, err error) {
	defer a.recovered(call.FullMethod, &err)
	return handle(ctx, req)
}

func (a *API) recoverStream(srv any, stream grpc.ServerStream, call *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	defer a.recovered(call.FullMethod, &err)
	return handle(srv, stream)
}

func (a *API) recovered(method string, err *error) {
	if p := recover(); p != nil {
		a.logger.Error("a call of Hubble's API failed; policies are still enforced", "method", method, "err", p, "stack", string(debug.Stack()))
		*err = status.Errorf(codes.Internal, "%s failed: see the agent's log", method)
	}
}
