package agent

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
	"sluice/filter/event"
	"sluice/filter/queue"
)

// An agent that starts while another one enforces takes over from it, so that the node is
// never without an agent during an update:
//
//  1. The new agent reads all sources and starts its workers. They read a range of queues
//     that the old agent does not read (see chooseQueues).
//  2. It asks the old agent over its socket to yield. From then on, the old agent does not
//     change the rules, but still answers the packets in its queues.
//  3. It replaces the old rules with its own in one transaction. From then on, new
//     connections go to its queues.
//  4. When the old agent has answered all packets, the new one judges all live connections
//     again.
//  5. The request of step 2 stays open. If it ends while the old agent still runs, the new
//     agent has died, and the old one enforces again.
//
// Both agents follow the same API, but one of them may receive a change earlier than the other.
// Until then, the other one still judges connections by the older policies. For this reason, the
// old agent stops its sweeps when it yields, and the new agent judges all connections in step 4.

const (
	// takeOverTimeout bounds the wait for the predecessor to yield.
	takeOverTimeout = 5 * time.Second
	// takeOverInterval is the time between two requests to an agent that cannot yield yet.
	takeOverInterval = 50 * time.Millisecond
)

// queuedAgent is another agent of this node. Its range of queues directly precedes or follows
// the range of this agent.
type queuedAgent struct {
	socket string
	first  uint16 // number of the other agent's first queue
	count  int    // number of queues in the other agent's range
	// blocks is set if the other agent reads the configured queues. In this case, this agent
	// must use the range after them.
	blocks bool
}

// chooseQueues selects the configured range of queues or, if a process reads that range, the
// next range. So successive agents alternate between the two ranges. It returns the agent
// that reads the range that was not selected, or nil.
func (a *agent) chooseQueues() (predecessor, error) {
	wanted, count := a.opts.Rules.FirstQueue, a.opts.Rules.Span()
	chosen, occupied, err := freeQueues(wanted, count)
	if err != nil || !occupied {
		return nil, err
	}
	p := queuedAgent{socket: a.opts.Socket, first: wanted, count: count, blocks: chosen != wanted}
	if !p.blocks {
		p.first = wanted + uint16(count)
	}
	a.opts.Rules.FirstQueue = chosen
	return p, nil
}

