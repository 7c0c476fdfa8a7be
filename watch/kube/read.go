package kube

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"

	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
)

// Objects are the objects of a cluster, with all their fields, in the order in which the server
// lists them.
type Objects struct {
	Namespaces []*corev1.Namespace
	Pods       []*corev1.Pod
	Policies   []*policy.Policy // policies of all kinds
	Nodes      []*policy.Node
	// NodesErr is set if the user may not list Nodes, so that Nodes is empty. If a policy has
	// peers that are nodes, Read returns this error instead.
	NodesErr error
}

// readAttempts bounds the attempts to read an optional kind that is removed or replaced
// meanwhile.
const readAttempts = 3

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
		read := o.read
		if k.optional {
			read = o.readOptional
		}
		switch failure := read(ctx, c, k, config.Host); {
		case failure == nil:
		case k == nodeKind && apierrors.IsForbidden(failure) && !o.needNodes():
			o.NodesErr = failure
		default:
			return nil, failure
		}
	}
	return &o, nil
}

// read reads the objects of a kind.
func (o *Objects) read(ctx context.Context, c *client, k *kind, host string) *APIError {
	if err := c.pages(ctx, k, k.group, func(page runtime.Object) (string, error) { return o.take(k, page) }); err != nil {
		return newAPIError(err, host, k, "list")
	}
	return nil
}

// readOptional reads the policies of a kind that the cluster may lack, in the version that
// it serves.
func (o *Objects) readOptional(ctx context.Context, c *client, k *kind, host string) *APIError {
	before := o.Policies
	for attempt := 1; ; attempt++ {
		version, err := c.discover(ctx, k, true)
		if err != nil {
			return newDiscoveryError(err, host, k)
		}
		if version == notServed {
			return nil
		}
		err = c.pages(ctx, k, version, func(page runtime.Object) (string, error) { return o.take(k, page) })
		switch {
		case err == nil:
			return nil
		case !apierrors.IsNotFound(err) || attempt == readAttempts:
			return newAPIError(err, host, k, "list")
		}
		o.Policies = before // the version is not served any more: ask again
	}
}

// needNodes reports whether a policy has peers that are nodes.
func (o *Objects) needNodes() bool {
	return slices.ContainsFunc(o.Policies, func(p *policy.Policy) bool {
		return slices.ContainsFunc(slices.Concat(p.Rules[:]...), func(r policy.Rule) bool {
			return slices.ContainsFunc(r.Peers, func(p policy.Peer) bool { return p.Nodes != nil })
		})
	})
}

// pages lists all objects of a kind, page by page.
func (c *client) pages(ctx context.Context, k *kind, version schema.GroupVersion, take func(runtime.Object) (string, error)) error {
	for opts := (metav1.ListOptions{Limit: pageSize}); ; {
		list, err := c.list(ctx, k, version, opts)
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
	case *corev1.NodeList:
		for i := range l.Items {
			o.Nodes = append(o.Nodes, kubepod.ReadNode(&l.Items[i]))
		}
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
