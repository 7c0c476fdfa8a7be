// Package kube follows the Namespaces, Pods, NetworkPolicies and Nodes of a cluster through
// the Kubernetes API.
//
// Its [Source] delivers nothing before the first list of every kind has arrived, because
// partial knowledge could allow what the rest denies. From then on, everything known stays
// in force, even while the API server is unreachable.
//
// It uses no informers: they would keep a second copy of all objects. Instead, a [decoder]
// reduces objects to what decisions need while it decodes them. client-go's reflectors list
// and watch. A [table] for each kind remembers only names, to detect which objects a new
// list does not contain any more.
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

// pageSize bounds the number of objects in one page of a list, if the server does not stream
// lists. It limits the memory usage: an object takes about 15 KB until it is reduced to what
// decisions need.
const pageSize = 500

// The wait between attempts to reach the API server doubles from minRetryBackoff to
// maxRetryBackoff. Reflectors lengthen each wait by a random amount, at most by half. The maximum
// is lower than client-go's 30 s, because new policies may come into force one wait after the
// server is back.
const (
	minRetryBackoff = 200 * time.Millisecond
	maxRetryBackoff = 10 * time.Second
)

// Options configure a Source.
type Options struct {
	// NodeName is the name of the Node object of the agent's node. It is empty if there is
	// none.
	NodeName string
	// NodeRanges passes the pod ranges of the Nodes to the policy store.
	NodeRanges bool
	// StartupTaint is the taint to remove from this node's Node; nil if there is none.
	StartupTaint *StartupTaint
	// Logger logs each failure once while it lasts; nil disables logging.
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
	taint  *startupTaint // nil if no startup taint is to be removed
	log    *slog.Logger
}

// New returns a source for the API server that config describes; see [Config]. It sends no
// request before Run.
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

// Health returns the state of the watch of each kind.
func (s *Source) Health() []KindHealth { return s.health.list() }

// Run follows the cluster until ctx ends. It does not fail: it retries while the API server
// is unreachable or refuses requests.
func (s *Source) Run(ctx context.Context, update func(func(*policy.Store))) error {
	// client-go logs every retry. debugHandler lowers these records to debug level, because
	// health logs each failure once.
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
	requests := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			if opts.ResourceVersion == "0" {
				// The server answers such a request from its cache, but ignores the limit
				// and sends all objects at once. That takes too much memory.
				opts.ResourceVersion = ""
			}
			list, err := s.client.list(ctx, t.kind, opts)
			s.health.requestDone(t.kind, "list", err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (apiwatch.Interface, error) {
			stream, err := s.client.watch(ctx, t.kind, opts)
			s.health.requestDone(t.kind, "watch", err)
			return stream, err
		},
	}
	r := cache.NewReflectorWithOptions(requests, nil, t, cache.ReflectorOptions{
		Name: t.kind.resource, TypeDescription: t.kind.name, Logger: &logger,
		Backoff: &wait.Backoff{Duration: minRetryBackoff, Cap: maxRetryBackoff, Steps: 6, Factor: 2, Jitter: 0.5},
	})
	r.WatchListPageSize = pageSize
	return r
}
