// Package hubbleflow converts records of flows to flows of Hubble's API and back, and implements the
// filters of that API. The API is that of github.com/cilium/cilium/api/v1.
//
// A flow of Hubble has one direction, whereas a record has both. A flow that policies deny has the
// direction that denies. The direction of another flow depends on which end is on the node of the record.
// It is egress if only the source is on the node, and ingress if only the destination is. The flow always
// has the policies of both directions.
package hubbleflow

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"strings"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"sluice/filter"
	"sluice/filter/flow"
)

// Cilium's numbers and labels, which its clients know, and the name of who makes the flows.
const (
	emitter = "Sluice"

	policyVerdict = 5 // type of an event: what policies say about a packet

	matchNone   = 0                                  // policy_match_type: no rule matches
	matchL3L4   = 2                                  // a rule matches
	matchAll    = 4                                  // allowed, and no rule matches
	namespaceOf = "k8s:io.kubernetes.pod.namespace=" // label that Hubble's clients expect
)

// Response returns a record in the form in which Observer.GetFlows sends it and "hubble observe -o jsonpb"
// prints it. It returns nil for a connection that has ended and for an Unrecorded, because Hubble has no
// form for them.
func Response(r *flow.Record) *observerpb.GetFlowsResponse {
	at := timestamppb.New(r.Time)
	out := &observerpb.GetFlowsResponse{NodeName: r.Node, Time: at}
	switch r.Event {
	case flow.Ended.String(), flow.Unrecorded.String():
		return nil
	case flow.LeftOut.String():
		out.ResponseTypes = &observerpb.GetFlowsResponse_LostEvents{LostEvents: &flowpb.LostEvent{
			Source: flowpb.LostEventSource_HUBBLE_RING_BUFFER, NumEventsLost: r.Count, First: at, Last: at,
		}}
	default:
		out.ResponseTypes = &observerpb.GetFlowsResponse_Flow{Flow: Flow(r)}
	}
	return out
}

// Flow returns the flow of a record that is allowed or denied.
func Flow(r *flow.Record) *flowpb.Flow {
	f := &flowpb.Flow{
		Time: timestamppb.New(r.Time), Uuid: uuidOf(r), NodeName: r.Node,
		Emitter:   &flowpb.Emitter{Name: emitter},
		Verdict:   flowpb.Verdict_FORWARDED,
		Type:      flowpb.FlowType_L3_L4,
		EventType: &flowpb.CiliumEventType{Type: policyVerdict},
		IsReply:   wrapperspb.Bool(false), // nil would mean unknown, and hubble-ui hides such flows
		IP:        ipOf(r), L4: layer4Of(r),
		Source: endpointOf(r.From, r.Src), Destination: endpointOf(r.Into, r.Dst),
		TrafficDirection: directionOf(r),
	}
	f.EgressAllowedBy, f.EgressDeniedBy = policiesOf(r.Egress)
	f.IngressAllowedBy, f.IngressDeniedBy = policiesOf(r.Ingress)
	if isDenied(r) {
		f.Verdict, f.DropReasonDesc = flowpb.Verdict_DROPPED, dropReasonOf(r)
		f.DropReason = uint32(f.DropReasonDesc) //nolint:staticcheck // deprecated, and hubble-ui reads it
	}
	if r.Revoked {
		f.IsReply = nil // the packets that are dropped from now on may have both directions
	}
	f.PolicyMatchType = matchOf(r)
	f.Summary = summaryOf(r) //nolint:staticcheck // deprecated, and hubble prints it
	return f
}

func isDenied(r *flow.Record) bool { return r.Event == flow.Denied.String() }

