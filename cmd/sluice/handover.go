package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"
	"time"

	"sluice/cache/conntrack"
	"sluice/filter/queue"
)

// An agent that starts while another one enforces takes over from it, so that an
// update leaves no moment without an agent:
//
//  1. The new one takes other queues, since the old one reads the usual ones. It
//     learns the world and starts its workers.
//  2. It asks the old one, over its socket, to yield: to leave the rules alone
//     from now on. The old one goes on to answer what waits in its queues.
//  3. It writes its rules in place of the old ones, in one transaction. From here
//     on new connections come to its queues.
//  4. When the old one has answered what waited, the new one judges all live
//     connections once more.
//  5. The request of step 2 stays open. Should it break off while the old agent
//     is still there, the new one has died: the old one steps in again.
//
// Both judge by the same API, so that a connection gets the same verdict from
// either, but for what one of them has heard and the other not yet. That is why
// the old one ends its sweeps before it yields, and what step 4 is for.

const (
	// takeoverPatience is how long the old agent may take to yield.
	takeoverPatience = 5 * time.Second
	// askAgain is how soon one that cannot yield is asked again.
	askAgain = 50 * time.Millisecond
)

// chooseQueues gives the number of the first queue to read, and whether another
// agent may be there: that of the wanted queues, or, if somebody reads those, of
// the ones behind them. So two agents that take over from each other change
// places.
func chooseQueues(first uint16, count int) (chosen uint16, occupied bool, err error) {
	wanted, err := queue.Bound(0, first, count)
	if err != nil {
		return 0, false, err
	}
	next := int(first) + count
	if next+count > 1<<16 {
		if wanted {
			return 0, true, fmt.Errorf("another process reads queues from %d on, and there are no numbers behind them: choose others with --queue-first", first)
		}
		return first, false, nil
	}
	behind, err := queue.Bound(0, uint16(next), count)
	switch {
	case err != nil:
		return 0, false, err
	case wanted && behind:
		return 0, true, fmt.Errorf("other processes read the queues from %d on and from %d on: end one of them, or choose others with --queue-first", first, next)
	case wanted:
		return uint16(next), true, nil
	}
	return first, behind, nil
}

// takeOver asks the agent behind a socket to yield, and returns when it has. The
// lease must stay open for as long as this agent is there. An agent that does not
// answer within the timeout hangs: the error says so, and what to do.
func takeOver(ctx context.Context, socket string, timeout time.Duration) (lease io.Closer, err error) {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	limited, end := context.WithCancelCause(context.WithoutCancel(ctx))
	cancel := func() { end(nil) }
	timer := time.AfterFunc(timeout, func() {
		end(fmt.Errorf("it has not answered on %s for %v: it hangs; end its process, and start this one again", socket, timeout))
	})
	request, err := http.NewRequestWithContext(limited, http.MethodPost, "http://agent/handover", http.NoBody)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("take over from the agent that is there: %w", err)
	}
	response, err := transport.RoundTrip(request) //nolint:bodyclose // whoever takes over closes it: that ends it
	switch {
	case err == nil && response.StatusCode == http.StatusOK && timer.Stop():
		return closeFunc(func() error { cancel(); return response.Body.Close() }), nil
	case limited.Err() != nil:
		if err == nil {
			_ = response.Body.Close() // it answered when the time was over
		}
		err = context.Cause(limited)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		err = fmt.Errorf("%w %s: end what reads the queues, or name its socket with --socket", errNobody, socket)
	case err == nil && response.StatusCode == http.StatusConflict:
		_ = response.Body.Close()
		err = fmt.Errorf("%w %s: an agent with another --socket may be running: name its socket with --socket, or end it first", errNotNow, socket)
	case err == nil:
		_ = response.Body.Close()
		err = fmt.Errorf("it answers %s", response.Status)
	}
	cancel()
	return nil, fmt.Errorf("take over from the agent that is there: %w", err)
}

