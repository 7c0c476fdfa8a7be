package agent

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/cache/bpf"
	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
)

// startSteps are the steps of a start, in order.
var startSteps = []string{stepKernel, stepGuard, stepQueues, stepTakeOver, stepAttach, stepRules, stepLeftovers, stepSweep}

func TestStartInOrder(t *testing.T) {
	f := newFixture(t)
	f.run()
	time.Sleep(20 * time.Millisecond) // so that a step that comes too early is recorded
	if done := f.steps(); done != nil || f.is(enforcing) {
		t.Errorf("steps before the first snapshot: %v", done)
	}
	f.update(func(*policy.Store) {})
	f.await("ready", f.synced)
	if done := f.steps(); !slices.Equal(done, startSteps) {
		t.Errorf("start took the steps %v, want %v", done, startSteps)
	}
	if !f.hasRules() || !f.is(enforcing) {
		t.Errorf("after the start: rules in place %v, enforcing %v", f.hasRules(), f.is(enforcing))
	}
	f.stop()
	if err := f.end(); err != nil {
		t.Error(err)
	}
	if done := f.steps(); !slices.Contains(done, stepDrain) || f.hasRules() {
		t.Errorf("shutdown took the steps %v; rules in place: %v", done, f.hasRules())
	}
}

// An agent that cannot read all policies starts without the missing ones only if no agent's
// rules are in place.
func TestNothingDenied(t *testing.T) {
	f := newFixture(t)
	if !f.nothingDenied(t.Context()) {
		t.Error("without rules, nothing is denied")
	}
	f.start()
	if f.nothingDenied(t.Context()) {
		t.Error("rules are in place, which may deny something")
	}
	f.stop()
	if err := f.end(); err != nil {
		t.Fatal(err)
	}
	if !f.nothingDenied(t.Context()) {
		t.Error("the rules have been removed")
	}
	f.iptables.Break(errors.New("the lock is held"))
	if f.nothingDenied(t.Context()) {
		t.Error("it is not known whether rules are in place")
	}
}

// If a step of the start fails, the agent ends with its error. It takes no later step and
// leaves no rules.
func TestStartFails(t *testing.T) {
	broken := errors.New("it is broken")
	for i, step := range startSteps {
		if step == stepGuard || step == stepLeftovers || step == stepAttach {
			continue // the agent goes on after an error of one of these steps
		}
		t.Run(step, func(t *testing.T) {
			f := newFixture(t)
			fail := broken
			if step == stepKernel {
				fail = bpf.ErrStillAnswering // no other error of this step ends the agent
			}
			f.at(step, func() error { return fail })
			f.run()
			f.update(func(*policy.Store) {})
			if err := f.end(); !errors.Is(err, fail) {
				t.Errorf("ended with %v, want %v", err, fail)
			}
			f.at(step, nil)
			for _, done := range f.steps() {
				if slices.Contains(startSteps[i+1:], done) && done != stepRules && done != stepSweep { // shutdown also writes rules and sweeps
					t.Errorf("step %s was taken after the failure", done)
				}
			}
			if f.hasRules() {
				t.Error("the rules were not removed")
			}
			select {
			case <-f.synced:
				t.Error("the agent reported that it is ready")
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
		t.Errorf("the agent started its queues; steps %v", done)
	}
}

// An agent that is told to end during a step of the start leaves no rules and returns no
// error.
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
				t.Error("the rules were not removed")
			}
		})
	}
}

// addPod is an update that adds a pod, and so changes the endpoint of an address.
func addPod(w *policy.Store) { w.SetPod(kubepod.Read(podAt("a", "10.1.0.5", "192.0.2.1"))) }

// A change passes the stages in order, and each stage begins when the previous one is done.
func TestChangeGoesThroughTheStages(t *testing.T) {
	f := newFixture(t)
	f.start()
	f.steps()
	reader := f.published.NewReader()
	defer reader.Close()
	before := reader.Enter()
	f.update(addPod)
	f.until("published", func() bool { return f.published.Snapshot() != before })
	time.Sleep(20 * time.Millisecond) // so that a stage that comes too early is recorded
	if done := f.steps(); done != nil {
		t.Errorf("steps %v while a worker still decides by the previous snapshot", done)
	}
	reader.Exit()
	f.until("swept", func() bool { return f.recorded(stepSweep) })
	if done, want := f.steps(), []string{stepPending, stepKernel, stepGuard, stepSweep}; !slices.Equal(done, want) {
		t.Errorf("the change caused the steps %v, want %v", done, want)
	}
	var names []string
	for _, s := range f.stages() {
		names = append(names, s.String())
	}
	if got, want := strings.Join(names, ", "), "verdict log, workers, pending packets, kernel cache, guard, rules, connections"; got != want {
		t.Errorf("the stages are %s, want %s", got, want)
	}
}

// If the kernel may still answer by an older snapshot, the agent ends with an error that
// names the stage.
func TestStageFails(t *testing.T) {
	f := newFixture(t)
	f.start()
	f.at(stepKernel, func() error { return bpf.ErrStillAnswering })
	f.update(addPod)
	if err := f.end(); !errors.Is(err, bpf.ErrStillAnswering) || !strings.Contains(err.Error(), "kernel cache") {
		t.Errorf("ended with %v, want an error of the stage kernel cache", err)
	}
	if f.hasRules() {
		t.Error("the rules were not removed")
	}
}