// uuidOf returns a UUID of version 8 (RFC 9562): a hash of the record, so that each conversion of the
// record returns the same UUID.
func uuidOf(r *flow.Record) string {
	h := fnv.New128a()
	for _, part := range []any{r.Time.UnixNano(), r.SrcPort, r.DstPort, r.Src.As16(), r.Dst.As16()} {
		_ = binary.Write(h, binary.BigEndian, part) // a hash returns no error
	}
	_, _ = io.WriteString(h, r.Node+"\x00"+r.Event+"\x00"+r.Protocol)
	var b [16]byte
	h.Sum(b[:0])
	b[6], b[8] = b[6]&0x0f|0x80, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// directionOf returns the direction of a flow: see the comment of the package. If both ends are on the
// node of the record, it is ingress, unless only policies of the source concern the flow. If neither end
// is, it is ingress if the destination is a pod, and otherwise egress.
func directionOf(r *flow.Record) flowpb.TrafficDirection {
	if isDenied(r) {
		switch {
		case denies(r.Egress):
			return flowpb.TrafficDirection_EGRESS
		case denies(r.Ingress):
			return flowpb.TrafficDirection_INGRESS
		}
	}
	from, into := isHere(r.From, r), isHere(r.Into, r)
	switch {
	case from && into && r.Ingress == nil && r.Egress != nil:
		return flowpb.TrafficDirection_EGRESS // only policies of the source concern the flow
	case into:
		return flowpb.TrafficDirection_INGRESS
	case from, r.Into == nil, r.Into.Kind != flow.PodEnd:
		return flowpb.TrafficDirection_EGRESS
	}
	return flowpb.TrafficDirection_INGRESS
}

func denies(s *flow.Side) bool { return s != nil && s.Action == filter.RuleDenies.String() }

// isHere reports whether an end is a pod on the node of the record, or this node itself.
func isHere(e *flow.End, r *flow.Record) bool {
	return e != nil && (e.Kind == flow.HostEnd || e.Kind == flow.PodEnd && e.Node != "" && e.Node == r.Node)
}

// dropReasonOf returns Cilium's name for a reason. POLICY_DENIED means that nothing allows the flow, and
// POLICY_DENY that a rule denies it.
func dropReasonOf(r *flow.Record) flowpb.DropReason {
	for _, s := range []*flow.Side{r.Egress, r.Ingress} {
		if denies(s) && s.Rule != "" {
			return flowpb.DropReason_POLICY_DENY
		}
	}
	switch r.Reason {
	case filter.Malformed.String():
		return flowpb.DropReason_INVALID_PACKET_DROPPED
	case filter.NotSynced.String():
		return flowpb.DropReason_NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION
	case filter.PodNotKnown.String(), filter.NamespaceNotKnown.String():
		return flowpb.DropReason_DROP_EP_NOT_READY
	}
	return flowpb.DropReason_POLICY_DENIED
}

// matchOf returns what kind of rule has decided in the direction of the flow.
func matchOf(r *flow.Record) uint32 {
	s := r.Ingress
	if directionOf(r) == flowpb.TrafficDirection_EGRESS {
		s = r.Egress
	}
	switch {
	case s != nil && s.Rule != "":
		return matchL3L4
	case isDenied(r):
		return matchNone
	}
	return matchAll
}

// summaryOf returns the text that hubble prints in brackets.
func summaryOf(r *flow.Record) string {
	text := strings.TrimSpace(r.Protocol + " " + r.Transport)
	if r.Answer != "" {
		return text + ", rejected"
	}
	if r.By == "" || r.Egress != nil || r.Ingress != nil {
		return text
	}
	return text + ", " + r.Reason // denied, and not by a policy
}

func ipOf(r *flow.Record) *flowpb.IP {
	if !r.Src.IsValid() {
		return nil
	}
	ip := &flowpb.IP{Source: r.Src.String(), Destination: r.Dst.String(), IpVersion: flowpb.IPVersion_IPv4}
	if r.Dst.Is6() {
		ip.IpVersion = flowpb.IPVersion_IPv6
	}
	return ip
}

// layer4Of returns nil for protocols that Hubble has no field for.
func layer4Of(r *flow.Record) *flowpb.Layer4 {
	from, to := uint32(r.SrcPort), uint32(r.DstPort)
	switch r.Protocol {
	case filter.TCP.String():
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_TCP{TCP: &flowpb.TCP{SourcePort: from, DestinationPort: to}}}
	case filter.UDP.String():
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_UDP{UDP: &flowpb.UDP{SourcePort: from, DestinationPort: to}}}
	case filter.SCTP.String():
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_SCTP{SCTP: &flowpb.SCTP{SourcePort: from, DestinationPort: to}}}
	case filter.ICMP.String():
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_ICMPv4{ICMPv4: &flowpb.ICMPv4{}}}
	case filter.ICMPv6.String():
		return &flowpb.Layer4{Protocol: &flowpb.Layer4_ICMPv6{ICMPv6: &flowpb.ICMPv6{}}}
	}
	return nil
}

// policiesOf returns the policies of a side: those that allow, or those that deny.
func policiesOf(s *flow.Side) (allow, deny []*flowpb.Policy) {
	if s == nil {
		return nil, nil
	}
	var all []*flowpb.Policy
	for _, title := range s.Policies {
		all = append(all, policyOf(title, s.Tier))
	}
	if denies(s) {
		return nil, all
	}
	return all, nil
}

// policyOf returns a policy by its title: see filter.PolicyTitle.
func policyOf(title, tier string) *flowpb.Policy {
	first, name, _ := strings.Cut(title, "/")
	if tier == filter.NetworkPolicyTier.String() {
		return &flowpb.Policy{Kind: "NetworkPolicy", Namespace: first, Name: name}
	}
	return &flowpb.Policy{Kind: "ClusterNetworkPolicy", Name: name}
}
