package kube

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// discoveryTimes are the times that determine when an agent asks discovery whether an optional
// kind is served.
type discoveryTimes struct {
	// interval is the time between two discoveries. A random part of up to a third is added,
	// so that the agents of a cluster do not ask at the same time. interval and confirm are
	// small enough to notice a change within 30 s. In each interval, the API server gets one
	// small request from each node, or two if it serves only an older version of the kind. If
	// it does not serve the kind, each node requests only the list of groups.
	interval time.Duration
	// confirm is the time between the first and the second response without the followed
	// version. Only the second has an effect: one of several API servers may notice a change
	// later than others, and the discovery of a server that starts is incomplete for a moment.
	confirm time.Duration
	// conflict is how long the server may answer requests for objects with 404 although its
	// discovery lists the version. Such answers are normal for a moment after a change. After
	// this time, they are a failure.
	conflict time.Duration
	// patience bounds how long the first Update waits for optional kinds if only these are
	// missing, each with a failure. After this time, startWithout asks whether to start without
	// them.
	patience time.Duration
}

var defaultTimes = discoveryTimes{interval: 15 * time.Second, confirm: 3 * time.Second, conflict: 10 * time.Second, patience: 10 * time.Second}

// optional follows a kind that a cluster may lack. It asks discovery for the version to
// follow, and follows that version until discovery returns another version, or none.
//
// Objects of the kind are removed only if discovery responds that the kind is not served. After
// any failure, the known objects stay in force, as with other kinds.
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

	wake chan struct{} // holds a token if a request for objects got the response 404

	// mu is held while the outcome of a request is recorded, so that conflict cannot record a
	// failure that a later request has ended.
	mu       sync.Mutex
	notFound *refusal // nil unless the last request for objects got the response 404
}

// refusal is a request that got the response 404.
type refusal struct {
	verb        string
	err         error
	first, last time.Time // of the first response 404 in an unbroken sequence, and of this one
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
			o.setNotFound(nil) // until the next response, it is not known what discovery offers
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

// apply follows the version that discovery has found. If discovery finds a less preferred
// version than the followed one, or none, apply waits for a second response that does so too.
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
	o.setNotFound(nil)
	o.health.serves(o.kind, found, o.version, o.decided)
	o.version, o.decided = found, true
	if found == notServed {
		o.empty()
		return
	}
	o.start(ctx)
}

// worse reports whether found comes after the followed version in the order of preference.
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

// conflict is called while discovery lists the followed version. It records a failure if requests
// for objects have got the response 404 for longer than times.conflict.
func (o *optional) conflict() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if r := o.notFound; r != nil && r.last.Sub(r.first) > o.times.conflict {
		o.health.requestDone(o.kind, r.verb, r.err)
	}
}

// pause waits until the time for the next discovery.
func (o *optional) pause(ctx context.Context) {
	if o.doubt || o.isNotFound() {
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
	o.mu.Lock()
	defer o.mu.Unlock()
	if !apierrors.IsNotFound(err) {
		o.notFound = nil
		o.health.requestDone(o.kind, verb, err)
		return
	}
	now := time.Now()
	r := &refusal{verb, err, now, now}
	if before := o.notFound; before != nil {
		r.first = before.first
	}
	o.notFound = r
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

func (o *optional) setNotFound(r *refusal) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.notFound = r
}

func (o *optional) isNotFound() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.notFound != nil
}
