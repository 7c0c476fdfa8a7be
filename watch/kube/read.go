package kube

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"

	"sluice/filter/policy"
)

// Objects are the objects of a cluster, with all their fields, in the order in which the server
// lists them.
type Objects struct {
	Namespaces []*corev1.Namespace
	Pods       []*corev1.Pod
	Policies   []*policy.Policy // policies of all kinds
}

// Read reads a cluster once. It reads one kind after the other, so a concurrent change may
// be visible in one kind and not in another. If a request fails, the error is an
// *[APIError].
func Read(ctx context.Context, config *rest.Config) (*Objects, error) {
	c, err := newClient(config, func(s *runtime.Scheme) runtime.NegotiatedSerializer {
		return serializer.NewCodecFactory(s).WithoutConversion()
	})
	if err != nil {
		return nil, err
	}
	var o Objects
	for _, k := range kinds {
		if k == nodeKind {
			continue
		}
		if err := c.pages(ctx, k, func(page runtime.Object) (string, error) { return o.take(k, page) }); err != nil {
			return nil, newAPIError(err, config.Host, k, "list")
		}
	}
	return &o, nil
}

// pages lists all objects of a kind, page by page.
func (c *client) pages(ctx context.Context, k *kind, take func(runtime.Object) (string, error)) error {
	for opts := (metav1.ListOptions{Limit: pageSize}); ; {
		list, err := c.list(ctx, k, opts)
		if err != nil {
			return err
		}
		if opts.Continue, err = take(list); err != nil || opts.Continue == "" {
			return err
		}
	}
}

// take appends the objects of a page to o. It returns the token of the next page, or ""
// after the last one.
func (o *Objects) take(k *kind, page runtime.Object) (next string, err error) {
	switch l := page.(type) {
	case *corev1.NamespaceList:
		o.Namespaces = append(o.Namespaces, pointers(l.Items)...)
		return l.Continue, nil
	case *corev1.PodList:
		o.Pods = append(o.Pods, pointers(l.Items)...)
		return l.Continue, nil
	}
	list, err := meta.ListAccessor(page)
	if err != nil || k.read == nil {
		return "", fmt.Errorf("the API server sent an unexpected %T", page)
	}
	return list.GetContinue(), meta.EachListItem(page, func(item runtime.Object) error {
		o.Policies = append(o.Policies, k.read(item))
		return nil
	})
}

func pointers[T any](items []T) []*T {
	out := make([]*T, len(items))
	for i := range items {
		out[i] = &items[i]
	}
	return out
}
