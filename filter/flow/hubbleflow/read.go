package hubbleflow

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/protobuf/encoding/protojson"

	"sluice/filter"
	"sluice/filter/flow"
)

// Parse reads a line that "hubble observe -o json" or Hubble's exporter has written: a flow, or a response
// that contains one. It returns the flow as a record, without the rules that have decided. If the flow is
// not an attempt to connect, it returns the reason skip instead. ok is false if the line is not Hubble's.
//
// Hubble may write the same attempt several times: once at each end, and for further packets of the
// connection.
func Parse(line []byte) (r *flow.Record, skip flow.Skip, ok bool) {
	fields := [][]byte{[]byte(`"flow"`), []byte(`"IP"`), []byte(`"event_type"`), []byte(`"eventType"`), []byte(`"lost_events"`), []byte(`"lostEvents"`), []byte(`"node_status"`), []byte(`"nodeStatus"`)}
	if !slices.ContainsFunc(fields, func(f []byte) bool { return bytes.Contains(line, f) }) {
		return nil, "", false // takes a fifth of the time of Unmarshal
	}
	lenient := protojson.UnmarshalOptions{DiscardUnknown: true} // fields and values of later versions
	var event observerpb.GetFlowsResponse
	if lenient.Unmarshal(line, &event) != nil {
		return nil, "", false
	}
	switch e := event.ResponseTypes.(type) {
	case *observerpb.GetFlowsResponse_Flow:
		r, skip = recordOf(e.Flow)
		return r, skip, true
	case *observerpb.GetFlowsResponse_LostEvents:
		r := &flow.Record{Event: flow.LeftOut.String(), Node: event.NodeName, Count: e.LostEvents.GetNumEventsLost()}
		if event.Time.IsValid() {
			r.Time = event.Time.AsTime()
		}
		return r, "", true
	case *observerpb.GetFlowsResponse_NodeStatus:
		return nil, flow.SkipNoVerdict, true
	}
	var bare flowpb.Flow
	if lenient.Unmarshal(line, &bare) != nil || bare.IP == nil && bare.L4 == nil && bare.EventType == nil {
		return nil, "", false
	}
	r, skip = recordOf(&bare)
	return r, skip, true
}

// recordOf is the inverse of Flow. It also converts flows of Cilium's agents.
func recordOf(f *flowpb.Flow) (*flow.Record, flow.Skip) {
	if skip := skipped(f); skip != "" {
		return nil, skip
	}
	r := &flow.Record{Node: nodeNameOf(f.NodeName), Event: flow.Opened.String()}
	if f.Time.IsValid() {
		r.Time = f.Time.AsTime()
	}
	if f.Verdict == flowpb.Verdict_DROPPED {
		r.Event, r.Reason = flow.Denied.String(), reasonOf(f)
	}
	r.Src, _ = netip.ParseAddr(f.GetIP().GetSource())      // a missing or wrong address stays invalid:
	r.Dst, _ = netip.ParseAddr(f.GetIP().GetDestination()) // this end then has only its name
	r.Src, r.Dst = r.Src.Unmap(), r.Dst.Unmap()
	portsFrom(r, f.L4)
	r.From, r.Into = endOf(f.Source, r.Node), endOf(f.Destination, r.Node)
	// The direction tells which end is on the node of the flow. Hubble does not name the node of an end
	// otherwise.
	here := map[flowpb.TrafficDirection]*flow.End{flowpb.TrafficDirection_EGRESS: r.From, flowpb.TrafficDirection_INGRESS: r.Into}[f.TrafficDirection]
	if here != nil && here.Kind == flow.PodEnd {
		here.Node = r.Node
	}
	return r, ""
}