// An agent that has yielded changes neither rules nor connections while its successor lives.
// When the successor has died, the agent enforces again.
func TestYieldAndEnforceAgain(t *testing.T) {
	f := newFixture(t)
	f.start()
	successor, gone := context.WithCancel(t.Context())
	if !f.requestHandover(successor) || f.requestHandover(t.Context()) {
		t.Fatal("the agent must yield to the first request and reject the second")
	}
	f.steps()
	f.update(addPod)
	f.until("guarded", func() bool { return f.recorded(stepGuard) })
	time.Sleep(20 * time.Millisecond) // so that a wrong sweep is recorded
	if done := f.steps(); slices.Contains(done, stepSweep) || slices.Contains(done, stepRules) {
		t.Errorf("steps %v although the agent has yielded", done)
	}
	gone()
	f.until("enforcing again", func() bool { return f.is(enforcing) && f.recorded(stepSweep) })
	if done, want := f.steps(), []string{stepAttach, stepLeftovers, stepSweep}; !slices.Equal(done, want) {
		t.Errorf("enforcing again took the steps %v, want %v", done, want)
	}
}

// denyOwnNode is an update with a pod, and with a policy that denies what the pod sends to its
// node.
func denyOwnNode(w *policy.Store) {
	addPod(w)
	w.SetNode([]netip.Addr{netip.MustParseAddr("192.0.2.1")})
	w.SetPolicy(&policy.Policy{
		Ref: policy.Ref{Kind: "ClusterNetworkPolicy", Name: "p"}, Tier: policy.Admin,
		Subject: policy.Subject{Namespaces: labels.Everything(), Pods: labels.Everything()},
		Rules:   [2][]policy.Rule{filter.Egress: {{Action: policy.Deny}}},
	})
}

// stickRules makes the next writing of rules take until the returned channel is closed.
func (f *fixture) stickRules() (written chan struct{}) {
	written = make(chan struct{})
	f.at(stepRules, func() error {
		f.at(stepRules, nil)
		<-written
		return nil
	})
	return written
}

// If a change needs other rules, the kernel's flow cache and the guard do not wait for iptables,
// which may wait for another program. The sweep does.
func TestOtherStagesDoNotWaitForIPTables(t *testing.T) {
	f := newFixture(t)
	f.start()
	f.steps()
	written := f.stickRules()
	f.update(denyOwnNode)
	f.until("writing the rules", func() bool { return f.recorded(stepRules) })
	if done, want := f.steps(), []string{stepPending, stepKernel, stepGuard, stepRules}; !slices.Equal(done, want) {
		t.Errorf("the change caused the steps %v, want %v", done, want)
	}
	close(written)
	f.until("swept", func() bool { return f.recorded(stepSweep) })
	if !strings.Contains(f.iptables.Dump(), "-j SLUICE-INPUT") {
		t.Error("packets to the node are not judged")
	}
}

// While iptables is stuck, changes of policy take effect, and live connections are judged. Once
// iptables has written the rules, all connections are judged again, and the rules are adapted to
// the changes made meanwhile.
func TestStuckIPTables(t *testing.T) {
	f := newFixture(t)
	f.ruleChanges.wait = 10 * time.Millisecond
	f.start()
	f.steps()
	written := f.stickRules()
	f.update(denyOwnNode)
	f.until("swept without the rules", func() bool { return f.recorded(stepSweep) })
	for _, addr := range []string{"10.1.0.6", "10.1.0.7"} {
		f.steps()
		f.update(func(w *policy.Store) { w.SetPod(kubepod.Read(podAt(addr, addr, "192.0.2.1"))) })
		f.until("in force", func() bool { return f.published.Snapshot().Endpoint(netip.MustParseAddr(addr)) != nil })
		f.until("swept", func() bool { return f.recorded(stepGuard) && f.recorded(stepSweep) })
	}
	before := f.sweptAll.Load()
	close(written)
	f.until("all connections are judged again", func() bool { return f.sweptAll.Load() > before })
	f.until("the rules cover all pods", func() bool {
		rules := f.iptables.Dump()
		return strings.Contains(rules, "-s 10.1.0.5/32") && strings.Contains(rules, "-s 10.1.0.6/32") && strings.Contains(rules, "-s 10.1.0.7/32")
	})
}

// When an agent that has yielded ends, it closes the request of its live successor. It must
// not remove the successor's rules.
func TestYieldedAgentLeavesTheRules(t *testing.T) {
	f := newFixture(t)
	f.start()
	successor, gone := context.WithCancel(t.Context())
	if !f.requestHandover(successor) {
		t.Fatal("the agent does not yield")
	}
	f.steps()
	f.stop()
	gone()
	if err := f.end(); err != nil {
		t.Error(err)
	}
	if done := f.steps(); slices.Contains(done, stepRules) || slices.Contains(done, stepSweep) || !f.hasRules() {
		t.Errorf("shutdown took the steps %v; rules in place: %v", done, f.hasRules())
	}
	if f.requestHandover(t.Context()) {
		t.Error("the agent yields although it has ended")
	}
}

// While iptables writes the rules again, the agent still applies changes of policy and
// answers requests.
func TestNoLockDuringIPTables(t *testing.T) {
	f := newFixture(t)
	f.start()
	successor, gone := context.WithCancel(t.Context())
	if !f.requestHandover(successor) {
		t.Fatal("the agent does not yield")
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
	f.await("writing the rules", writing)
	f.steps()
	f.update(addPod)
	f.until("guarded", func() bool { return f.recorded(stepGuard) })
	if !f.is(resuming) || f.enforces() || f.requestHandover(t.Context()) {
		t.Error("the agent reports that it enforces before the rules are written")
	}
	close(written)
	f.until("swept", func() bool { return f.is(enforcing) && f.recorded(stepSweep) })
	if e := f.published.Snapshot().Endpoint(netip.MustParseAddr("10.1.0.5")); e == nil {
		t.Error("the change is not in force")
	}
}
