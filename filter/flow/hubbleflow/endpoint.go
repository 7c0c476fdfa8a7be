package hubbleflow

import (
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	flowpb "github.com/cilium/cilium/api/v1/flow"

	"sluice/filter/flow"
)

// Identities that Cilium reserves. The identities of pods are greater than maxReserved.
const (
	hostID      = 1
	worldID     = 2
	remoteID    = 6
	maxReserved = 255
)

// endpointOf describes an end.
func endpointOf(e *flow.End, addr netip.Addr) *flowpb.Endpoint {
	switch {
	case e == nil && !addr.IsValid():
		return &flowpb.Endpoint{Labels: []string{"reserved:unknown"}}
	case e == nil, e.Kind == flow.WorldEnd:
		return &flowpb.Endpoint{Identity: worldID, Labels: []string{"reserved:world"}}
	case e.Kind == flow.HostEnd:
		return &flowpb.Endpoint{Identity: hostID, Labels: []string{"reserved:host"}}
	case e.Kind == flow.RemoteNodeEnd:
		return &flowpb.Endpoint{Identity: remoteID, Labels: []string{"reserved:remote-node"}}
	}
	out := &flowpb.Endpoint{Namespace: e.Namespace, PodName: e.Pod, Labels: []string{namespaceOf + e.Namespace}}
	for k, v := range e.Labels {
		out.Labels = append(out.Labels, "k8s:"+k+"="+v)
	}
	slices.Sort(out.Labels)
	w := workloadOf(e)
	out.Workloads, out.Identity = []*flowpb.Workload{w}, identityOf(e.Namespace, w)
	return out
}

// workloadOf returns the workload of a pod. For a pod without a workload it returns the pod itself, because
// hubble-ui shows an end that has neither an identity nor a workload as the world.
func workloadOf(e *flow.End) *flowpb.Workload {
	if e.Workload != nil {
		return &flowpb.Workload{Kind: e.Workload.Kind, Name: e.Workload.Name}
	}
	return &flowpb.Workload{Kind: "Pod", Name: e.Pod}
}

// identityOf returns a number that identifies a workload: a hash, so that it is the same on all nodes.
// hubble-ui draws a card for each number. Without numbers, workloads with the same name in different
// namespaces would share a card. The probability that any two of 1,000 workloads have the same number is 1
// in 9,000.
func identityOf(namespace string, w *flowpb.Workload) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(strings.Join([]string{namespace, w.GetKind(), w.GetName()}, "\x00"))) // a hash returns no error
	if id := h.Sum32(); id > maxReserved {
		return id
	}
	return maxReserved + 1
}
