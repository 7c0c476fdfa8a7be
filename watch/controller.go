// Package watch keeps the agent's knowledge of the cluster up to date. A [Controller] owns
// the policy store, applies the updates of its sources to it, and publishes each new
// snapshot.
//
// The sources are in the packages below: kube follows the Kubernetes API, manifests a
// directory of manifests, and node the addresses of this node.
package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"sluice/filter/event"
	"sluice/filter/policy"
)

// Update changes the policy store. It is called on the goroutine that owns the store, and
// must not retain it.
type Update = func(*policy.Store)

// Source delivers knowledge of the cluster. Its String names it in log lines.
type Source interface {
	fmt.Stringer
	// Run calls update with everything that the source knows, as one Update, and then with
	// each change until ctx ends. update returns when the Update has been queued. Calls of
	// update must not overlap.
	Run(ctx context.Context, update func(Update)) error
}

// Options configure a Controller. The zero value is valid.
type Options struct {
	// Logger logs each problem of a policy once; nil discards it.
	Logger *slog.Logger
	// Stages apply each change, in this order, from the first change on. If there are none,
	// Run blocks after the first change until Attach is called.
	Stages []Stage
}

const (
	// debounceQuiet is the pause without updates that ends a batch.
	debounceQuiet = time.Millisecond
	// debounceMax bounds the duration of a batch.
	debounceMax = 20 * time.Millisecond
	// workSlice bounds the time for which work on large policies delays other updates.
	workSlice = 5 * time.Millisecond
)

// Controller owns the policy store. Everything that changes the store runs on one goroutine
// of Run. A second goroutine reads and compiles large policies, which takes up to half a
// second for each. Meanwhile, other updates are applied, and starting pods that such a
// policy may isolate stay unknown.
type Controller struct {
	world          *policy.Store
	pub            *policy.Published
	log            *slog.Logger
	stages         []Stage
	first          chan Change  // delivers the first change to First
	attached       chan []Stage // from Attach
	ready          chan struct{}
	isReady        bool
	loggedProblems map[policy.Problem]bool
	loggedClashes  map[string]bool

	unsettled     policy.Changes     // changes that were applied while a stage was unsettled
	retryTimer    <-chan time.Time   // fires when they are to be applied again; nil if there are none
	hasWork       bool               // the store has work on large policies
	drafts        chan *policy.Draft // to be prepared: at most one
	prepared      chan *policy.Draft
	beforePrepare func() // called before each Prepare of a draft; for tests

	currentProblems atomic.Pointer[[]policy.Problem]
	currentClashes  atomic.Pointer[[]policy.Clash]
}

// message is a queued update.
type message struct {
	source int
	update Update
}

// New returns a Controller of world that publishes to pub. The caller must not use world
// any more.
func New(world *policy.Store, pub *policy.Published, opts Options) *Controller {
	k := &Controller{
		world: world, pub: pub, log: opts.Logger, stages: opts.Stages, first: make(chan Change, 1), attached: make(chan []Stage, 1),
		ready: make(chan struct{}), loggedProblems: make(map[policy.Problem]bool),
		drafts: make(chan *policy.Draft, 1), prepared: make(chan *policy.Draft, 1), beforePrepare: func() {},
	}
	if k.log == nil {
		k.log = slog.New(slog.DiscardHandler)
	}
	return k
}

// First delivers the first change after its publication.
func (k *Controller) First() <-chan Change { return k.first }

// Attach sets the stages that apply all later changes, in this order. It must be called
// once if Options names no stages. Until then, updates wait.
func (k *Controller) Attach(stages ...Stage) { k.attached <- stages }

// Ready is closed when the first snapshot is in force and the stages are attached.
func (k *Controller) Ready() <-chan struct{} { return k.ready }

// Problems returns the problems of the policies in force. It may be called concurrently.
// The list is shared and immutable.
func (k *Controller) Problems() []policy.Problem {
	if wrong := k.currentProblems.Load(); wrong != nil {
		return *wrong
	}
	return nil
}

// Clashes returns the addresses that several live pods claim. It may be called
// concurrently. The list is shared and immutable.
func (k *Controller) Clashes() []policy.Clash {
	if clashes := k.currentClashes.Load(); clashes != nil {
		return *clashes
	}
	return nil
}

// Run runs the sources and applies their updates. It returns nil when ctx ends, and an
// error when a source ends. It publishes the first snapshot when every source has delivered
// its knowledge, because partial knowledge could allow what the rest denies. Run may be
// called only once.
func (k *Controller) Run(ctx context.Context, sources ...Source) error {
	updates := make(chan message)
	group, inner := errgroup.WithContext(ctx)
	for i, s := range sources {
		group.Go(func() error {
			err := s.Run(inner, func(u Update) {
				select {
				case updates <- message{i, u}:
				case <-inner.Done():
				}
			})
			switch {
			case inner.Err() != nil:
				return nil // all sources end
			case err == nil:
				err = errors.New("it has ended")
			}
			return fmt.Errorf("follow %s: %w", s, err)
		})
	}
	group.Go(func() error {
		return k.loop(inner, updates, sources)
	})
	group.Go(func() error {
		k.prepare(inner)
		return nil
	})
	return group.Wait()
}

