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

// Update changes the policy store. The Controller calls it on the goroutine that owns the
// store. The Update must not retain the store.
type Update = func(*policy.Store)

// Source delivers a part of the cluster's state. String names the source in log lines.
type Source interface {
	fmt.Stringer
	// Run first calls update() with the complete state of the source, as one Update, and then
	// with each change until ctx ends. update blocks until the Controller takes the Update or
	// ctx ends. Run must not call it concurrently.
	Run(ctx context.Context, update func(Update)) error
}

// Options configure a Controller. The zero value is valid.
type Options struct {
	// Logger logs each problem of a policy once while it lasts. nil discards all log lines.
	Logger *slog.Logger
	// Stages apply each change, in this order, beginning with the first change. If Stages is
	// empty, Run publishes the first change and then waits until Attach sets the stages.
	Stages []Stage
	// Known reports whether a source has logged a problem, or one that it follows from. Run does
	// not log such a problem. nil means none.
	Known func(policy.Problem) bool
	// Applied is called after the stages have applied a snapshot. If settled is false, verdicts of an
	// older snapshot may still take effect; Run will apply this snapshot again, or a later one instead.
	// nil disables it.
	Applied func(s *policy.Snapshot, settled bool)
}

const (
	// debounceQuiet is the pause without updates that ends a batch.
	debounceQuiet = time.Millisecond
	// debounceMax bounds the duration of a batch.
	debounceMax = 20 * time.Millisecond
	// workSlice bounds one slice of the work on large policies. Other updates wait until
	// the slice ends.
	workSlice = 5 * time.Millisecond
)

// Controller owns the policy store. One goroutine of Run makes all changes to the store. A
// second goroutine reads and compiles large policies, which takes up to half a second each.
// Meanwhile, other updates are applied. A starting pod that such a policy may isolate stays
// unknown until the policy is in force.
type Controller struct {
	store          *policy.Store
	pub            *policy.Published
	log            *slog.Logger
	stages         []Stage
	first          chan Change  // the channel that First returns
	attached       chan []Stage // stages from Attach
	ready          chan struct{}
	isReady        bool
	loggedProblems map[policy.Problem]bool
	loggedClashes  map[string]bool
	known          func(policy.Problem) bool // see Options.Known
	applied        func(s *policy.Snapshot, settled bool)

	unsettled     policy.Changes     // changes to apply again, because a stage returned ErrUnsettled
	retryTimer    <-chan time.Time   // fires when unsettled must be applied again; nil if no stage is unsettled
	hasWork       bool               // the store has unfinished work on large policies
	drafts        chan *policy.Draft // drafts to prepare: at most one
	prepared      chan *policy.Draft
	beforePrepare func() // called before each Prepare of a draft; for tests

	currentProblems atomic.Pointer[[]policy.Problem]
	currentClashes  atomic.Pointer[[]policy.Clash]
}

// message is an update and the index of its source.
type message struct {
	source int
	update Update
}

// New returns a Controller that owns store and publishes to pub. The caller must not use
// store afterwards.
func New(store *policy.Store, pub *policy.Published, opts Options) *Controller {
	c := &Controller{
		store: store, pub: pub, log: opts.Logger, known: opts.Known, stages: opts.Stages, first: make(chan Change, 1), attached: make(chan []Stage, 1),
		ready: make(chan struct{}), loggedProblems: make(map[policy.Problem]bool),
		drafts: make(chan *policy.Draft, 1), prepared: make(chan *policy.Draft, 1), beforePrepare: func() {}, applied: opts.Applied,
	}
	if c.applied == nil {
		c.applied = func(*policy.Snapshot, bool) {}
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	return c
}

// First returns a channel that receives the first change after its publication. Nothing is sent
// if Options.Stages is set.
func (c *Controller) First() <-chan Change { return c.first }

// Attach sets the stages that apply all changes after the first, in this order. It must be
// called once if Options names no stages. Until then, updates wait.
func (c *Controller) Attach(stages ...Stage) { c.attached <- stages }

// Ready returns a channel that is closed when the first snapshot is in force and the stages
// are attached.
func (c *Controller) Ready() <-chan struct{} { return c.ready }

// Problems returns the problems of the policies in force. It may be called concurrently.
// The list is shared and immutable.
func (c *Controller) Problems() []policy.Problem {
	if problems := c.currentProblems.Load(); problems != nil {
		return *problems
	}
	return nil
}

// Clashes returns the addresses that several live pods claim. It may be called
// concurrently. The list is shared and immutable.
func (c *Controller) Clashes() []policy.Clash {
	if clashes := c.currentClashes.Load(); clashes != nil {
		return *clashes
	}
	return nil
}

// Run runs the sources and applies their updates. It returns nil when ctx ends, and an
// error if a source ends or a stage fails before that. It publishes the first snapshot only
// when every source has delivered its state, because a part of the state could allow what
// the rest denies. Run may be called only once.
func (c *Controller) Run(ctx context.Context, sources ...Source) error {
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
				return nil // Run is ending
			case err == nil:
				err = errors.New("it has ended")
			}
			return fmt.Errorf("follow %s: %w", s, err)
		})
	}
	group.Go(func() error {
		return c.loop(inner, updates, sources)
	})
	group.Go(func() error {
		c.prepare(inner)
		return nil
	})
	return group.Wait()
}

