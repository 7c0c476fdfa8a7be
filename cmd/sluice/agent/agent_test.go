package agent

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"sluice/cache/bpf"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
)

// startSteps are the steps of a start, in order.
var startSteps = []string{stepKernel, stepGuard, stepQueues, stepTakeOver, stepAttach, stepRules, stepLeftovers, stepSweep}

func TestStartInOrder(t *testing.T) {
	f := newFixture(t)
	f.run()
	time.Sleep(20 * time.Millisecond) // long enough for a wrong start to show
	if done := f.steps(); done != nil || f.is(enforcing) {
		t.Errorf("before the first snapshot: %v", done)
	}
	f.update(func(*policy.Store) {})
	f.await("ready", f.synced)
	if done := f.steps(); !slices.Equal(done, startSteps) {
		t.Errorf("started by %v, want %v", done, startSteps)
	}
	if !f.hasRules() || !f.is(enforcing) {
		t.Errorf("rules %v, enforcing %v", f.hasRules(), f.is(enforcing))
	}
	f.stop()
	if err := f.end(); err != nil {
		t.Error(err)
	}
	if done := f.steps(); !slices.Contains(done, stepDrain) || f.hasRules() {
		t.Errorf("ended by %v, rules %v", done, f.hasRules())
	}
}

// The error of a step ends the agent. No later step is taken, and no rule stays.
func TestStartFails(t *testing.T) {
	broken := errors.New("it is broken")
	for i, step := range startSteps {
		if step == stepGuard || step == stepLeftovers || step == stepAttach {
			continue // the agent goes on without these
		}
		t.Run(step, func(t *testing.T) {
			f := newFixture(t)
			fail := broken
			if step == stepKernel {
				fail = bpf.ErrStillAnswering // with others it goes on
			}
			f.at(step, func() error { return fail })
			f.run()
			f.update(func(*policy.Store) {})
			if err := f.end(); !errors.Is(err, fail) {
				t.Errorf("ended with %v, want %v", err, fail)
			}
			f.at(step, nil)
			for _, done := range f.steps() {
				if slices.Contains(startSteps[i+1:], done) && done != stepRules && done != stepSweep { // both are also of the end
					t.Errorf("%s after the failure", done)
				}
			}
			if f.hasRules() {
				t.Error("rules stay")
			}
			select {
			case <-f.synced:
				t.Error("it was ready")
			default:
			}
		})
	}
}

func TestStartFailsWithTheSource(t *testing.T) {
	f := newFixture(t)
	f.run()
	f.update(nil)
	if err := f.end(); !errors.Is(err, errFeed) {
		t.Errorf("ended with %v, want the source's error", err)
	}
	if done := f.steps(); slices.Contains(done, stepQueues) {
		t.Errorf("started by %v", done)
	}
}

// An agent that is told to end during a step of the start leaves no rules, and it is not a
// failure.
func TestEndDuringTheStart(t *testing.T) {
	for _, step := range startSteps {
		t.Run(step, func(t *testing.T) {
			f := newFixture(t)
			f.at(step, func() error {
				f.at(step, nil)
				f.stop()
				return nil
			})
			f.run()
			f.update(func(*policy.Store) {})
			if err := f.end(); err != nil {
				t.Error(err)
			}
			if f.hasRules() {
				t.Error("rules stay")
			}
		})
	}
}

// addPod adds a pod, so that a change concerns an address.
func addPod(w *policy.Store) { w.SetPod(kubepod.Read(podAt("a", "10.1.0.5", "192.0.2.1"))) }

// A change goes through the stages in order, and the next stage waits for the one before.
func TestChangeGoesThroughTheStages(t *testing.T) {
	f := newFixture(t)
	f.start()
	f.steps()
	reader := f.published.NewReader()
	defer reader.Close()
	before := reader.Enter()
	f.update(addPod)
	f.until("published", func() bool { return f.published.Snapshot() != before })
	time.Sleep(20 * time.Millisecond) // long enough for a wrong stage to show
	if done := f.steps(); done != nil {
		t.Errorf("%v while a worker decides by the snapshot before", done)
	}
	reader.Exit()
	f.until("swept", func() bool { return f.recorded(stepSweep) })
	if done, want := f.steps(), []string{stepPending, stepKernel, stepGuard, stepSweep}; !slices.Equal(done, want) {
		t.Errorf("applied by %v, want %v", done, want)
	}
	var names []string
	for _, s := range f.stages() {
		names = append(names, s.String())
	}
	if got, want := strings.Join(names, ", "), "workers, pending packets, kernel cache, guard, connections"; got != want {
		t.Errorf("stages %s, want %s", got, want)
	}
}

