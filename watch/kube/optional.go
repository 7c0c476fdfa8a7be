package kube

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// discoveryTimes are the times between requests to discovery for an optional kind.
type discoveryTimes struct {
	// interval is the time from one check of discovery to the next. A random part of up to a
	// third is added, so that the agents of a cluster do not ask at the same time. With
	// confirm added, it is below the 30 s within which a change must be noticed. A check costs
	// the API server one small request from each node, or two if it does not serve the kind.
	interval time.Duration
	// confirm is the time between the first and the second response without the followed
	// version. Only the second has an effect: one of several API servers may be late, and the
	// discovery of a server that starts is incomplete for a moment.
	confirm time.Duration
	// conflict is the time for which lists and discovery may contradict each other, as they
	// do for a moment after a change.
	conflict time.Duration
}

var defaultTimes = discoveryTimes{interval: 15 * time.Second, confirm: 3 * time.Second, conflict: 10 * time.Second}

// optional follows a kind that a cluster may lack. It asks discovery for the version to
// follow, and follows that version until discovery names another one, or none.
//
// Only an answer without the kind removes its policies. After any other failure, everything
// known stays in force, as for other kinds.
type optional struct {
	kind     *kind
	times    discoveryTimes
	discover func(ctx context.Context, sure bool) (schema.GroupVersion, error)
	follow   func(ctx context.Context, version schema.GroupVersion) // returns when ctx ends
	empty    func()                                                 // removes all objects
	health   *health

	version schema.GroupVersion // the followed version, or notServed
	decided bool                // version is known
	doubt   bool                // the last response of discovery named a less preferred version, or none
	stop    func()              // stops the goroutine that follows the kind, and waits until it has ended; nil if none runs

	wake     chan struct{} // holds a token if a request for objects got the response 404
	notFound atomic.Pointer[refusal]
}

// refusal is a request that got the response 404.
type refusal struct {
	verb  string
	err   error
	since time.Time // of the first in an unbroken sequence
}

// run follows the kind until ctx ends.
func (o *optional) run(ctx context.Context) {
	defer func() {
		if o.stop != nil {
			o.stop()
		}
	}()
	failures := 0
	for ctx.Err() == nil {
		found, err := o.discover(ctx, !o.decided || o.version != notServed)
		if ctx.Err() != nil {
			return
		}
		o.health.discovered(o.kind, err)
		if err != nil {
			backoff := min(minRetryBackoff<<min(failures, 10), maxRetryBackoff)
			failures++
			sleep(ctx, backoff+rand.N(backoff/2))
			continue
		}
		failures = 0
		o.apply(ctx, found)
		o.pause(ctx)
	}
}

// apply follows the version that discovery has found. If the followed version is preferred to
// the found one, apply waits for a second such response.
func (o *optional) apply(ctx context.Context, found schema.GroupVersion) {
	if o.decided && found == o.version {
		o.doubt = false
		o.conflict()
		return
	}
	if o.doubt = o.decided && o.worse(found) && !o.doubt; o.doubt {
		return
	}
	if o.stop != nil {
		o.stop()
		o.stop = nil
	}
	o.notFound.Store(nil)
	o.health.serves(o.kind, found, o.version, o.decided)
	o.version, o.decided = found, true
	if found == notServed {
		o.empty()
		return
	}
	o.start(ctx)
}

// worse reports whether the followed version is preferred to found.
func (o *optional) worse(found schema.GroupVersion) bool {
	versions := append(o.kind.versions(), notServed)
	return slices.Index(versions, found) > slices.Index(versions, o.version)
}

// start starts follow.
func (o *optional) start(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	version := o.version
	done.Go(func() { o.follow(ctx, version) })
	o.stop = func() {
		cancel()
		done.Wait()
	}
}

// conflict records a failure if the server answers requests for objects with 404, although its
// discovery offers them.
func (o *optional) conflict() {
	if r := o.notFound.Load(); r != nil && time.Since(r.since) > o.times.conflict {
		o.health.requestDone(o.kind, r.verb, r.err)
	}
}

// pause waits until discovery is to be asked again.
func (o *optional) pause(ctx context.Context) {
	if o.doubt || o.notFound.Load() != nil {
		sleep(ctx, o.times.confirm)
		return
	}
	timer := time.NewTimer(o.times.interval + rand.N(o.times.interval/3))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-o.wake:
	}
}

// requestDone records the outcome of a request for objects. The response 404 usually means that
// the server no longer serves the version. So requestDone does not record it as a failure yet,
// but wakes the method "run", which asks discovery.
func (o *optional) requestDone(verb string, err error) {
	if !apierrors.IsNotFound(err) {
		o.notFound.Store(nil)
		o.health.requestDone(o.kind, verb, err)
		return
	}
	r := &refusal{verb, err, time.Now()}
	if before := o.notFound.Load(); before != nil {
		r.since = before.since
	}
	o.notFound.Store(r)
	select {
	case o.wake <- struct{}{}:
	default:
	}
}