// skipped returns why a flow is not an attempt to connect; "" if it is one.
func skipped(f *flowpb.Flow) flow.Skip {
	switch {
	case f.L7 != nil || f.Type == flowpb.FlowType_L7:
		return flow.SkipRequest
	case f.IsReply.GetValue(), f.IsReply == nil && isAnswer(f.L4.GetTCP()):
		return flow.SkipReply
	}
	switch f.Verdict {
	case flowpb.Verdict_DROPPED:
		if f.IsReply == nil && f.GetEmitter().GetName() == emitter {
			return flow.SkipRevoked // Flow knows the direction of all others
		}
		return ""
	case flowpb.Verdict_FORWARDED, flowpb.Verdict_REDIRECTED, flowpb.Verdict_AUDIT:
		begins := f.L4.GetTCP().GetFlags().GetSYN() || f.GetEventType().GetType() == policyVerdict
		if f.IsReply == nil && !begins {
			return flow.SkipUnknown
		}
		return ""
	}
	return flow.SkipNoVerdict
}

// isAnswer reports whether a packet answers the first packet of a TCP connection.
func isAnswer(t *flowpb.TCP) bool { return t.GetFlags().GetSYN() && t.GetFlags().GetACK() }

// reasonOf returns the reason of a denial: Sluice's if a policy denied, otherwise Hubble's name for it.
func reasonOf(f *flowpb.Flow) string {
	reason := f.DropReasonDesc
	if reason == flowpb.DropReason_DROP_REASON_UNKNOWN {
		reason = flowpb.DropReason(f.DropReason) //nolint:staticcheck // deprecated, and all that old versions write
	}
	switch reason {
	case flowpb.DropReason_DROP_REASON_UNKNOWN, flowpb.DropReason_POLICY_DENIED, flowpb.DropReason_POLICY_DENY:
		if f.TrafficDirection == flowpb.TrafficDirection_EGRESS {
			return filter.EgressDenied.String()
		}
		return filter.IngressDenied.String()
	}
	return strings.ToLower(strings.ReplaceAll(reason.String(), "_", "-"))
}

// nodeNameOf returns the name of a node without the name of its cluster in front.
func nodeNameOf(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }

func portsFrom(r *flow.Record, l4 *flowpb.Layer4) {
	switch p := l4.GetProtocol().(type) {
	case *flowpb.Layer4_TCP:
		r.Protocol, r.SrcPort, r.DstPort = filter.TCP.String(), uint16(p.TCP.SourcePort), uint16(p.TCP.DestinationPort)
	case *flowpb.Layer4_UDP:
		r.Protocol, r.SrcPort, r.DstPort = filter.UDP.String(), uint16(p.UDP.SourcePort), uint16(p.UDP.DestinationPort)
	case *flowpb.Layer4_SCTP:
		r.Protocol, r.SrcPort, r.DstPort = filter.SCTP.String(), uint16(p.SCTP.SourcePort), uint16(p.SCTP.DestinationPort)
	case *flowpb.Layer4_ICMPv4:
		r.Protocol = filter.ICMP.String()
	case *flowpb.Layer4_ICMPv6:
		r.Protocol = filter.ICMPv6.String()
	}
}

// endOf describes an end. The parameter node is the node that has seen the flow, which Hubble calls host.
func endOf(e *flowpb.Endpoint, node string) *flow.End {
	if e == nil {
		return nil
	}
	if e.PodName == "" && e.Namespace == "" {
		for _, l := range e.Labels {
			switch l {
			case "reserved:host":
				return &flow.End{Kind: flow.HostEnd, Node: node}
			case "reserved:remote-node":
				return &flow.End{Kind: flow.RemoteNodeEnd}
			case "reserved:world", "reserved:world-ipv4", "reserved:world-ipv6":
				return &flow.End{Kind: flow.WorldEnd}
			}
		}
		return nil // the end has only its address
	}
	out := &flow.End{Kind: flow.PodEnd, Namespace: e.Namespace, Pod: e.PodName, Labels: make(map[string]string)}
	if len(e.Workloads) > 0 {
		out.Workload = &flow.Workload{Kind: e.Workloads[0].Kind, Name: e.Workloads[0].Name}
	}
	for _, l := range e.Labels {
		k, v, _ := strings.Cut(strings.TrimPrefix(l, "k8s:"), "=")
		if strings.HasPrefix(l, "k8s:") && !strings.HasPrefix(k, "io.cilium.k8s.") && !strings.HasPrefix(k, "io.kubernetes.pod.") {
			out.Labels[k] = v
		}
	}
	return out
}
