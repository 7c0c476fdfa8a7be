// Package kube follows a cluster through the Kubernetes API: its Namespaces, Pods,
// NetworkPolicies and Nodes, as a source of a watch.Keeper.
//
// There is no informer and no store of objects: the World keeps what decisions
// need, and a second copy would double the memory of an agent in a large cluster.
// Objects are trimmed while they are decoded ([decoder]), so that a list of
// 100,000 pods is never whole in memory; client-go's reflectors list, watch, retry
// and list again; and a [table] for each kind remembers the names alone, to know
// after a list what has vanished.
//
// Nothing reaches the World before the first list of every kind is there: half a
// world would allow what the other half forbids. From then on what is known stays
// in force, whatever becomes of the API server.
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
	"sluice/watch"
)

// pageSize is how many objects a list holds, where the server cannot stream them.
// It bounds what a list costs in memory: about 15 KB an object, until it is
// trimmed.
const pageSize = 500

// The wait between attempts to reach the API server doubles from the first to the
// longest, each drawn between itself and one and a half of it. The longest is less
// than client-go's 30 s: it is how late a policy can be when the server is back.
const (
	minRetryBackoff = 200 * time.Millisecond
	maxRetryBackoff = 10 * time.Second
)

// Options are what a Source needs to know.
type Options struct {
	// NodeName is the Node object of the node that the agent runs on; its pod
	// ranges are this node's in Ranges. Empty means that no Node is.
	NodeName string
	// Ranges gets the pod ranges of the Nodes, before the first Update; nil if
	// nobody needs them.
	Ranges *watch.Ranges
	// StartupTaint is removed from this node's Node; nil if there is none.
	StartupTaint *StartupTaint
	// Logger gets what goes wrong, each once for as long as it does; nil
	// discards it.
	Logger *slog.Logger
}

// Source is a cluster as a source of a watch.Keeper. Its methods may be called
// from several goroutines; Run may be called once.
type Source struct {
	host   string
	client *client
	queue  *queue
	health *health
	tables []*table
	taint  *startupTaint // nil if there is none
	log    *slog.Logger
}

// New returns a source that reaches the API server as config says; see [Config].
// Nothing is sent before Run.
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
		if k == nodeKind && opts.Ranges != nil {
			t.nodes = newNodes(opts.NodeName, opts.Ranges, log)
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

// Health tells how it is with each kind of object.
func (s *Source) Health() []KindHealth { return s.health.list() }

// Run follows the cluster until ctx ends. It does not fail: an API server that
// does not answer, or refuses to, is asked again.
func (s *Source) Run(ctx context.Context, update func(func(*policy.World))) error {
	// client-go tells of each retry; what a user needs to know of them, health
	// says once.
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

// reflector keeps a table as the API server has it.
func (s *Source) reflector(t *table, logger klog.Logger) *cache.Reflector {
	asked := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			if opts.ResourceVersion == "0" {
				// A server answers this from its cache, but with all objects at
				// once, whatever the limit: for them there is no memory.
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
