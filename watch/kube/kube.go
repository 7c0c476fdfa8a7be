// Package kube follows the Namespaces, Pods, NetworkPolicies and Nodes of a cluster through
// the Kubernetes API.
//
// Its [Source] publishes nothing before the first list of every kind has arrived, because
// partial knowledge could allow what the rest denies. From then on, everything known stays
// in force, even while the API server is unreachable.
//
// It uses no informers: they would keep a second copy of all objects. Instead, [decoder]
// reduces objects to what decisions need while it decodes them, client-go's reflectors list
// and watch, and a [table] per kind remembers only names, to find out what is missing from
// a new list.
package kube

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/wait"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"sluice/filter/policy"
)

// pageSize bounds the objects in a page of a list, from servers that do not stream lists.
// It bounds memory: an object takes about 15 KB until it is slimmed.
const pageSize = 500

// The wait between attempts to reach the API server doubles from minRetryBackoff to
// maxRetryBackoff, plus up to half of it at random. The maximum is the longest delay of a
// policy after the server is back. It is below client-go's 30 s.
const (
	minRetryBackoff = 200 * time.Millisecond
	maxRetryBackoff = 10 * time.Second
)

// Options configure a Source.
type Options struct {
	// NodeName is the Node object of the node that the agent runs on; empty if there
	// is none.
	NodeName string
	// NodeRanges makes the pod ranges of the Nodes known to the policy store.
	NodeRanges bool
	// StartupTaint is removed from this node's Node; nil if there is none.
	StartupTaint *StartupTaint
	// Logger logs each failure once while it lasts; nil discards it.
	Logger *slog.Logger
}

// Source is a watch.Source that follows a cluster. Its methods may be called concurrently.
// Run may be called only once.
type Source struct {
	host   string
	client *client
	queue  *queue
	health *health
	tables []*table
	taint  *startupTaint // nil if there is none
	log    *slog.Logger
}

// New returns a source that connects to the API server as config tells; see [Config]. It
// sends nothing before Run.
func New(config *rest.Config, opts Options) (*Source, error) {
	log := opts.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c, err := newClient(config, func(s *runtime.Scheme) runtime.NegotiatedSerializer {
		return newSlimSerializer(serializer.NewCodecFactory(s).WithoutConversion())
	})
	if err != nil {
		return nil, err
	}
	s := &Source{host: config.Host, client: c, queue: newQueue(len(kinds)), log: log}
	s.health = newHealth(config.Host, log)
	if opts.StartupTaint != nil {
		s.taint = newStartupTaint(*opts.StartupTaint, opts.NodeName, config.Host, c.groups[nodeKind.group], log)
	}
	for _, k := range kinds {
		t := newTable(k, s.queue, s.health)
		if k == nodeKind && opts.NodeRanges {
			t.nodes = &nodes{self: opts.NodeName, log: log}
		}
		if k == nodeKind {
			t.taint = s.taint
		}
		s.tables = append(s.tables, t)
	}
	return s, nil
}

// String names the API server.
func (s *Source) String() string { return "Kubernetes API " + s.host }

// Health returns the state of each kind of objects.
func (s *Source) Health() []KindHealth { return s.health.list() }

// Run follows the cluster until ctx ends. It does not fail: it retries while the API server
// is unreachable or refuses requests.
func (s *Source) Run(ctx context.Context, update func(func(*policy.Store))) error {
	// client-go logs every retry. Users only need to know what health logs, once per
	// failure.
	logger := logr.FromSlogHandler(debugHandler{s.log.Handler()})
	ctx = klog.NewContext(ctx, logger)
	group, ctx := errgroup.WithContext(ctx)
	for _, t := range s.tables {
		group.Go(func() error {
			s.reflector(t, logger).RunWithContext(ctx)
			return nil
		})
	}
	group.Go(func() error {
		s.queue.run(ctx, update)
		return nil
	})
	if s.taint != nil {
		group.Go(func() error {
			s.taint.run(ctx)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("follow the %s: %w", s, err)
	}
	return nil
}

// reflector returns a reflector that keeps t up to date.
func (s *Source) reflector(t *table, logger klog.Logger) *cache.Reflector {
	asked := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			if opts.ResourceVersion == "0" {
				// The server answers such a request from its cache, but ignores the limit
				// and sends all objects at once. That takes too much memory.
				opts.ResourceVersion = ""
			}
			list, err := s.client.list(ctx, t.kind, opts)
			s.health.asked(t.kind, "list", err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (apiwatch.Interface, error) {
			stream, err := s.client.watch(ctx, t.kind, opts)
			s.health.asked(t.kind, "watch", err)
			return stream, err
		},
	}
	r := cache.NewReflectorWithOptions(asked, nil, t, cache.ReflectorOptions{
		Name: t.kind.resource, TypeDescription: t.kind.name, Logger: &logger,
		Backoff: &wait.Backoff{Duration: minRetryBackoff, Cap: maxRetryBackoff, Steps: 6, Factor: 2, Jitter: 0.5},
	})
	r.WatchListPageSize = pageSize
	return r
}