func (k *Controller) loop(ctx context.Context, updates <-chan message, sources []Source) error {
	heard := make([]bool, len(sources)) // sources that have ever sent an update
	always := make(chan struct{})
	close(always)
	for {
		if d := k.world.NextDraft(); d != nil {
			k.drafts <- d
		}
		var work <-chan struct{}
		if k.hasWork {
			work = always
		}
		var changed []bool // sources of this batch
		select {
		case <-ctx.Done():
			return nil
		case m := <-updates:
			changed = k.batch(ctx, m, updates, len(sources))
		case <-k.retryTimer:
			if err := k.commit(ctx, nil); err != nil {
				return err
			}
			continue
		case d := <-k.prepared:
			k.world.Prepared(d)
			k.hasWork = true
			continue
		case <-work:
			if err := k.work(ctx); err != nil {
				return err
			}
			continue
		}
		var by []string
		for i, s := range sources {
			if heard[i] = heard[i] || changed[i]; changed[i] {
				by = append(by, s.String())
			}
		}
		if !slices.Contains(heard, false) {
			if err := k.commit(ctx, by); err != nil {
				return err
			}
			k.hasWork = true // there may be some
		}
	}
}

// prepare prepares drafts until ctx ends.
func (k *Controller) prepare(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case d := <-k.drafts:
			k.beforePrepare()
			d.Prepare()
			k.prepared <- d
		}
	}
}

// work does one slice of the work on large policies.
func (k *Controller) work(ctx context.Context) error {
	began := time.Now()
	again, commit := k.world.Work(func() bool { return time.Since(began) < workSlice })
	if k.hasWork = again; commit {
		return k.commit(ctx, []string{"large policies"})
	}
	return nil
}

// batch applies an update and all that follow it closely. It returns which sources sent
// them.
func (k *Controller) batch(ctx context.Context, m message, updates <-chan message, sources int) []bool {
	changed := make([]bool, sources)
	began := time.Now()
	wait := time.NewTimer(debounceQuiet)
	defer wait.Stop()
	for {
		m.update(k.world)
		changed[m.source] = true
		left := debounceMax - time.Since(began)
		if left <= 0 {
			return changed
		}
		wait.Reset(min(debounceQuiet, left))
		select {
		case <-ctx.Done():
			return changed
		case <-wait.C:
			return changed
		case m = <-updates:
		}
	}
}

// commit compiles the store after changes by the named sources, and puts the snapshot in
// force.
func (k *Controller) commit(ctx context.Context, by []string) error {
	if ctx.Err() != nil {
		return nil
	}
	began := time.Now()
	snapshot, changes := k.world.Commit()
	compiled := time.Since(began)
	k.pub.Publish(snapshot)
	k.reportProblems()
	k.reportClashes()
	change := Change{Snapshot: snapshot, Addresses: append(changes, k.unsettled...), Unsettled: k.retryTimer != nil}
	var err error
	if k.isReady || len(k.stages) > 0 {
		err = k.apply(ctx, change)
	} else {
		k.await(ctx, change)
	}
	if err != nil || ctx.Err() != nil {
		return err
	}
	level := slog.LevelDebug
	if !k.isReady {
		k.isReady = true
		k.world.UseDrafts()
		close(k.ready)
		level = slog.LevelInfo
	}
	c := snapshot.Counts()
	k.log.Log(ctx, level, "policies in force", event.Published.Attr(), "snapshot", snapshot.Number(), "changed_by", strings.Join(by, ", "), "policies", c.Policies,
		"pods", c.Pods, "namespaces", c.Namespaces, "changed_addresses", len(change.Addresses), "duration_ms", compiled.Milliseconds())
	return nil
}

// await delivers the first change to First, and waits for the stages that apply the later
// ones.
func (k *Controller) await(ctx context.Context, first Change) {
	k.first <- first
	select {
	case <-ctx.Done():
	case k.stages = <-k.attached:
	}
}

// apply puts a change in force, stage by stage. If a stage is unsettled, the later stages
// still run, and the change is applied again later.
func (k *Controller) apply(ctx context.Context, c Change) error {
	k.unsettled, k.retryTimer = nil, nil
	settled := true
	for _, s := range k.stages {
		err := s.Apply(ctx, c)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrUnsettled):
			settled, c.Unsettled = false, true
		case err != nil:
			return fmt.Errorf("put snapshot %d in force for %s: %w", c.Snapshot.Number(), s, err)
		}
	}
	if !settled {
		k.unsettled, k.retryTimer = c.Addresses, time.After(unsettledInterval)
	}
	return nil
}

// reportProblems logs the problems of policies, each once while it lasts.
func (k *Controller) reportProblems() {
	said := make(map[policy.Problem]bool)
	wrong := k.world.Problems()
	k.currentProblems.Store(&wrong)
	for _, p := range wrong {
		if !k.loggedProblems[p] {
			k.log.Warn("part of a policy allows nothing", "problem", p)
		}
		said[p] = true
	}
	k.loggedProblems = said
}

// reportClashes logs addresses that several live pods claim, each once while it lasts.
func (k *Controller) reportClashes() {
	clashes := k.world.Clashes()
	k.currentClashes.Store(&clashes)
	clashed := make(map[string]bool, len(clashes))
	for _, c := range clashes {
		key := c.Addr.String() + " " + c.Pods()
		if !k.loggedClashes[key] {
			k.log.Warn("several live pods claim one address", event.AddressShared.Attr(), "address", c.Addr, "counts", c.Winner, "others", strings.Join(c.Others, ", "))
		}
		clashed[key] = true
	}
	k.loggedClashes = clashed
}
