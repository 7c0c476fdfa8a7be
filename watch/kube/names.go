package kube

import (
	"context"
	"fmt"
	"net/url"
	"slices"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// Named is the name of an object.
type Named struct{ Kind, Namespace, Name string }

// Names returns the names of workloads, Services and pods in a namespace, for the completion of
// command lines. It reads at most one page of each kind. It leaves out objects that have a
// controller, such as the pods of a Deployment, and kinds that it cannot list.
func Names(ctx context.Context, config *rest.Config, namespace string) ([]Named, error) {
	c, err := newJSONClient(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("list names: %w", err)
	}
	of := slices.Concat([]*kind{podKind, serviceKind}, workloadKinds)
	lists := make([][]metav1.PartialObjectMetadata, len(of))
	var group errgroup.Group
	for i, k := range of {
		group.Go(func() error {
			lists[i], _ = c.metadata(k, namespace) // ignore the error: the names of the other kinds are still useful
			return nil
		})
	}
	_ = group.Wait() // always nil: see above
	var names []Named
	for i, list := range lists {
		for _, o := range list {
			if metav1.GetControllerOfNoCopy(&o) == nil {
				names = append(names, Named{of[i].name, o.Namespace, o.Name})
			}
		}
	}
	return names, nil
}

// NamespaceNames returns the names of the namespaces, for the completion of command lines.
func NamespaceNames(ctx context.Context, config *rest.Config) ([]string, error) {
	c, err := newJSONClient(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	list, err := c.metadata(namespaceKind, "")
	if err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	names := make([]string, len(list))
	for i := range list {
		names[i] = list[i].Name
	}
	return names, nil
}

// metadata returns the metadata of one page of the objects of a kind.
func (c jsonClient) metadata(k *kind, namespace string) ([]metav1.PartialObjectMetadata, error) {
	path := "/apis/" + k.group.String()
	if k.group.Group == "" {
		path = "/api/" + k.group.Version
	}
	if namespace != "" {
		path += "/namespaces/" + namespace
	}
	var list metav1.PartialObjectMetadataList
	err := c.get(path+"/"+k.resource, url.Values{"limit": {fmt.Sprint(pageSize)}}, partial, &list)
	return list.Items, err
}
