package watch_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/watch"
)

// No change after the first is published until stages are attached. Then the stages apply each
// later change one after the other, and a failed stage ends Run.
func TestStagesAreAttachedAfterTheFirstChange(t *testing.T) {
	synctest.Test(t, stagesAreAttachedAfterTheFirstChange)
}

func stagesAreAttachedAfterTheFirstChange(t *testing.T) {
	in := make(feed)
	var pub policy.Published
	c := watch.New(policy.NewStore(), &pub, watch.Options{})
	applied := make(chan string, 10)
	stage := func(name string, err error) watch.Stage {
		return watch.StageFunc{Name: name, Func: func(_ context.Context, c watch.Change) error {
			if c.Unsettled {
				name += " unsettled"
			}
			applied <- name
			return err
		}}
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Run(t.Context(), in) }()
	in <- func(*policy.Store) {}
	first := await(t, c.First())
	in <- func(s *policy.Store) { s.SetPod(kubepod.Read(pod("a", "10.0.0.1"))) }
	synctest.Wait() // until Run has nothing more to do
	if pub.Snapshot() != first.Snapshot {
		t.Fatal("it publishes a change before the stages are attached")
	}
	c.Attach(stage("one", watch.ErrUnsettled), stage("two", nil), stage("three", errors.New("it is broken")), stage("four", nil))
	for _, want := range []string{"one", "two unsettled", "three unsettled"} {
		if got := await(t, applied); got != want {
			t.Errorf("applied to %s, want %s", got, want)
		}
	}
	if err := await(t, ended); err == nil || !strings.Contains(err.Error(), "three") || !strings.Contains(err.Error(), "it is broken") {
		t.Errorf("ended with %v, want the error of stage three", err)
	}
	if first.Snapshot == nil || len(applied) > 0 {
		t.Errorf("first %v, and %d stages after the failure", first.Snapshot, len(applied))
	}
}
