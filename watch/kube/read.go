package kube

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
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
	Pods       []*policy.Pod
	Policies   []*policy.Policy // policies of all kinds
	Nodes      []*policy.Node

	Workloads      []*kubepod.Workload
	Services       []*corev1.Service
	EndpointSlices []*discoveryv1.EndpointSlice

	// Unread are the kinds that could not be read, or that could be read only in some namespaces.
	Unread []Unread
}

// readAttempts bounds the attempts to read an optional kind whose version disappears while Read
// lists it.
const readAttempts = 3

// Read reads a cluster once. It reads one kind after the other, so a concurrent change may
// be visible in one kind and not in another.
//
// A user may have rights in some namespaces only. If the user may not list a kind in the whole
// cluster, Read lists it in the given namespaces, and reports it in Unread. Read returns an error
// if it can list Pods or NetworkPolicies in none of them, or if a request fails for another reason.
// Such errors are an *[APIError].
func Read(ctx context.Context, config *rest.Config, namespaces ...string) (*Objects, error) {
	c, err := newClient(config, readKinds, func(s *runtime.Scheme) runtime.NegotiatedSerializer {
		return serializer.NewCodecFactory(s).WithoutConversion()
	})
	if err != nil {
		return nil, err
	}
	r := onetime{client: c, host: config.Host, namespaces: namespaces}
	for _, k := range readKinds {
		if err := r.read(ctx, k); err != nil {
			return nil, err
		}
	}
	return &r.Objects, nil
}

// onetime reads a cluster once.
type onetime struct {
	Objects
	client     *client
	host       string
	namespaces []string // where to list a kind that the user may not list in the whole cluster
}

// read reads the objects of a kind: those of the whole cluster or, if the user may not list these,
// those of r.namespaces.
func (r *onetime) read(ctx context.Context, k *kind) error {
	list := r.list
	if k.optional {
		list = r.listOptional
	}
	failure := list(ctx, k)
	var only []string
	switch forbidden := apierrors.IsForbidden(failure); {
	case failure == nil:
		return nil
	case forbidden:
		var err error
		if only, err = r.inNamespaces(ctx, k); err != nil {
			return r.failure(err, k)
		}
		if len(only) == 0 && (k == podKind || k == networkPolicyKind) {
			return r.failure(failure, k)
		}
	case !k.asked || !apierrors.IsNotFound(failure):
		return r.failure(failure, k)
	}
	r.Unread = append(r.Unread, Unread{
		Group: k.group.Group, Kind: k.name, Err: failure,
		Forbidden: apierrors.IsForbidden(failure), Only: only,
		Reason: unreadReason(apierrors.IsForbidden(failure), only), Effect: r.effectOf(k, only),
	})
	return nil
}

// list reads the objects of a kind in the whole cluster.
func (r *onetime) list(ctx context.Context, k *kind) error {
	return r.pages(ctx, k, k.group, "")
}

// listOptional reads the policies of a kind that the cluster may lack, in the version that the cluster
// serves.
func (r *onetime) listOptional(ctx context.Context, k *kind) error {
	for attempt := 1; ; attempt++ {
		version, err := r.client.discover(ctx, k, true)
		if err != nil {
			return newDiscoveryError(err, r.host, k)
		}
		if version == notServed {
			return nil
		}
		err = r.pages(ctx, k, version, "")
		if err == nil || !apierrors.IsNotFound(err) || attempt == readAttempts {
			return err
		}
		// The version is not served any more: ask again.
	}
}

// inNamespaces reads the objects of a kind in each of r.namespaces where the user may read them. It
// returns these namespaces.
func (r *onetime) inNamespaces(ctx context.Context, k *kind) (readable []string, err error) {
	if k.inCluster && k != namespaceKind {
		return nil, nil
	}
	for _, namespace := range r.namespaces {
		if k == namespaceKind {
			err = r.namespace(ctx, namespace)
		} else {
			err = r.pages(ctx, k, k.group, namespace)
		}
		switch {
		case err == nil:
			readable = append(readable, namespace)
		case !apierrors.IsForbidden(err) && !apierrors.IsNotFound(err):
			return nil, err
		}
	}
	return readable, nil
}

