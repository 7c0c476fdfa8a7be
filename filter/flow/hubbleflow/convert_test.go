package hubbleflow_test

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"sluice/filter/flow"
	"sluice/filter/flow/hubbleflow"
)

// denied is a record of a packet that nothing allows.
func denied() *flow.Record {
	return &flow.Record{
		Time: time.Date(2026, 11, 27, 6, 0, 0, 123456789, time.UTC), Node: "n1", Event: "denied", Reason: "ingress-denied", By: "kernel",
		Src: netip.MustParseAddr("10.0.0.1"), SrcPort: 40000, Dst: netip.MustParseAddr("10.0.1.2"), DstPort: 5432, Protocol: "TCP",
		From: &flow.End{Kind: flow.PodEnd, Namespace: "shop", Pod: "web-6d4cf56db6-x2k4q", Node: "n1", Labels: map[string]string{"app": "web"},
			Workload: &flow.Workload{Kind: "Deployment", Name: "web"}},
		Into:    &flow.End{Kind: flow.PodEnd, Namespace: "shop", Pod: "db-0", Node: "n2", Labels: map[string]string{"app": "db"}},
		Ingress: &flow.Side{Action: "deny", Policies: []string{"shop/db", "shop/default"}, Tier: "NetworkPolicy"},
	}
}

// allowed is a record of a connection from outside.
func allowed() *flow.Record {
	r := denied()
	r.Event, r.Reason, r.By, r.Node = "allowed", "rule", "", "n2"
	r.Src, r.From = netip.MustParseAddr("2001:db8::1"), &flow.End{Kind: flow.WorldEnd}
	r.Dst = netip.MustParseAddr("2001:db8:1::2")
	r.Ingress = &flow.Side{Action: "accept", Policies: []string{"admin/platform"}, Tier: "Admin", Rule: "ingress[1]", RuleName: "web"}
	return r
}

