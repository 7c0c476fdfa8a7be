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
	// readyInterval is the interval at which Ready is called while the agent is not ready
	// and its Node has the taint.
	readyInterval = 250 * time.Millisecond
	// patchTimeout bounds the reading and patching of a Node, including all immediate
	// attempts.
	patchTimeout = 10 * time.Second
	// patchAttempts bounds the immediate attempts to patch a Node that changes
	// concurrently. After these, the retry backoff applies.
	patchAttempts = 5
)

// StartupTaint is a taint that keeps pods off a node until its agent enforces policies. The
// operator of the cluster sets it on new nodes, and the agent removes it.
type StartupTaint struct {
	Key string // key of the taint; its value and effect do not matter
	// Ready reports whether pods may be scheduled to this node: the rules are in place and
	// the live connections have been evaluated. It is called while the Node has the taint.
	Ready func() bool
}

// startupTaint removes the taint from this node's Node whenever the Node has it and the
// agent is ready.
//
// It reads the Node as JSON before each patch, because the slim Node contains only the keys
// of taints. The patch removes taints by index. Before each removal, it tests that the
// taint is still at that index, so that a concurrent change cannot lead to the removal of
// another taint.
type startupTaint struct {
	StartupTaint
	node    string
	client  rest.Interface
	server  string
	log     *slog.Logger
	seen    chan struct{} // holds a value if observe() has seen the taint and run() has not yet reacted
	failure atomic.Pointer[APIError]
	missing atomic.Bool // as far as the agent knows, there is no Node with this name
}

func newStartupTaint(t StartupTaint, node, server string, client rest.Interface, log *slog.Logger) *startupTaint {
	return &startupTaint{StartupTaint: t, node: node, client: client, server: server, log: log, seen: make(chan struct{}, 1)}
}

// observe wakes run if n is this node's Node and has the taint. It is called for each new
// or changed Node.
func (t *startupTaint) observe(n *node) {
	if n.Name != t.node || !slices.Contains(n.taints, t.Key) {
		return
	}
	select {
	case t.seen <- struct{}{}:
	default:
	}
}

// run removes the taint whenever the Node has it, until ctx ends.
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
			if err == nil || apierrors.IsNotFound(err) { // if the Node is created again, observe() wakes run()
				break
			}
			if !sleep(ctx, wait) {
				return
			}
		}
	}
}

// sleep waits for d. It returns false if ctx ends first.
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

// remove removes the taint, if the Node has it.
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
			t.log.Info("startup taint removed: pods can be scheduled to this node", event.TaintRemoved.Attr(), "node", t.node, "taint", t.Key)
			return nil
		case attempt < patchAttempts && (apierrors.IsConflict(err) || apierrors.IsInvalid(err)):
			continue // the Node has changed, so a test of the patch failed
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

// patch reads the Node and returns the patch that removes the taint, or nil if the Node
// does not have it.
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
	for i, raw := range slices.Backward(o.Spec.Taints) { // from the end, because a removal shifts all later indexes
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

// record stores the outcome of an attempt. It logs a failure if it differs from the
// previous one.
func (t *startupTaint) record(err error) {
	if err == nil || apierrors.IsNotFound(err) {
		t.failure.Store(nil)
		return
	}
	now := newAPIError(err, t.server, nodeKind, "patch")
	if apierrors.IsForbidden(err) {
		now.Hint = `let this user get and patch nodes of API group "", with a ClusterRole and a ClusterRoleBinding; the chart's value startupTaint does that`
	}
	if was := t.failure.Swap(now); was == nil || !was.alike(now) {
		t.log.Warn("cannot remove the startup taint: no pods are scheduled to this node", event.TaintKept.Attr(), "node", t.node, "taint", t.Key, "problem", now)
	}
}

// StartupTaintError returns the failure that keeps the agent from removing the taint from
// this node's Node. It returns nil if there is no failure, or no taint to remove.
func (s *Source) StartupTaintError() error {
	if s.taint == nil {
		return nil
	}
	if err := s.taint.failure.Load(); err != nil {
		return err
	}
	if s.taint.missing.Load() {
		return &APIError{
			Server: s.host, Request: "find Node " + s.taint.node, Cause: errors.New("there is no Node of this name"),
			Hint: "give --node-name the name of this node's Node object, in most clusters spec.nodeName of the agent's pod",
		}
	}
	return nil
}
