package kube

import (
	"context"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
)

// pageTimeout bounds the request for one page of a list.
const pageTimeout = time.Minute

// client requests objects from an API server.
type client struct {
	scheme *runtime.Scheme
	groups map[schema.GroupVersion]*rest.RESTClient
}

// newClient returns a client for the given kinds that decodes objects with the given codecs.
func newClient(config *rest.Config, of []*kind, codecs func(*runtime.Scheme) runtime.NegotiatedSerializer) (*client, error) {
	c := &client{scheme: newScheme(of), groups: make(map[schema.GroupVersion]*rest.RESTClient)}
	config = rest.CopyConfig(config)
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	config.NegotiatedSerializer = codecs(c.scheme)
	transport, err := rest.HTTPClientFor(config) // so that all groups share one connection
	if err != nil {
		return nil, fmt.Errorf("connect to the Kubernetes API at %s: %w", config.Host, err)
	}
	for _, k := range of {
		for _, version := range k.versions() {
			if c.groups[version] != nil {
				continue
			}
			if c.groups[version], err = rest.RESTClientForConfigAndClient(configFor(config, k, version), transport); err != nil {
				return nil, fmt.Errorf("connect to the Kubernetes API at %s: %w", config.Host, err)
			}
		}
	}
	return c, nil
}

// configFor returns the configuration to request objects of a kind in a version.
func configFor(config *rest.Config, k *kind, version schema.GroupVersion) *rest.Config {
	config = rest.CopyConfig(config)
	config.GroupVersion, config.APIPath = &version, "/apis"
	if version.Group == "" {
		config.APIPath = "/api"
	}
	if k.optional {
		config.ContentType, config.AcceptContentTypes = runtime.ContentTypeJSON, runtime.ContentTypeJSON
	}
	return config
}

// newScheme returns a scheme with only the types of the given kinds.
func newScheme(of []*kind) *runtime.Scheme {
	s := runtime.NewScheme()
	for _, k := range of {
		for _, version := range k.versions() {
			s.AddKnownTypes(version, k.types[:]...)
			metav1.AddToGroupVersion(s, version)
		}
	}
	return s
}

func (c *client) request(k *kind, version schema.GroupVersion, opts *metav1.ListOptions) *rest.Request {
	return c.groups[version].Get().Resource(k.resource).VersionedParams(opts, runtime.NewParameterCodec(c.scheme))
}

// list requests one page of the objects of the whole cluster.
func (c *client) list(ctx context.Context, k *kind, version schema.GroupVersion, opts metav1.ListOptions) (runtime.Object, error) {
	return c.listIn(ctx, k, version, "", opts)
}

// listIn requests one page of the objects of a namespace, or of the whole cluster if the
// namespace is empty.
func (c *client) listIn(ctx context.Context, k *kind, version schema.GroupVersion, namespace string, opts metav1.ListOptions) (runtime.Object, error) {
	return c.request(k, version, &opts).NamespaceIfScoped(namespace, namespace != "").Timeout(pageTimeout).Do(ctx).Get()
}

// watch opens a watch. If the watch breaks off, its last event contains the error, as
// reflectors expect.
func (c *client) watch(ctx context.Context, k *kind, version schema.GroupVersion, opts metav1.ListOptions) (apiwatch.Interface, error) {
	opts.Watch = true
	var timeout time.Duration
	if opts.TimeoutSeconds != nil {
		timeout = time.Duration(*opts.TimeoutSeconds) * time.Second
	}
	return c.request(k, version, &opts).Timeout(timeout).Watch(ctx)
}
