package hubbleflow_test

import (
	"testing"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	"google.golang.org/protobuf/encoding/protojson"

	"sluice/filter/flow"
	"sluice/filter/flow/hubbleflow"
)

// The requests of hubble-ui for a namespace, with its default list deny, are answered. Versions before 0.13
// also listed the types of events.
func TestFilterOfHubbleUI(t *testing.T) {
	deny := filters(t, `{"source_label":["reserved:unknown","reserved:host","k8s:k8s-app=kube-dns","reserved:remote-node","k8s:app=prometheus"]}`,
		`{"destination_label":["reserved:unknown","reserved:host","reserved:remote-node","k8s:app=prometheus"]}`,
		`{"destination_label":["k8s:k8s-app=kube-dns"],"destination_port":["53"]}`,
		`{"source_fqdn":["*.cluster.local*"]}`, `{"destination_fqdn":["*.cluster.local*"]}`)
	drop, pass := hubbleflow.Flow(denied()), hubbleflow.Flow(allowed())
	for _, types := range []string{"", `"event_type":[{"type":1},{"type":4},{"type":129},{"type":5}],`} {
		allow := filters(t, `{`+types+`"source_pod":["shop/"],"reply":[false]}`, `{`+types+`"destination_pod":["shop/"],"reply":[false]}`)
		if got := selected(t, drop, pass, allow, deny); got != "both" {
			t.Errorf("with the types %q: %s", types, got)
		}
		if got := selected(t, drop, pass, filters(t, `{`+types+`"source_pod":["blog/"],"reply":[false]}`), deny); got != "none" {
			t.Errorf("with the types %q, of another namespace: %s", types, got)
		}
	}
}

// Each workload of a namespace and each pod without a workload has its own identity, for which hubble-ui
// draws a card.
func TestIdentity(t *testing.T) {
	card := func(namespace, pod string, w *flow.Workload) *flowpb.Endpoint {
		return hubbleflow.Flow(&flow.Record{Event: "allowed", From: &flow.End{Kind: flow.PodEnd, Namespace: namespace, Pod: pod, Workload: w}}).GetSource()
	}
	web := &flow.Workload{Kind: "Deployment", Name: "web"}
	one := card("shop", "web-1", web)
	if one.GetIdentity() <= 255 || one.GetIdentity() != card("shop", "web-2", web).GetIdentity() {
		t.Errorf("pods of a workload: %v", one)
	}
	pod := card("shop", "web", nil)
	if w := pod.GetWorkloads(); len(w) != 1 || w[0].GetKind() != "Pod" || w[0].GetName() != "web" {
		t.Errorf("a pod without a workload: %v", pod)
	}
	for name, other := range map[string]*flowpb.Endpoint{
		"another namespace": card("blog", "web-1", web), "a pod": pod, "another kind": card("shop", "web-1", &flow.Workload{Kind: "StatefulSet", Name: "web"}),
	} {
		if other.GetIdentity() == one.GetIdentity() {
			t.Errorf("%s has the same identity", name)
		}
	}
}

func filters(t *testing.T, texts ...string) (out []*flowpb.FlowFilter) {
	t.Helper()
	for _, text := range texts {
		f := new(flowpb.FlowFilter)
		if err := protojson.Unmarshal([]byte(text), f); err != nil {
			t.Fatal(err)
		}
		out = append(out, f)
	}
	return out
}
