// Package hubble serves the part of Hubble's API that shows flows, so that the clients of Hubble show
// those of this node: hubble, hubble-relay and hubble-ui.
//
// Nothing is recorded, and nothing is asked of the kernel, until a client calls GetFlows.
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
	// maxStreams bounds the calls of GetFlows at the same time, in all. Each may hold the records from
	// before that it has selected: 4 MiB with the usual --flow-buffer.
	maxStreams = 16
	// maxRequest bounds a request, in bytes: lists of filters.
	maxRequest = 256 << 10
	// maxCalls bounds the calls of one connection at the same time, and maxPeers those of Notify in all.
	maxCalls, maxPeers = 32, 64
	// handshakeTimeout bounds the time of a connection until it is encrypted.
	handshakeTimeout = 10 * time.Second
	// keepaliveInterval is the time after which a silent client is asked whether it is there, and
	// keepaliveTimeout the time that it has to answer.
	keepaliveInterval, keepaliveTimeout = 30 * time.Second, 10 * time.Second
	// pingInterval is the least time between two such questions of a client.
	pingInterval = 10 * time.Second
	// observerService is the name by which hubble asks for the health of the server.
	observerService = "hubble.server.Observer"
)

// Options are what the servers answer with.
type Options struct {
	Log      *flow.Log
	Snapshot func() *policy.Snapshot // the one in force; nil before the first
	NodeName string
	Version  string
	Peers    Peers
	Logger   *slog.Logger
}

// API answers the calls of clients. Its servers share the bounds.
type API struct {
	observer *observer
	peer     *peer
	logger   *slog.Logger
}

// New returns an API.
func New(opts Options) *API {
	return &API{
		observer: &observer{Options: opts, started: time.Now(), streams: make(chan struct{}, maxStreams)},
		peer:     &peer{Options: opts, calls: make(chan struct{}, maxPeers), interval: peerInterval},
		logger:   opts.Logger,
	}
}

// Server is a server of an API.
type Server struct{ *grpc.Server }

// Close ends all calls.
func (s Server) Close() error {
	s.Stop()
	return nil
}

// NewServer returns a server. Without credentials, it does not encrypt.
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
	return Server{s}
}

// recoverCall and recoverStream answer a call that panics with an error: a mistake here must not end
// the enforcement of policies.
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
