// Package watch keeps what the agent knows of the cluster up to date: a
// [Controller] owns the policy.World, takes updates from its sources, and puts each
// new snapshot in force.
//
// The sources are in the packages below: manifests follows a directory of manifests.
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

// Update changes a World. It is called by the goroutine that owns the World and
// must not keep it.
type Update = func(*policy.World)

// Source is where knowledge of the cluster comes from. Its String says which it
// is, for the log.
type Source interface {
	fmt.Stringer
	// Run calls update with all that the source knows, as one Update, and then
	// with each change, until ctx ends. update returns when the Update has been
	// queued; it may be called by one goroutine at a time.
	Run(ctx context.Context, update func(Update)) error
}

// Options are what a Keeper can do without.
type Options struct {
	// Logger gets what is wrong in policies, each once; nil discards it.
	Logger *slog.Logger
	// Stages put each change in force, in this order, from the first one on. If there are
	// none, Run waits after the first change for Attach.
	Stages []Stage
}

const (
	// A lone update waits this long for others that belong to it.
	debounceQuiet = time.Millisecond
	// A stream of updates is published at least this often.
	debounceMax = 20 * time.Millisecond
	// workSlice bounds how long work for large policies holds up other updates.
	workSlice = 5 * time.Millisecond
)

// Controller owns a World: all that changes it runs on one goroutine of Run. Another one reads
// and compiles large policies, which takes up to half a second for each; meanwhile other
// updates go on, and pods that start and may be isolated by them stay unknown.
type Controller struct {
	world          *policy.World
	pub            *policy.Published
	log            *slog.Logger
	stages         []Stage
	first          chan Change  // the first one, for First
	attached       chan []Stage // by Attach
	ready          chan struct{}
	isReady        bool
	loggedProblems map[policy.Problem]bool
	loggedClashes  map[string]bool

	unsettled     policy.Changes     // applied while a stage was unsettled
	retryTimer    <-chan time.Time   // when to apply them again; nil for never
	hasWork       bool               // the World has work for large policies
	drafts        chan *policy.Draft // to be prepared: one at most
	prepared      chan *policy.Draft
	beforePrepare func() // each Prepare of a draft; for tests

	currentProblems atomic.Pointer[[]policy.Problem]
	currentClashes  atomic.Pointer[[]policy.Clash]
}

// message is an update on its way to the World.
type message struct {
	source int
	update Update
}

// New returns a Keeper of world, which publishes to pub. The world is the
// Keeper's from now on.
func New(world *policy.World, pub *policy.Published, opts Options) *Controller {
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

// First delivers the first change, once it has been published.
func (k *Controller) First() <-chan Change { return k.first }

// Attach has all later changes applied by the stages, in this order. It is called once,
// and only if Options named no stages. Until then, updates wait.
func (k *Controller) Attach(stages ...Stage) { k.attached <- stages }

// Ready is closed when the first snapshot is in force, and the stages are attached.
func (k *Controller) Ready() <-chan struct{} { return k.ready }

// Problems are what is wrong in the policies in force. Any goroutine may ask; the
// list is shared, and never changes.
func (k *Controller) Problems() []policy.Problem {
	if wrong := k.currentProblems.Load(); wrong != nil {
		return *wrong
	}
	return nil
}

// Clashes are the addresses that several live pods claim. Any goroutine may ask; the list
// is shared, and never changes.
func (k *Controller) Clashes() []policy.Clash {
	if clashes := k.currentClashes.Load(); clashes != nil {
		return *clashes
	}
	return nil
}

// Run runs the sources and takes their updates until ctx ends, which is no error,
// or a source does, which is one. The first snapshot is published when every
// source has said what it knows: half a world would allow what the other half
// forbids. Run may be called once.
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
				return nil // it ended because all end
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
	heard := make([]bool, len(sources)) // ever
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
		var changed []bool // in this burst
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
			k.hasWork = true // perhaps
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

// work does a part of the work for large policies.
func (k *Controller) work(ctx context.Context) error {
	began := time.Now()
	again, commit := k.world.Work(func() bool { return time.Since(began) < workSlice })
	if k.hasWork = again; commit {
		return k.commit(ctx, []string{"large policies"})
	}
	return nil
}

// batch applies an update and those that come right behind it, and says which
// sources they came from.
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

// commit compiles the World, which the named sources have changed, and puts the
// snapshot in force.
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
		"pods", c.Pods, "namespaces", c.Namespaces, "changed_addresses", len(change.Addresses), "compiled_in", compiled)
	return nil
}

// await delivers the first change to First and waits for the stages of the later ones.
func (k *Controller) await(ctx context.Context, first Change) {
	k.first <- first
	select {
	case <-ctx.Done():
	case k.stages = <-k.attached:
	}
}

// apply puts a change in force, stage by stage. If a stage is unsettled, the others go
// on, and the change is applied again later.
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

// reportProblems logs what is wrong in the policies, each once for as long as it is.
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

// reportClashes logs addresses that several live pods claim, each once for as long as they
// do.
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
