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
//  4. The request of step 2 stays open. Should it break off while the old agent
//     is still there, the new one has died: the old one steps in again.
//
// Both judge by the same API, so that a connection gets the same verdict from
// either.

// takeoverPatience is how long the old agent may take to yield.
const takeoverPatience = 5 * time.Second

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
// lease must stay open for as long as this agent is there.
func takeOver(ctx context.Context, socket string) (lease io.Closer, err error) {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	limited, cancel := context.WithCancel(context.WithoutCancel(ctx))
	timer := time.AfterFunc(takeoverPatience, cancel)
	request, err := http.NewRequestWithContext(limited, http.MethodPost, "http://agent/handover", http.NoBody)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("take over from the agent that is there: %w", err)
	}
	response, err := transport.RoundTrip(request) //nolint:bodyclose // whoever takes over closes it: that ends it
	switch {
	case err == nil && response.StatusCode == http.StatusOK && timer.Stop():
		return closeFunc(func() error { cancel(); return response.Body.Close() }), nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		err = fmt.Errorf("%w %s: end what reads the queues, or name its socket with --socket", errNobody, socket)
	case err == nil:
		_ = response.Body.Close()
		err = fmt.Errorf("it answers %s", response.Status)
	}
	cancel()
	return nil, fmt.Errorf("take over from the agent that is there: %w", err)
}

// errNobody says that there is no agent to take over from.
var errNobody = errors.New("nobody answers on")

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

// yield leaves the rules and the live connections to another agent.
func (a *agent) yield() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.phase != enforcing {
		return false
	}
	a.phase = yielded
	a.manager.Yield()
	return true
}

// stepIn takes the rules and the live connections back, unless this agent is
// about to end.
func (a *agent) stepIn() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.phase != yielded {
		return nil
	}
	a.log.Warn("the agent that took over is gone; enforcing again")
	a.phase = enforcing
	ctx, cancel := context.WithTimeout(context.Background(), goodbye)
	defer cancel()
	err := a.manager.Apply(ctx) // if it fails, the manager tries on
	a.follower.Published(a.published.Snapshot(), nil, true)
	return err
}