// freeQueues chooses between two ranges of queues: the configured one and the one after it.
// The arguments are the number of the first configured queue, and the number of queues in each
// range. freeQueues returns the number of the first queue of the range that is free, and
// whether a process reads the other range.
func freeQueues(first uint16, count int) (chosen uint16, occupied bool, err error) {
	wanted, err := queue.Bound(0, first, count)
	if err != nil {
		return 0, false, err
	}
	next := int(first) + count
	if next+count > 1<<16 {
		if wanted {
			return 0, true, fmt.Errorf("another process reads queues from %d on, and there are no higher numbers for this agent: choose others with --queue-first", first)
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

// requestYield asks the agent that listens on a socket to yield, and returns when it has
// yielded. This agent must keep the lease open for as long as it enforces: when the lease is
// closed, the other agent enforces again. If the other agent does not answer within the timeout,
// requestYield takes it to hang, and returns an error that tells the user what to do.
func requestYield(ctx context.Context, socket string, timeout time.Duration) (lease io.Closer, err error) {
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
	response, err := transport.RoundTrip(request) //nolint:bodyclose // the lease closes it, which ends the hand-over
	switch {
	case err == nil && response.StatusCode == http.StatusOK && timer.Stop():
		return closeFunc(func() error { cancel(); return response.Body.Close() }), nil
	case limited.Err() != nil:
		if err == nil {
			_ = response.Body.Close() // the answer came after the timeout
		}
		err = context.Cause(limited)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		err = fmt.Errorf("%w %s: end what reads the queues, or name its socket with --socket", errNoAgent, socket)
	case err == nil && response.StatusCode == http.StatusConflict:
		_ = response.Body.Close()
		err = fmt.Errorf("%w %s: an agent with another --socket may be running: name its socket with --socket, or end it first", errNotEnforcing, socket)
	case err == nil:
		_ = response.Body.Close()
		err = fmt.Errorf("it answers %s", response.Status)
	}
	cancel()
	return nil, fmt.Errorf("take over from the agent that is there: %w", err)
}

var (
	// errNoAgent means that there is no agent to take over from.
	errNoAgent = errors.New("no agent answers on")
	// errNotEnforcing means that the agent behind the socket is starting or ending. It may
	// be this agent itself, if the predecessor has not yet put its own socket in place.
	errNotEnforcing = errors.New("no agent that enforces answers on")
)

// TakeOver asks the agent to yield. It repeats the request while the agent cannot yield yet, for
// at most takeOverTimeout.
func (q queuedAgent) TakeOver(ctx context.Context) (io.Closer, error) {
	for end := time.Now().Add(takeOverTimeout); ; {
		lease, err := requestYield(ctx, q.socket, takeOverTimeout)
		switch {
		case err == nil:
			return lease, nil
		case errors.Is(err, errNoAgent) && !q.blocks:
			return nil, nil //nolint:nilnil // a process that is not an agent reads the other range, which this agent does not need
		case errors.Is(err, errNoAgent) && q.gone():
			return nil, nil //nolint:nilnil // the predecessor has ended since chooseQueues found it
		case !errors.Is(err, errNotEnforcing) || time.Now().After(end):
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(takeOverInterval):
		}
	}
}

// gone reports whether no process reads the agent's queues any more.
func (q queuedAgent) gone() bool {
	bound, err := queue.Bound(0, q.first, q.count)
	return err == nil && !bound
}

// Queued returns the number of packets in the agent's queues.
func (q queuedAgent) Queued() (int, error) { return queue.Waiting(0, q.first, q.count) }

type closeFunc func() error

func (f closeFunc) Close() error { return f() }

// handover is the request of an agent that wants to take over.
type handover struct {
	yielded chan<- bool     // receives true if this agent has yielded, otherwise false
	gone    <-chan struct{} // closed when the other agent has died or released its lease
}

// handOver answers the request of an agent that wants to take over. If this agent has yielded,
// the request stays open until the other agent dies or closes its lease.
func (a *agent) handOver(w http.ResponseWriter, r *http.Request) {
	if !a.requestHandover(r.Context()) {
		http.Error(w, "this agent is not ready itself, or has yielded to another", http.StatusConflict)
		return
	}
	a.log.Info("another agent takes over")
	w.WriteHeader(http.StatusOK)
	if err := http.NewResponseController(w).Flush(); err == nil {
		<-r.Context().Done()
	}
}

// requestHandover asks the goroutine of run() to yield, and reports whether it has yielded. ctx
// ends when the agent that wants to take over dies or closes its lease.
func (a *agent) requestHandover(ctx context.Context) bool {
	if !a.is(enforcing) {
		return false // do not wait for the goroutine of run(), which may be busy
	}
	yielded := make(chan bool, 1)
	select {
	case a.handovers <- handover{yielded, ctx.Done()}:
	case <-a.ending:
		return false
	case <-ctx.Done():
		return false
	}
	return <-yielded
}

// handOverUntil yields to agents that take over, and enforces again when they have died. It
// returns when one of the two contexts ends.
func (a *agent) handOverUntil(ctx, serving context.Context) {
	var gone <-chan struct{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-serving.Done():
			return
		case h := <-a.handovers:
			ok := a.yield()
			if ok {
				gone = h.gone
			}
			h.yielded <- ok
		case <-gone:
			gone = nil
			if ctx.Err() != nil || serving.Err() != nil {
				return // this agent is ending, and has closed the request itself
			}
			if err := a.enforceAgain(ctx); err != nil {
				a.log.Error("the agent that took over is gone, but the rules cannot be put in place", "err", err)
			}
		}
	}
}

// yield leaves the rules and the live connections to another agent. When it has returned
// true, this agent changes neither. It returns false if this agent does not enforce.
func (a *agent) yield() bool {
	if !a.is(enforcing) {
		return false
	}
	a.setPhase(yielded)
	a.flows.tenure.end()
	a.manager.Yield()
	a.yieldGuard()
	a.follower.Pause()
	return true
}

// enforceAgain takes back the rules and the live connections after the agent that had taken
// over has died.
func (a *agent) enforceAgain(ctx context.Context) error {
	a.log.Warn("the agent that took over is gone; enforcing again", event.Resumed.Attr())
	a.setPhase(resuming)
	ctx, cancel := within(ctx, rulesTimeout, "to put the rules back in place")
	defer cancel()
	// After an error, the manager tries again.
	err := a.applyGuarded(ctx, a.published.Snapshot(), a.manager.Apply)
	err = errors.Join(err, a.leftovers.RemoveRules(ctx))
	if err == nil {
		a.removePins()
	}
	a.setPhase(enforcing)
	a.flows.tenure.begin()
	a.judgeAll(conntrack.ScopeAll)
	return err
}