func (c *Controller) loop(ctx context.Context, updates <-chan message, sources []Source) error {
	heard := make([]bool, len(sources)) // whether each source has sent an update
	always := make(chan struct{})
	close(always)
	for {
		if d := c.store.NextDraft(); d != nil {
			c.drafts <- d
		}
		var work <-chan struct{}
		if c.hasWork {
			work = always
		}
		var changed []bool // whether each source has sent an update of this batch
		select {
		case <-ctx.Done():
			return nil
		case m := <-updates:
			changed = c.batch(ctx, m, updates, len(sources))
		case <-c.retryTimer:
			if err := c.commit(ctx, nil); err != nil {
				return err
			}
			continue
		case d := <-c.prepared:
			c.store.Prepared(d)
			c.hasWork = true
			continue
		case <-work:
			if err := c.work(ctx); err != nil {
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
			if err := c.commit(ctx, by); err != nil {
				return err
			}
			c.hasWork = true // the commit may have created work
		}
	}
}

// prepare prepares the drafts of large policies (see policy.Draft) until ctx ends.
func (c *Controller) prepare(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case d := <-c.drafts:
			c.beforePrepare()
			d.Prepare()
			c.prepared <- d
		}
	}
}

// work does one slice of the work on large policies, and commits if Store.Work requires it.
func (c *Controller) work(ctx context.Context) error {
	began := time.Now()
	again, commit := c.store.Work(func() bool { return time.Since(began) < workSlice })
	if c.hasWork = again; commit {
		return c.commit(ctx, []string{"large policies"})
	}
	return nil
}

// batch applies an update and all updates that follow within the debounce limits. It
// reports for each source whether it sent any of them.
func (c *Controller) batch(ctx context.Context, m message, updates <-chan message, sources int) []bool {
	changed := make([]bool, sources)
	began := time.Now()
	wait := time.NewTimer(debounceQuiet)
	defer wait.Stop()
	for {
		m.update(c.store)
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
func (c *Controller) commit(ctx context.Context, by []string) error {
	if ctx.Err() != nil {
		return nil
	}
	began := time.Now()
	snapshot, changes := c.store.Commit()
	compiled := time.Since(began)
	c.pub.Publish(snapshot)
	c.reportProblems()
	c.reportClashes()
	change := Change{Snapshot: snapshot, Addresses: append(changes, c.unsettled...), Unsettled: c.retryTimer != nil}
	var err error
	if c.isReady || len(c.stages) > 0 {
		err = c.apply(ctx, change)
	} else {
		c.await(ctx, change)
	}
	if err != nil || ctx.Err() != nil {
		return err
	}
	c.applied(snapshot, c.retryTimer == nil)
	level := slog.LevelDebug
	if !c.isReady {
		c.isReady = true
		c.store.UseDrafts()
		close(c.ready)
		level = slog.LevelInfo
	}
	counts := snapshot.Counts()
	c.log.Log(ctx, level, "policies in force", event.Published.Attr(), "snapshot", snapshot.Number(), "changed_by", strings.Join(by, ", "), "policies", counts.Policies,
		"pods", counts.Pods, "namespaces", counts.Namespaces, "changed_addresses", len(change.Addresses), "duration_ms", compiled.Milliseconds())
	return nil
}

// await sends the first change to the channel that First returns, and waits until Attach sets the
// stages.
func (c *Controller) await(ctx context.Context, first Change) {
	c.first <- first
	select {
	case <-ctx.Done():
	case c.stages = <-c.attached:
	}
}

// apply puts a change in force, stage by stage. If a stage returns ErrUnsettled, the later
// stages still run, and all stages apply the change again after unsettledInterval.
func (c *Controller) apply(ctx context.Context, change Change) error {
	c.unsettled, c.retryTimer = nil, nil
	settled := true
	for _, s := range c.stages {
		err := s.Apply(ctx, change)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrUnsettled):
			settled, change.Unsettled = false, true
		case err != nil:
			return fmt.Errorf("put snapshot %d in force for %s: %w", change.Snapshot.Number(), s, err)
		}
	}
	if !settled {
		c.unsettled, c.retryTimer = change.Addresses, time.After(unsettledInterval)
	}
	return nil
}

// reportProblems logs each problem of a policy once while it lasts.
func (c *Controller) reportProblems() {
	logged := make(map[policy.Problem]bool)
	problems, overlaps := c.store.Problems(), c.store.Overlaps()
	all := slices.Concat(problems, overlaps)
	c.currentProblems.Store(&all)
	for i, p := range all {
		switch {
		case c.loggedProblems[p]:
		case c.known != nil && c.known(p):
			continue // logged once it is not known any more
		case i < len(problems):
			c.log.Warn(titleOf(p), "problem", p)
		default:
			c.log.Warn("policies of equal priority decide in the order of their names", "problem", p)
		}
		logged[p] = true
	}
	c.loggedProblems = logged
}

// titleOf returns the message that logs a problem.
func titleOf(p policy.Problem) string {
	switch {
	case p.Minor:
		return "an annotation has no effect"
	case p.TooLarge:
		return "a policy is too large"
	case p.Unsupported:
		return "part of a policy is not supported"
	}
	return "part of a policy cannot be understood"
}

// reportClashes logs each address that several live pods claim, once while the clash lasts.
func (c *Controller) reportClashes() {
	clashes := c.store.Clashes()
	c.currentClashes.Store(&clashes)
	clashed := make(map[string]bool, len(clashes))
	for _, clash := range clashes {
		key := clash.Addr.String() + " " + clash.Pods()
		if !c.loggedClashes[key] {
			c.log.Warn("several live pods claim one address", event.AddressShared.Attr(), "address", clash.Addr, "counts", clash.Winner, "others", strings.Join(clash.Others, ", "))
		}
		clashed[key] = true
	}
	c.loggedClashes = clashed
}