var (
	// errNobody says that there is no agent to take over from.
	errNobody = errors.New("nobody answers on")
	// errNotNow says that the agent does not enforce. It is about to begin or to
	// end; or it is this one itself, because the one that is to be asked is just
	// about to put its own socket in place.
	errNotNow = errors.New("no agent that enforces answers on")
)

// succeed takes over from the agent that is there, if one is.
func (a *agent) succeed(ctx context.Context) error {
	for end := time.Now().Add(takeoverPatience); ; {
		lease, err := takeOver(ctx, a.opts.socket, takeoverPatience)
		switch {
		case err == nil:
			a.lease = lease
			return nil
		case errors.Is(err, errNobody) && a.opts.rules.FirstQueue == a.wantedQueue:
			return nil // whoever reads the queues behind ours is no agent, and not in the way
		case errors.Is(err, errNobody) && a.vacated():
			return nil // the agent that was there has ended meanwhile
		case !errors.Is(err, errNotNow) || time.Now().After(end):
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(askAgain):
		}
	}
}

type closeFunc func() error

func (f closeFunc) Close() error { return f() }

// handOver answers an agent that wants to take over.
func (a *agent) handOver(w http.ResponseWriter, r *http.Request) {
	if !a.yield() {
		http.Error(w, "this agent is not ready itself, or has yielded to another", http.StatusConflict)
		return
	}
	a.log.Info("another agent takes over")
	w.WriteHeader(http.StatusOK)
	if err := http.NewResponseController(w).Flush(); err == nil {
		<-r.Context().Done()
	}
	if err := a.stepIn(); err != nil {
		a.log.Error("the agent that took over is gone, but the rules cannot be put in place", "err", err)
	}
}

// vacated says that nobody reads the wanted queues any more.
func (a *agent) vacated() bool {
	bound, err := queue.Bound(0, a.wantedQueue, a.opts.rules.Span())
	return err == nil && !bound
}

// others is the first of the queues of the agent that this one takes over from.
func (a *agent) others() uint16 {
	if a.opts.rules.FirstQueue != a.wantedQueue {
		return a.wantedQueue
	}
	return a.wantedQueue + uint16(a.opts.rules.Span())
}

// settling is how often the queues of the agent from before are looked at.
const settling = 20 * time.Millisecond

// inherit waits until the agent from before has answered what waits in its queues,
// and has all live connections judged then: it may have known less than this one.
func (a *agent) inherit(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-a.inherited:
	}
	tick := time.NewTicker(settling)
	defer tick.Stop()
	// Two looks, because a packet leaves the count before its verdict is carried
	// out.
	for empty := 0; empty < 2; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		switch n, err := queue.Waiting(0, a.others(), a.opts.rules.Span()); {
		case err != nil:
			a.log.Warn("it is not known whether the agent from before has answered all packets", "err", err)
			empty = 2
		case n == 0:
			empty++
		default:
			empty = 0
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.phase == enforcing {
		a.follower.Published(a.published.Snapshot(), nil, conntrack.Everything)
	}
}

// yield leaves the rules and the live connections to another agent, and returns
// when this one does nothing about them any more.
func (a *agent) yield() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.phase != enforcing {
		return false
	}
	a.phase = yielded
	a.manager.Yield()
	a.yieldGuard()
	a.follower.Rest()
	return true
}

// stepIn takes the rules and the live connections back, unless this agent is
// about to end, which breaks off the request too.
func (a *agent) stepIn() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.phase != yielded || a.serving.Err() != nil {
		return nil
	}
	a.log.Warn("the agent that took over is gone; enforcing again")
	a.phase = enforcing
	ctx, cancel := within(context.Background(), goodbye, "to put the rules back in place")
	defer cancel()
	// If it fails, the manager tries on.
	err := a.applyGuarded(a.published.Snapshot(), func() error { return a.manager.Apply(ctx) })
	err = errors.Join(err, forgetOtherBackend(ctx, a.backend, a.log))
	if err == nil {
		a.forgetStale()
	}
	a.follower.Published(a.published.Snapshot(), nil, conntrack.Everything)
	return err
}
