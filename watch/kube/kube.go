// Package kube follows the Namespaces, Pods, NetworkPolicies, ClusterNetworkPolicies and
// Nodes of a cluster through the Kubernetes API.
//
// Its [Source] delivers nothing before the first list of every kind has arrived, because
// partial knowledge could allow what the rest denies. Only where nothing is denied anyway, it
// may start without a kind that it cannot read: see Options.StartWithout. From then on,
// everything known stays in force, even while the API server is unreachable.
//
// A cluster may lack the kind ClusterNetworkPolicy, serve it in an older version, and gain or
// lose it at any time: see [optional].
//
// It uses no informers: they would keep a second copy of all objects. Instead, a [decoder]
// reduces objects to what decisions need while it decodes them. client-go's reflectors list
// and watch. A [table] for each kind remembers only names, to detect which objects a new
// list does not contain any more.
package kube

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
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
	// StartWithout is asked whether to deliver the first Update without a kind that a cluster
	// may lack, and that cannot be read although all others have been read. While it returns
	// false, it is asked again every ten seconds. nil never agrees. After such a start, the
	// objects of the kind follow as soon as they can be read; until then, Health shows that
	// the kind is not Synced.
	StartWithout func(context.Context) bool
	// Logger logs each failure once while it lasts; nil disables logging.
	Logger *slog.Logger

	times discoveryTimes // zero means defaultTimes; set by tests
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
	times  discoveryTimes
	log    *slog.Logger

	without func(context.Context) bool // Options.StartWithout
}

// New returns a source for the API server that config describes; see [Config]. It sends no
// request before Run.
func New(config *rest.Config, opts Options) (*Source, error) {
	log := opts.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c, err := newClient(config, kinds, func(s *runtime.Scheme) runtime.NegotiatedSerializer {
		return newSlimSerializer(serializer.NewCodecFactory(s).WithoutConversion())
	})
	if err != nil {
		return nil, err
	}
	s := &Source{host: config.Host, client: c, queue: newQueue(kinds...), times: cmp.Or(opts.times, defaultTimes), log: log, without: opts.StartWithout}
	s.health = newHealth(config.Host, log)
	if opts.StartupTaint != nil {
		s.taint = newStartupTaint(*opts.StartupTaint, opts.NodeName, config.Host, c.groups[nodeKind.group], log)
	}
	for _, k := range kinds {
		t := newTable(k, s.queue, s.health)
		if k == nodeKind {
			t.nodes, t.taint = newNodes(opts.NodeName, opts.NodeRanges, log), s.taint
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
			s.follow(ctx, t, logger)
			return nil
		})
	}
	group.Go(func() error {
		s.queue.run(ctx, update)
		return nil
	})
	if s.without != nil {
		group.Go(func() error {
			s.startWithout(ctx)
			return nil
		})
	}
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

// follow keeps t up to date until ctx ends.
func (s *Source) follow(ctx context.Context, t *table, logger klog.Logger) {
	if !t.kind.optional {
		record := func(verb string, err error) { s.health.requestDone(t.kind, verb, err) }
		s.reflector(t, t.kind.group, logger, record).RunWithContext(ctx)
		return
	}
	o := &optional{kind: t.kind, times: s.times, health: s.health, empty: t.empty, wake: make(chan struct{}, 1)}
	o.discover = func(ctx context.Context, sure bool) (schema.GroupVersion, error) {
		return s.client.discover(ctx, t.kind, sure)
	}
	o.follow = func(ctx context.Context, version schema.GroupVersion) {
		s.reflector(t, version, logger, o.requestDone).RunWithContext(ctx)
	}
	o.run(ctx)
}

// reflector returns a reflector that keeps t up to date with the objects of a version. It
// passes the outcome of each request to record.
func (s *Source) reflector(t *table, version schema.GroupVersion, logger klog.Logger, record func(verb string, err error)) *cache.Reflector {
	requests := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			if opts.ResourceVersion == "0" {
				// The server answers such a request from its cache, but ignores the limit
				// and sends all objects at once. That takes too much memory.
				opts.ResourceVersion = ""
			}
			list, err := s.client.list(ctx, t.kind, version, opts)
			record("list", err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (apiwatch.Interface, error) {
			stream, err := s.client.watch(ctx, t.kind, version, opts)
			switch initial := opts.SendInitialEvents != nil; {
			case initial && err == nil:
				record(streamVerb, nil)
			case !initial || !apierrors.IsInvalid(err): // an older server refuses to stream lists, which is no failure
				record("watch", err)
			}
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
