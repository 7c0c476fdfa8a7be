package hubble

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	relaypb "github.com/cilium/cilium/api/v1/relay"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sluice/filter/flow"
	"sluice/filter/flow/hubbleflow"
)

// observer implements Hubble's service Observer.
type observer struct {
	observerpb.UnimplementedObserverServer
	Options
	started time.Time
	streams chan struct{} // holds a value for each running call of GetFlows
}

// GetFlows sends flows that the log has kept. If req has Follow, it also sends the flows from now on.
func (o *observer) GetFlows(req *observerpb.GetFlowsRequest, stream observerpb.Observer_GetFlowsServer) error {
	q, err := newQuery(req, time.Now())
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	select {
	case o.streams <- struct{}{}:
		defer func() { <-o.streams }()
	default:
		return status.Errorf(codes.ResourceExhausted, "%d clients read the flows of %s already: end one of them", maxStreams, o.NodeName)
	}
	ctx := stream.Context()
	if q.follow {
		var stop context.CancelFunc
		ctx, stop = o.Within(ctx)
		defer stop()
		if ctx.Err() != nil {
			return errNotEnforcing
		}
	}
	_, _, size := o.Log.Kept()
	w := o.Log.Watch(q.backlog(size), !q.filter.OnlyDenials())
	defer w.Close()
	if err := stream.SendHeader(nil); err != nil { // tells the client that flows are watched from now on
		return err
	}
	s := &sender{query: q, stream: stream, watcher: w, describer: flow.NewDescriber(o.NodeName, o.Snapshot)}
	err = s.run(ctx)
	if err == nil && ctx.Err() != nil && stream.Context().Err() == nil {
		return errNotEnforcing
	}
	return err
}

// errNotEnforcing is the error of a call that follows the flows of an agent that does not enforce. Clients
// call again.
var errNotEnforcing = status.Error(codes.Unavailable, "the agent does not enforce yet, or another one has taken over: ask again")

// errUntil is the cause with which the context of a query ends at the time that the client has set.
var errUntil = errors.New("the end that the client has asked for")

// sender sends the answer of a query to a client.
type sender struct {
	*query
	stream    observerpb.Observer_GetFlowsServer
	watcher   *flow.Watcher
	describer *flow.Describer
	sent      uint64
}

// run sends flows until the query is answered or the client has gone.
func (s *sender) run(ctx context.Context) error {
	if !s.until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadlineCause(ctx, s.until, errUntil)
		defer cancel()
	}
	send := s.send
	var last lastEntries
	if s.number > 0 && !s.first {
		last.max = s.number
		send = last.add
	}
	var entries [64]flow.Entry
	for following := false; ; {
		n := s.watcher.Next(ctx, entries[:], following)
		done := n == 0
		for i := range entries[:n] {
			e := &entries[i]
			if !following && !done && e.Time.After(s.now) {
				done = true // the records from before the query end here
				if !s.follow {
					break
				}
				if err := last.each(s.send); err != nil {
					return err
				}
				send = s.send
			}
			if err := s.pass(e, send); err != nil {
				return err
			}
		}
		switch {
		case s.first && s.sent >= s.number && s.number > 0:
			return nil
		case !done:
			continue
		case following:
			return nil // the time s.until has come, or the client has gone
		}
		if err := last.each(s.send); err != nil || !s.follow {
			return err
		}
		following, send = true, s.send
	}
}

// pass calls send with an entry if the query selects the entry.
func (s *sender) pass(e *flow.Entry, send func(*flow.Entry) error) error {
	if e.Time.Before(s.since) || !s.until.IsZero() && e.Time.After(s.until) || e.Kind == flow.Ended || e.Kind == flow.Unrecorded {
		return nil
	}
	if e.Kind != flow.LeftOut && !s.filter.Selects(hubbleflow.Flow(s.describer.Record(e))) {
		return nil
	}
	return send(e)
}

func (s *sender) send(e *flow.Entry) error {
	answer := hubbleflow.Response(s.describer.Record(e))
	if f := answer.GetFlow(); f != nil {
		if s.first && s.number > 0 && s.sent >= s.number {
			return nil
		}
		s.sent++
		s.mask.keep(f.ProtoReflect())
	}
	return s.stream.Send(answer)
}

// ServerStatus returns the size and the age of the log of flows.
func (o *observer) ServerStatus(context.Context, *observerpb.ServerStatusRequest) (*observerpb.ServerStatusResponse, error) {
	kept, oldest, size := o.Log.Kept()
	seen, _ := o.Log.Stats()
	out := &observerpb.ServerStatusResponse{
		NumFlows: uint64(kept), MaxFlows: uint64(size), SeenFlows: seen,
		UptimeNs: uint64(time.Since(o.started)), Version: o.version(),
	}
	if age := time.Since(oldest).Seconds(); kept > 0 && age > 0 {
		out.FlowsRate = float64(kept) / age
	}
	return out, nil
}

func (o *observer) version() string { return "sluice " + o.Version }

// GetNodes returns this node only. A relay collects the answers of all nodes.
func (o *observer) GetNodes(ctx context.Context, _ *observerpb.GetNodesRequest) (*observerpb.GetNodesResponse, error) {
	s, err := o.ServerStatus(ctx, nil)
	if err != nil {
		return nil, err
	}
	return &observerpb.GetNodesResponse{Nodes: []*observerpb.Node{{
		Name: o.NodeName, Version: s.GetVersion(), State: relaypb.NodeState_NODE_CONNECTED, UptimeNs: s.GetUptimeNs(),
		NumFlows: s.GetNumFlows(), MaxFlows: s.GetMaxFlows(), SeenFlows: s.GetSeenFlows(),
	}}}, nil
}

// GetNamespaces returns all namespaces that have pods, even those without flows. hubble-ui offers them
// for selection.
func (o *observer) GetNamespaces(context.Context, *observerpb.GetNamespacesRequest) (*observerpb.GetNamespacesResponse, error) {
	names := make(map[string]bool)
	if s := o.Snapshot(); s != nil {
		for _, e := range s.Endpoints() {
			if e.Namespace != "" {
				names[e.Namespace] = true
			}
		}
	}
	out := new(observerpb.GetNamespacesResponse)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		out.Namespaces = append(out.Namespaces, &observerpb.Namespace{Cluster: "default", Namespace: name})
	}
	return out, nil
}
