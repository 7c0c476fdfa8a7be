package manifests

import (
	"maps"
	"slices"

	"sluice/filter/policy"
)

// Without returns the objects of a cluster as if each object that is in before, but not in after, were
// deleted. If a workload is deleted, so are its pods.
func Without(cluster, before, after Objects) Objects {
	gone := make(map[string]bool)
	for _, k := range before.keys() {
		gone[k] = true
	}
	for _, k := range after.keys() {
		delete(gone, k)
	}
	out := cluster
	out.Namespaces = remaining(cluster.Namespaces, namespaceKey, gone)
	out.Pods = slices.DeleteFunc(remaining(cluster.Pods, podKey, gone), func(p *policy.Pod) bool { return gone[p.Owner.Object()] })
	out.Nodes = remaining(cluster.Nodes, nodeKey, gone)
	out.Workloads = remaining(cluster.Workloads, workloadKey, gone)
	out.Policies = remaining(cluster.Policies, policyKey, gone)
	out.Services = remaining(cluster.Services, serviceKey, gone)
	out.EndpointSlices = remaining(cluster.EndpointSlices, sliceKey, gone)
	out.Origins = maps.Clone(cluster.Origins)
	for _, k := range cluster.keys() {
		delete(out.Origins, k)
	}
	for _, k := range out.keys() {
		out.Origins[k] = cluster.Origins[k]
	}
	return out
}

func remaining[T any](objects []T, key func(T) string, gone map[string]bool) []T {
	return slices.DeleteFunc(slices.Clone(objects), func(o T) bool { return gone[key(o)] })
}