// A kernel that might answer by an older snapshot ends the agent, with the stage's name.
func TestStageFails(t *testing.T) {
	f := newFixture(t)
	f.start()
	f.at(stepKernel, func() error { return bpf.ErrStillAnswering })
	f.update(addPod)
	if err := f.end(); !errors.Is(err, bpf.ErrStillAnswering) || !strings.Contains(err.Error(), "kernel cache") {
		t.Errorf("ended with %v", err)
	}
	if f.hasRules() {
		t.Error("rules stay")
	}
}

// An agent that has yielded leaves rules and connections alone, until its successor is
// gone.
func TestYieldAndEnforceAgain(t *testing.T) {
	f := newFixture(t)
	f.start()
	successor, gone := context.WithCancel(t.Context())
	if !f.requestHandover(successor) || f.requestHandover(t.Context()) {
		t.Fatal("it must yield, and to one agent alone")
	}
	f.steps()
	f.update(addPod)
	f.until("guarded", func() bool { return f.recorded(stepGuard) })
	time.Sleep(20 * time.Millisecond) // long enough for a wrong sweep to show
	if done := f.steps(); slices.Contains(done, stepSweep) || slices.Contains(done, stepRules) {
		t.Errorf("%v after it has yielded", done)
	}
	gone()
	f.until("enforcing again", func() bool { return f.is(enforcing) && f.recorded(stepSweep) })
	if done, want := f.steps(), []string{stepAttach, stepLeftovers, stepSweep}; !slices.Equal(done, want) {
		t.Errorf("enforces again by %v, want %v", done, want)
	}
}

// An agent that has yielded and ends breaks off the request of its successor, which is
// still there. The successor's rules must stay.
func TestYieldedAgentLeavesTheRules(t *testing.T) {
	f := newFixture(t)
	f.start()
	successor, gone := context.WithCancel(t.Context())
	if !f.requestHandover(successor) {
		t.Fatal("it does not yield")
	}
	f.steps()
	f.stop()
	gone()
	if err := f.end(); err != nil {
		t.Error(err)
	}
	if done := f.steps(); slices.Contains(done, stepRules) || slices.Contains(done, stepSweep) || !f.hasRules() {
		t.Errorf("%v at the end, rules %v", done, f.hasRules())
	}
	if f.requestHandover(t.Context()) {
		t.Error("it yields although it has ended")
	}
}

// While the rules are written again, changes of policy and questions go on.
func TestNoLockDuringIPTables(t *testing.T) {
	f := newFixture(t)
	f.start()
	successor, gone := context.WithCancel(t.Context())
	if !f.requestHandover(successor) {
		t.Fatal("it does not yield")
	}
	if err := f.iptables.Restore(t.Context(), "*mangle\n-F SLUICE\nCOMMIT\n"); err != nil {
		t.Fatal(err)
	}
	writing, written := make(chan struct{}), make(chan struct{})
	f.at(stepRules, func() error {
		f.at(stepRules, nil)
		close(writing)
		<-written
		return nil
	})
	gone()
	f.await("writing", writing)
	f.steps()
	f.update(addPod)
	f.until("guarded", func() bool { return f.recorded(stepGuard) })
	if !f.is(resuming) || f.enforces() || f.requestHandover(t.Context()) {
		t.Error("it says that it enforces")
	}
	close(written)
	f.until("swept", func() bool { return f.is(enforcing) && f.recorded(stepSweep) })
	if e := f.published.Snapshot().Endpoint(netip.MustParseAddr("10.1.0.5")); e == nil {
		t.Error("the change is not in force")
	}
}
