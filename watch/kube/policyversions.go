package kube

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"

	"sluice/filter/policy"
)

const (
	// fewPolicies is the number of policies up to which Versions gets each by its name. For more, it lists
	// all policies of the kind: in up to fewPolicies namespaces one by one, otherwise in the whole cluster.
	fewPolicies = 20
	// maxRequests bounds the requests that are sent at the same time.
	maxRequests = 16
)

// PolicyVersion is the version of a policy in the Kubernetes API.
type PolicyVersion struct {
	Resource string // the resourceVersion
	Tier     string // Admin or Baseline; empty for a NetworkPolicy
}

// Versions returns the current versions of those given policies that exist. With few policies, it needs
// the right to get them. With more, it lists them, so that it takes few requests; if the user may not list
// them, it gets each of them.
func (a *Agents) Versions(ctx context.Context, of []policy.Ref) (map[policy.Ref]PolicyVersion, error) {
	r := versionReader{agents: a, wanted: make(map[policy.Ref]bool, len(of)), found: make(map[policy.Ref]PolicyVersion, len(of))}
	named := make(map[*kind][]policy.Ref)
	for _, ref := range of {
		k := networkPolicyKind
		if ref.Kind == clusterNetworkPolicyKind.name {
			k = clusterNetworkPolicyKind
		}
		if !r.wanted[ref] {
			r.wanted[ref], named[k] = true, append(named[k], ref)
		}
	}
	for k, refs := range named {
		if err := r.read(ctx, k, refs); err != nil {
			return nil, err
		}
	}
	return r.found, nil
}

// versionReader reads the versions of policies.
type versionReader struct {
	agents *Agents
	wanted map[policy.Ref]bool

	mu    sync.Mutex
	found map[policy.Ref]PolicyVersion
}

// read reads the versions of policies of a kind.
func (r *versionReader) read(ctx context.Context, k *kind, refs []policy.Ref) error {
	group := k.group
	if k.optional {
		var err error
		if group, err = r.agents.client.discover(ctx, k, true); err != nil {
			return newDiscoveryError(err, r.agents.config.Host, k).once()
		}
		if group == notServed {
			return nil
		}
	}
	if len(refs) <= fewPolicies {
		return r.getAll(ctx, k, group, refs)
	}
	byNamespace := make(map[string][]policy.Ref)
	for _, ref := range refs {
		byNamespace[ref.Namespace] = append(byNamespace[ref.Namespace], ref)
	}
	if len(byNamespace) > fewPolicies {
		byNamespace = map[string][]policy.Ref{"": refs}
	}
	for namespace, refs := range byNamespace {
		err := r.list(ctx, k, group, namespace)
		if apierrors.IsForbidden(err) {
			err = r.getAll(ctx, k, group, refs)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// list lists the policies of a namespace or, if it is empty, of the cluster.
func (r *versionReader) list(ctx context.Context, k *kind, group schema.GroupVersion, namespace string) error {
	for opts := (metav1.ListOptions{Limit: pageSize}); ; {
		list, err := r.agents.client.listIn(ctx, k, group, namespace, opts)
		if err != nil {
			return r.agents.failure(err, k, "list")
		}
		if opts.Continue, err = eachOf(list, func(o runtime.Object) { r.add(k, o) }); err != nil || opts.Continue == "" {
			return err
		}
	}
}

// getAll gets each of the policies.
func (r *versionReader) getAll(ctx context.Context, k *kind, group schema.GroupVersion, refs []policy.Ref) error {
	all, ctx := errgroup.WithContext(ctx)
	all.SetLimit(maxRequests)
	for _, ref := range refs {
		all.Go(func() error { return r.get(ctx, k, group, ref) })
	}
	return all.Wait()
}

func (r *versionReader) get(ctx context.Context, k *kind, group schema.GroupVersion, ref policy.Ref) error {
	o, err := r.agents.client.groups[group].Get().NamespaceIfScoped(ref.Namespace, ref.Namespace != "").Resource(k.resource).Name(ref.Name).Timeout(pageTimeout).Do(ctx).Get()
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return r.agents.failure(err, k, "get")
	}
	if !r.add(k, o) {
		return fmt.Errorf("the API server sent an unexpected %T", o)
	}
	return nil
}

// add records the version of an object if it is wanted. It returns false if the object is not a policy.
func (r *versionReader) add(k *kind, o runtime.Object) bool {
	object, is := o.(metav1.Object)
	if !is {
		return false
	}
	v := PolicyVersion{Resource: object.GetResourceVersion()}
	if p, is := o.(*v1beta1.ClusterNetworkPolicy); is {
		v.Tier = string(p.Spec.Tier)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if ref := (policy.Ref{Kind: k.name, Namespace: object.GetNamespace(), Name: object.GetName()}); r.wanted[ref] {
		r.found[ref] = v
	}
	return true
}
