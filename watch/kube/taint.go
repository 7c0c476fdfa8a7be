package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"sluice/filter/event"
)

const (
	// readyInterval is how often an agent that is not ready yet is asked again, while
	// its node bears the taint.
	readyInterval = 250 * time.Millisecond
	// patchTimeout bounds reading a Node and writing it.
	patchTimeout = 10 * time.Second
	// patchAttempts is how often a Node is read and written again at once because it
	// changed in between; then the wait of all retries applies.
	patchAttempts = 5
)

// StartupTaint is a taint that keeps pods off a node until its agent enforces. The
// cluster's operator sets it on new nodes, and the agent removes it.
type StartupTaint struct {
	Key string // of the taint; its value and effect do not matter
	// Ready reports whether pods may come: the rules are in place, and the live
	// connections judged. It is asked while the Node bears the taint.
	Ready func() bool
}

// startupTaint removes the taint from the Node of this name whenever it is there and
// the agent is ready.
//
// The Node is read again for each patch, as JSON: what followed it keeps no taints.
// The patch names places in the list of taints and tests each before it removes it,
// so that taints of others stay whatever happens meanwhile.
type startupTaint struct {
	StartupTaint
	node    string
	client  rest.Interface
	server  string
	log     *slog.Logger
	seen    chan struct{} // holds a token if the Node may bear the taint
	failure atomic.Pointer[APIError]
	missing atomic.Bool // there is no Node of this name, as far as the server has told
}

func newStartupTaint(t StartupTaint, node, server string, client rest.Interface, log *slog.Logger) *startupTaint {
	return &startupTaint{StartupTaint: t, node: node, client: client, server: server, log: log, seen: make(chan struct{}, 1)}
}

// observe takes a Node that has come or changed.
func (t *startupTaint) observe(n *node) {
	if n.Name != t.node || !slices.Contains(n.taints, t.Key) {
		return
	}
	select {
	case t.seen <- struct{}{}:
	default:
	}
}

// run removes the taint whenever it is seen, until ctx ends.
func (t *startupTaint) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.seen:
		}
		for !t.Ready() {
			if !sleep(ctx, readyInterval) {
				return
			}
		}
		for wait := minRetryBackoff; ; wait = min(2*wait, maxRetryBackoff) {
			err := t.remove(ctx)
			if ctx.Err() != nil {
				return
			}
			t.record(err)
			if err == nil || apierrors.IsNotFound(err) { // a Node that comes back is seen
				break
			}
			if !sleep(ctx, wait) {
				return
			}
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// remove removes the taint, and does nothing if it is not there.
func (t *startupTaint) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patchTimeout, fmt.Errorf("the API server did not answer within %v", patchTimeout))
	defer cancel()
	for attempt := 1; ; attempt++ {
		patch, err := t.patch(ctx)
		if err != nil || patch == nil {
			return err
		}
		err = t.client.Patch(types.JSONPatchType).Resource(nodeKind.resource).Name(t.node).Body(patch).Do(ctx).Error()
		switch {
		case err == nil:
			t.log.Info("the startup taint was removed: pods can be scheduled to this node", event.TaintRemoved.Attr(), "node", t.node, "taint", t.Key)
			return nil
		case attempt < patchAttempts && (apierrors.IsConflict(err) || apierrors.IsInvalid(err)):
			continue // the Node has changed: a test of the patch does not hold
		}
		return err
	}
}

// operation is one step of a JSON patch.
type operation struct {
	Op    string          `json:"op"`
	Path  string          `json:"path"`
	Value json.RawMessage `json:"value,omitempty"`
}

// patch reads the Node and returns what takes the taint from it; nil if it does not
// bear it.
func (t *startupTaint) patch(ctx context.Context) ([]byte, error) {
	text, err := t.client.Get().Resource(nodeKind.resource).Name(t.node).SetHeader("Accept", "application/json").Do(ctx).Raw()
	if err != nil {
		return nil, err
	}
	var o struct {
		Spec struct {
			Taints []json.RawMessage `json:"taints"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(text, &o); err != nil {
		return nil, fmt.Errorf("read Node %s: %w", t.node, err)
	}
	var steps []operation
	for i, raw := range slices.Backward(o.Spec.Taints) { // from behind: places before one that goes stay as they are
		var taint struct {
			Key string `json:"key"`
		}
		if err := json.Unmarshal(raw, &taint); err != nil {
			return nil, fmt.Errorf("read Node %s, spec.taints[%d]: %w", t.node, i, err)
		}
		if path := fmt.Sprintf("/spec/taints/%d", i); taint.Key == t.Key {
			steps = append(steps, operation{"test", path, raw}, operation{"remove", path, nil})
		}
	}
	if steps == nil {
		return nil, nil
	}
	return json.Marshal(steps)
}

// record takes the outcome of an attempt, and logs what that changes.
func (t *startupTaint) record(err error) {
	if err == nil || apierrors.IsNotFound(err) {
		t.failure.Store(nil)
		return
	}
	now := newAPIError(err, t.server, nodeKind, "patch")
	if apierrors.IsForbidden(err) {
		now.Hint = `let this user get and patch nodes of API group "", by a ClusterRole and a ClusterRoleBinding; the chart's value startupTaint does`
	}
	if was := t.failure.Swap(now); was == nil || !was.alike(now) {
		t.log.Warn("the startup taint cannot be removed; no pods are scheduled to this node", event.TaintKept.Attr(), "node", t.node, "taint", t.Key, "problem", now)
	}
}

// StartupTaintError returns why the taint cannot be removed from this node's Node. It
// returns nil if the taint can be removed, or is not there.
func (s *Source) StartupTaintError() error {
	if s.taint == nil {
		return nil
	}
	if t := s.taint.failure.Load(); t != nil {
		return t
	}
	if s.taint.missing.Load() {
		return &APIError{
			Server: s.host, Request: "find Node " + s.taint.node, Cause: errors.New("there is no Node of this name"),
			Hint: "give --node-name the name of this node's Node object, in most clusters spec.nodeName of the agent's pod",
		}
	}
	return nil
}
