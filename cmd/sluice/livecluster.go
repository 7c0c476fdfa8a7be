package main

import (
	"context"
	"slices"

	"sluice/watch/kube"
	"sluice/watch/manifests"
)

// readCluster reads a live cluster. If the user may not list a kind in the whole cluster, readCluster
// lists it in the given namespaces.
func readCluster(ctx context.Context, t *kube.Target, namespaces []string) (manifests.Objects, error) {
	slices.Sort(namespaces)
	namespaces = slices.Compact(namespaces)
	found, err := kube.Read(ctx, t.Config, namespaces...)
	if err != nil {
		return manifests.Objects{}, err
	}
	routing, unread, noRoutes := kube.ReadRoutes(ctx, t.Config, namespaces...)
	o := manifests.FromCluster(t.Host, manifests.Objects{
		Namespaces: found.Namespaces, Pods: found.Pods, Nodes: found.Nodes, Workloads: found.Workloads, Policies: found.Policies,
		Services: found.Services, EndpointSlices: found.EndpointSlices, Routing: routing,
	})
	if noRoutes != nil {
		o.Notes = append(o.Notes, manifests.Problem{File: t.Host, Detail: noRoutes.Error(), Hint: "allow sluice to ask which kinds there are, to learn what is reached from outside the cluster"})
	}
	for _, u := range append(found.Unread, unread...) {
		o.NotRead = append(o.NotRead, manifests.NotRead{
			Kind: manifests.Kind{Group: u.Group, Name: u.Kind}, Forbidden: u.Forbidden, Only: u.Only, Reason: u.Reason, Effect: u.Effect,
		})
	}
	others, err := kube.CountOthers(ctx, t.Config, func(group, kind string) bool {
		return manifests.Restricting(manifests.Kind{Group: group, Name: kind})
	}, namespaces...)
	for _, other := range others {
		n := manifests.NotRead{Kind: manifests.Kind{Group: other.Group, Name: other.Kind}, Count: other.Count, Reason: other.Reason}
		if n.Reason != "" {
			n.Effect = "they may change what is allowed"
		}
		o.NotRead = append(o.NotRead, n)
	}
	if err != nil {
		o.Notes = append(o.Notes, manifests.Problem{File: t.Host, Detail: err.Error(), Hint: "allow sluice to list them, to learn whether they may change what is allowed"})
	}
	return o, nil
}
