package kube

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/bench/testbed/apiserver"
	"sluice/filter/event"
)

const taintKeyOfTest = "sluice.dev/agent-not-ready"

var (
	startup = corev1.Taint{Key: taintKeyOfTest, Effect: corev1.TaintEffectNoSchedule}
	evict   = corev1.Taint{Key: taintKeyOfTest, Value: "true", Effect: corev1.TaintEffectNoExecute}
	added   = metav1.NewTime(time.Unix(1700000000, 0))
	others  = []corev1.Taint{
		{Key: "node.kubernetes.io/unreachable", Effect: corev1.TaintEffectNoExecute, TimeAdded: &added},
		{Key: "example.com/" + "sluice.dev", Value: "agent-not-ready", Effect: corev1.TaintEffectNoSchedule},
		{Key: "dedicated", Value: "db", Effect: corev1.TaintEffectNoSchedule},
	}
)

// tainted returns a Node with the given taints or lists of taints.
func tainted(name string, taints ...any) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, t := range taints {
		switch t := t.(type) {
		case corev1.Taint:
			n.Spec.Taints = append(n.Spec.Taints, t)
		case []corev1.Taint:
			n.Spec.Taints = append(n.Spec.Taints, t...)
		}
	}
	return n
}

// taintFixture is a running source that removes the taint from the Node "here" once the
// agent is ready.
type taintFixture struct {
	*followed
	api   *apiserver.Server
	ready atomic.Bool
	calls atomic.Int64 // number of calls of Ready
}

func followTaint(t *testing.T, opts apiserver.Options, nodes ...apiserver.Object) *taintFixture {
	t.Helper()
	s := new(taintFixture)
	api, config := serve(t, opts)
	s.api = api
	small(api)
	api.Set(nodes...)
	s.followed = follow(t, config, Options{NodeName: "here", StartupTaint: &StartupTaint{Key: taintKeyOfTest, Ready: func() bool {
		s.calls.Add(1)
		return s.ready.Load()
	}}})
	return s
}

// await waits until ok returns true.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(waitTimeout); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, waitTimeout)
		}
	}
}

// awaitTaints waits until the Node has exactly these taints.
func (s *taintFixture) awaitTaints(name string, want ...corev1.Taint) {
	s.t.Helper()
	await(s.t, fmt.Sprintf("Node %s has the taints %v", name, want), func() bool {
		got := s.api.Get(tainted(name)).(*corev1.Node).Spec.Taints
		return slices.EqualFunc(got, want, func(a, b corev1.Taint) bool {
			return a.MatchTaint(&b) && a.Value == b.Value && a.TimeAdded.Equal(b.TimeAdded)
		})
	})
}

// TestStartupTaint checks that the taint stays until the agent is ready. From then on, it is
// removed each time that it is set, whatever its effect and its index. Other taints and
// other Nodes do not change.
func TestStartupTaint(t *testing.T) {
	s := followTaint(t, apiserver.Options{}, tainted("here", others[0], startup, others[1:], evict), tainted("there", startup))
	await(t, "Ready is called", func() bool { return s.calls.Load() > 2 })
	s.awaitTaints("here", others[0], startup, others[1], others[2], evict)
	s.ready.Store(true)
	s.awaitTaints("here", others...)
	await(t, "the removal is logged, once", func() bool { return s.log.count(event.TaintRemoved) == 1 })

	s.api.Set(tainted("here", startup))
	s.awaitTaints("here")
	s.ready.Store(false)
	s.api.Set(tainted("here", evict, others))
	calls := s.calls.Load()
	await(t, "Ready is called again", func() bool { return s.calls.Load() > calls+2 })
	s.awaitTaints("here", append([]corev1.Taint{evict}, others...)...)
	s.ready.Store(true)
	s.awaitTaints("here", others...)
	s.awaitTaints("there", startup)
	if err := s.source.StartupTaintError(); err != nil {
		t.Error(err)
	}
}

// TestStartupTaintMeanwhile checks that only the startup taint is removed from a Node that
// changes between the reading and the patch.
func TestStartupTaintMeanwhile(t *testing.T) {
	var patches atomic.Int64
	var answers switchable
	s := followTaint(t, apiserver.Options{Refuse: answers.answer}, tainted("here", startup))
	answers.set(func(req *http.Request) *metav1.Status {
		if req.Method != http.MethodPatch {
			return nil
		}
		if n := patches.Add(1); n <= 2 {
			s.api.Set(tainted("here", others[:n], startup)) // each call moves the taint by one index
		}
		return nil
	})
	s.ready.Store(true)
	s.awaitTaints("here", others[:2]...)
	if n := patches.Load(); n != 3 {
		t.Errorf("%d patches, want 3", n)
	}
	if n := s.log.count(event.TaintKept); n != 0 {
		t.Errorf("a concurrent change of the Node was logged as a failure, %d times", n)
	}
}

// TestStartupTaintRefused checks that a missing right to patch Nodes is logged once, with a
// hint that names it, and that the taint is removed once the right is granted.
func TestStartupTaintRefused(t *testing.T) {
	var answers switchable
	tries := new(atomic.Int64)
	answers.set(func(req *http.Request) *metav1.Status {
		if req.Method != http.MethodPatch {
			return nil
		}
		tries.Add(1)
		return &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden, Message: "nodes is forbidden"}
	})
	s := followTaint(t, apiserver.Options{Refuse: answers.answer}, tainted("here", startup))
	s.ready.Store(true)
	await(t, "the patch is retried", func() bool { return tries.Load() >= 3 })
	err := s.source.StartupTaintError()
	if err == nil || !strings.Contains(err.Error(), "get and patch nodes") || !strings.Contains(err.Error(), "patch nodes at") {
		t.Errorf("the reported error is %v", err)
	}
	if n := s.log.count(event.TaintKept); n != 1 {
		t.Errorf("the failure was logged %d times, want once", n)
	}
	s.awaitTaints("here", startup)
	answers.set(nil)
	s.awaitTaints("here")
	await(t, "the failure is over", func() bool { return s.source.StartupTaintError() == nil })
}

// TestStartupTaintWithoutNode checks that the agent reports an error while its Node does
// not exist, for example because the agent has a wrong name for it.
func TestStartupTaintWithoutNode(t *testing.T) {
	s := followTaint(t, apiserver.Options{}, tainted("there", startup))
	await(t, "the missing Node is reported", func() bool {
		err := s.source.StartupTaintError()
		return err != nil && strings.Contains(err.Error(), "find Node here") && strings.Contains(err.Error(), "--node-name")
	})
	s.ready.Store(true)
	s.api.Set(tainted("here", startup))
	s.awaitTaints("here")
	await(t, "the error is gone", func() bool { return s.source.StartupTaintError() == nil })
	s.api.Delete(tainted("here"))
	await(t, "the missing Node is reported again", func() bool { return s.source.StartupTaintError() != nil })
}