// A record becomes the JSON that hubble prints and reads.
func TestJSON(t *testing.T) {
	line, err := json.Marshal(hubbleflow.Response(denied()))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"flow":{"time":"2026-11-27T06:00:00.123456789Z","uuid":"UUID","verdict":"DROPPED","drop_reason":133,` +
		`"IP":{"source":"10.0.0.1","destination":"10.0.1.2","ipVersion":"IPv4"},"l4":{"TCP":{"source_port":40000,"destination_port":5432}},` +
		`"source":{"identity":702776570,"namespace":"shop","labels":["k8s:app=web","k8s:io.kubernetes.pod.namespace=shop"],"pod_name":"web-6d4cf56db6-x2k4q","workloads":[{"name":"web","kind":"Deployment"}]},` +
		`"destination":{"identity":1276157185,"namespace":"shop","labels":["k8s:app=db","k8s:io.kubernetes.pod.namespace=shop"],"pod_name":"db-0","workloads":[{"kind":"Pod","name":"db-0"}]},` +
		`"Type":"L3_L4","node_name":"n1","event_type":{"type":5},"traffic_direction":"INGRESS","drop_reason_desc":"POLICY_DENIED","is_reply":false,` +
		`"emitter":{"name":"Sluice"},"Summary":"TCP","ingress_denied_by":[{"name":"db","namespace":"shop","kind":"NetworkPolicy"},{"name":"default","namespace":"shop","kind":"NetworkPolicy"}]},` +
		`"node_name":"n1","time":"2026-11-27T06:00:00.123456789Z"}`
	var got, wanted observerpb.GetFlowsResponse
	if err := protojson.Unmarshal(line, &got); err != nil {
		t.Fatal(err)
	}
	want = strings.Replace(want, "UUID", got.GetFlow().GetUuid(), 1)
	if err := protojson.Unmarshal([]byte(want), &wanted); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(&got, &wanted) {
		t.Errorf("%s\nwant\n%s", line, want)
	}
	if u := got.GetFlow().GetUuid(); len(u) != 36 || u != hubbleflow.Flow(denied()).GetUuid() || u == hubbleflow.Flow(allowed()).GetUuid() {
		t.Errorf("the UUID %q is not that of the record", u)
	}
}

// An allowed flow has the fields without which hubble-ui drops it: is_reply, both ends and l4.
func TestAllowed(t *testing.T) {
	f := hubbleflow.Flow(allowed())
	if f.GetVerdict() != flowpb.Verdict_FORWARDED || f.GetIsReply() == nil || f.GetL4().GetTCP() == nil || f.GetIP().GetIpVersion() != flowpb.IPVersion_IPv6 ||
		!slices.Equal(f.GetSource().GetLabels(), []string{"reserved:world"}) || f.GetSource().GetIdentity() != 2 {
		t.Errorf("%v", f)
	}
	if p := f.GetIngressAllowedBy(); len(p) != 1 || p[0].GetKind() != "ClusterNetworkPolicy" || p[0].GetName() != "platform" || p[0].GetNamespace() != "" {
		t.Errorf("allowed by %v", p)
	}
	if f.GetIngressDeniedBy() != nil || f.GetDropReasonDesc() != 0 || f.GetPolicyMatchType() != 2 {
		t.Errorf("%v", f)
	}
}

// The other records have the right form, too: a denial by a rule, a malformed packet, records that were
// left out, and a connection that has ended.
func TestOtherRecords(t *testing.T) {
	r := allowed()
	r.Event, r.Ingress.Action = "denied", "deny"
	if f := hubbleflow.Flow(r); f.GetDropReasonDesc() != flowpb.DropReason_POLICY_DENY || len(f.GetIngressDeniedBy()) != 1 {
		t.Errorf("explicit: %v", f)
	}
	r = &flow.Record{Event: "denied", Reason: "malformed", By: "agent"}
	if f := hubbleflow.Flow(r); f.GetDropReasonDesc() != flowpb.DropReason_INVALID_PACKET_DROPPED || f.GetIP() != nil || !slices.Equal(f.GetSource().GetLabels(), []string{"reserved:unknown"}) {
		t.Errorf("malformed: %v", f)
	}
	if l := hubbleflow.Response(&flow.Record{Event: "left-out", Count: 7}).GetLostEvents(); l.GetNumEventsLost() != 7 {
		t.Errorf("left out: %v", l)
	}
	if a := hubbleflow.Response(&flow.Record{Event: "ended"}); a != nil {
		t.Errorf("ended: %v", a)
	}
}

// A denied flow has the direction that denies. An allowed flow has the direction egress if only its source
// is on the node of the record, and ingress if only its destination is. In the other cases, the direction
// depends on the policies or on the kind of the destination.
func TestDirection(t *testing.T) {
	side := func(action string) *flow.Side {
		return &flow.Side{Action: action, Policies: []string{"a/b"}, Tier: "NetworkPolicy"}
	}
	pod := func(node string) *flow.End { return &flow.End{Kind: flow.PodEnd, Node: node} }
	for name, tt := range map[string]struct {
		event           string
		from, into      *flow.End
		egress, ingress *flow.Side
		want            string
	}{
		"egress denies":      {"denied", pod("n1"), pod("n1"), side("deny"), side("deny"), "EGRESS"},
		"ingress denies":     {"denied", pod("n1"), pod("n2"), side("accept"), side("deny"), "INGRESS"},
		"sent from here":     {"allowed", pod("n1"), pod("n2"), nil, side("accept"), "EGRESS"},
		"received here":      {"allowed", pod("n2"), pod("n1"), side("accept"), nil, "INGRESS"},
		"both here":          {"allowed", pod("n1"), pod("n1"), side("accept"), side("accept"), "INGRESS"},
		"both here, egress":  {"allowed", pod("n1"), pod("n1"), side("accept"), nil, "EGRESS"},
		"to the world":       {"allowed", pod(""), &flow.End{Kind: flow.WorldEnd}, nil, nil, "EGRESS"},
		"nodes not known":    {"allowed", pod(""), pod(""), nil, nil, "INGRESS"},
		"from the node here": {"allowed", &flow.End{Kind: flow.HostEnd}, pod("n2"), nil, nil, "EGRESS"},
	} {
		r := &flow.Record{Node: "n1", Event: tt.event, From: tt.from, Into: tt.into, Egress: tt.egress, Ingress: tt.ingress}
		if got := hubbleflow.Flow(r).GetTrafficDirection().String(); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

// Each filter selects the flow that it describes, and does not select the other flow. For a filter that
// Sluice does not support, the error names the field.
func TestFilter(t *testing.T) {
	drop, pass := hubbleflow.Flow(denied()), hubbleflow.Flow(allowed())
	for _, tt := range []struct{ filter, want string }{
		{`{}`, "both"},
		{`{"verdict":["DROPPED"]}`, "drop"},
		{`{"uuid":["` + drop.GetUuid() + `"]}`, "drop"},
		{`{"source_ip":["10.0.0.0/24"]}`, "drop"},
		{`{"source_ip":["2001:db8::1"],"destination_port":["5432"]}`, "pass"},
		{`{"destination_ip":["10.0.1.2","192.0.2.1"]}`, "drop"},
		{`{"source_pod":["shop/web"]}`, "drop"},
		{`{"source_pod":["/web-"]}`, "drop"},
		{`{"source_pod":["web"]}`, "none"}, // in the namespace default, as in Hubble
		{`{"destination_pod":["shop/"]}`, "both"},
		{`{"source_label":["app=web"]}`, "drop"},
		{`{"source_label":["k8s:app in (web, api),k8s:io.kubernetes.pod.namespace=shop"]}`, "drop"},
		{`{"source_label":["reserved:world"]}`, "pass"},
		{`{"source_label":["!k8s:app"]}`, "pass"},
		{`{"source_label":["k8s:app!=web"]}`, "pass"},
		{`{"destination_label":["app"]}`, "both"},
		{`{"source_workload":[{"kind":"Deployment"}]}`, "drop"},
		{`{"destination_workload":[{"name":"db"}]}`, "none"},
		{`{"destination_workload":[{"kind":"Pod"}]}`, "both"},
		{`{"source_identity":[2]}`, "pass"},
		{`{"destination_identity":[2]}`, "none"},
		{`{"source_port":["40000"]}`, "both"},
		{`{"protocol":["TCP"]}`, "both"},
		{`{"protocol":["icmp","udp"]}`, "none"},
		{`{"ip_version":["IPv6"]}`, "pass"},
		{`{"drop_reason_desc":["POLICY_DENIED"]}`, "drop"},
		{`{"drop_reason_desc":["DROP_REASON_UNKNOWN"]}`, "none"},
		{`{"traffic_direction":["INGRESS"]}`, "both"},
		{`{"reply":[false]}`, "both"},
		{`{"reply":[true]}`, "none"},
		{`{"event_type":[{"type":1}]}`, "drop"},
		{`{"event_type":[{"type":1,"match_sub_type":true,"sub_type":181}]}`, "none"},
		{`{"event_type":[{"type":4}]}`, "pass"},
		{`{"event_type":[{"type":5}]}`, "both"},
		{`{"event_type":[{"type":129}]}`, "event_type"},
		{`{"event_type":[{"type":129},{"type":1}]}`, "drop"},
		{`{"node_name":["n1"]}`, "drop"},
		{`{"node_name":["default/n*"]}`, "both"},
		{`{"node_name":["other/"]}`, "none"},
		{`{"node_name":["["]}`, "node_name"},
		{`{"source_ip":["ten"]}`, "source_ip"},
		{`{"source_pod":[""]}`, "source_pod"},
		{`{"source_label":["a in b"]}`, "source_label"},
		{`{"destination_port":["http"]}`, "destination_port"},
		{`{"protocol":["dns"]}`, "protocol"},
		{`{"http_path":["/x"]}`, "http_path"},
		{`{"destination_fqdn":["example.org"]}`, "destination_fqdn"},
		{`{"tcp_flags":[{"SYN":true}]}`, "tcp_flags"},
		{`{"destination_service":["shop/db"]}`, "destination_service"},
		{`{"experimental":{"cel_expression":["true"]}}`, "experimental.cel_expression: Sluice evaluates no expressions"},
	} {
		ff := new(flowpb.FlowFilter)
		if err := protojson.Unmarshal([]byte(tt.filter), ff); err != nil {
			t.Fatalf("%s: %v", tt.filter, err)
		}
		got := selected(t, drop, pass, []*flowpb.FlowFilter{ff}, nil)
		if !strings.HasPrefix(got, tt.want) {
			t.Errorf("%s selects %s, want %s", tt.filter, got, tt.want)
		}
		opposite := map[string]string{"both": "none", "none": "both", "drop": "pass", "pass": "drop"}
		if want := opposite[tt.want]; want != "" {
			if got := selected(t, drop, pass, nil, []*flowpb.FlowFilter{ff}); got != want {
				t.Errorf("without %s: %s, want %s", tt.filter, got, want)
			}
		}
	}
}

// selected returns which of the two flows the lists select. If the lists are refused, it returns the field
// that the error names.
func selected(t *testing.T, drop, pass *flowpb.Flow, allow, deny []*flowpb.FlowFilter) string {
	t.Helper()
	f, err := hubbleflow.NewFilter(allow, deny)
	if err != nil {
		text, is := strings.CutPrefix(err.Error(), "filter ")
		if !is {
			t.Errorf("the error names no field: %v", err)
		}
		return text
	}
	names := map[[2]bool]string{{true, true}: "both", {true, false}: "drop", {false, true}: "pass", {}: "none"}
	return names[[2]bool{f.Selects(drop), f.Selects(pass)}]
}

// OnlyDenials is true only for filters that select no allowed flow, so that connections need not be
// watched.
func TestOnlyDenials(t *testing.T) {
	dropped := &flowpb.FlowFilter{Verdict: []flowpb.Verdict{flowpb.Verdict_DROPPED}}
	for _, tt := range []struct {
		allow []*flowpb.FlowFilter
		want  bool
	}{{nil, false}, {[]*flowpb.FlowFilter{dropped}, true}, {[]*flowpb.FlowFilter{dropped, {}}, false}} {
		f, err := hubbleflow.NewFilter(tt.allow, nil)
		if err != nil || f.OnlyDenials() != tt.want {
			t.Errorf("%v: %v, %v", tt.allow, f, err)
		}
	}
}