// namespace reads one Namespace.
func (r *onetime) namespace(ctx context.Context, name string) error {
	var o corev1.Namespace
	err := r.client.groups[namespaceKind.group].Get().Resource(namespaceKind.resource).Name(name).Timeout(pageTimeout).Do(ctx).Into(&o)
	if err == nil {
		r.Namespaces = append(r.Namespaces, &o)
	}
	return err
}

// failure returns the error of a list request as an *APIError, with a hint.
func (r *onetime) failure(err error, k *kind) error {
	var e *APIError
	if !errors.As(err, &e) {
		e = newAPIError(err, r.host, k, "list")
	}
	if apierrors.IsForbidden(err) && !k.inCluster {
		where := "in a namespace (Role), and name it with -n"
		if len(r.namespaces) > 0 {
			where = "in namespace " + strings.Join(r.namespaces, " or ") + " (Role)"
		}
		e.Hint = fmt.Sprintf("let this user list %s of API group %q, in the whole cluster (ClusterRole) or %s", k.resource, k.group.Group, where)
	}
	return e.once()
}

// needNodes reports whether a policy has peers that are nodes.
func (o *Objects) needNodes() bool {
	return slices.ContainsFunc(o.Policies, func(p *policy.Policy) bool {
		return slices.ContainsFunc(slices.Concat(p.Rules[:]...), func(r policy.Rule) bool {
			return slices.ContainsFunc(r.Peers, func(p policy.Peer) bool { return p.Nodes != nil })
		})
	})
}

// pages reads all objects of a kind in a namespace, page by page. An empty namespace means the whole
// cluster. After an error, r has none of them.
func (r *onetime) pages(ctx context.Context, k *kind, version schema.GroupVersion, namespace string) (err error) {
	before := r.Objects
	defer func() {
		if err != nil {
			r.Objects = before
		}
	}()
	for opts := (metav1.ListOptions{Limit: pageSize}); ; {
		list, err := r.client.listIn(ctx, k, version, namespace, opts)
		if err != nil {
			return err
		}
		if opts.Continue, err = r.take(k, list); err != nil || opts.Continue == "" {
			return err
		}
	}
}

// take appends the objects of a page to o. It returns the token of the next page, or "" after the
// last page.
func (o *Objects) take(k *kind, page runtime.Object) (next string, err error) {
	list, err := meta.ListAccessor(page)
	if err != nil {
		return "", fmt.Errorf("the API server sent an unexpected %T", page)
	}
	return list.GetContinue(), meta.EachListItem(page, func(item runtime.Object) error { return o.add(k, item) })
}

// eachOf calls f with each object of a page. It returns the token of the next page, or "" after the last
// one.
func eachOf(page runtime.Object, f func(runtime.Object)) (next string, err error) {
	list, err := meta.ListAccessor(page)
	if err != nil {
		return "", fmt.Errorf("the API server sent an unexpected %T", page)
	}
	return list.GetContinue(), meta.EachListItem(page, func(item runtime.Object) error { f(item); return nil })
}

// add appends an object to o.
func (o *Objects) add(k *kind, item runtime.Object) error {
	switch item := item.(type) {
	case *corev1.Namespace:
		o.Namespaces = append(o.Namespaces, item)
	case *corev1.Pod:
		o.Pods = append(o.Pods, kubepod.Read(item))
	case *corev1.Node:
		o.Nodes = append(o.Nodes, kubepod.ReadNode(item))
	case *corev1.Service:
		o.Services = append(o.Services, item)
	case *discoveryv1.EndpointSlice:
		o.EndpointSlices = append(o.EndpointSlices, item)
	default:
		if object, ok := item.(metav1.Object); ok && slices.Contains(workloadKinds, k) {
			if !kubepod.Finished(object) {
				o.Workloads = append(o.Workloads, kubepod.ReadWorkload(object))
			}
			return nil
		}
		if k.read == nil {
			return fmt.Errorf("the API server sent an unexpected %T", item)
		}
		o.Policies = append(o.Policies, k.read(item))
	}
	return nil
}
