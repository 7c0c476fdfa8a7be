package agent

import (
	"context"
	"sync/atomic"
	"testing"

	"sluice/cache/bpf"
	"sluice/cache/conntrack"
	"sluice/filter"
	"sluice/filter/policy"
)

// subscriptions counts the subscriptions to what the kernel does that are open.
type subscriptions struct{ connections, denials atomic.Int64 }

// fakeEvents are the events of no connection.
type fakeEvents struct{ of *subscriptions }

func (e fakeEvents) Read(ctx context.Context, _ func(*conntrack.Event)) error {
	<-ctx.Done()
	return nil
}
func (e fakeEvents) Lost() (uint64, error) { return 0, nil }
func (e fakeEvents) Close() error          { e.of.connections.Add(-1); return nil }

// watchedKernel is a fakeKernel that denies nothing.
type watchedKernel struct {
	fakeKernel
	of *subscriptions
}

func (k watchedKernel) Watch(ctx context.Context, _ uint32, begun func(), _ func(*bpf.Event)) error {
	k.of.denials.Add(1)
	defer k.of.denials.Add(-1)
	begun()
	<-ctx.Done()
	return nil
}
func (k watchedKernel) LeftOut() (bpf.LeftOut, error) { return bpf.LeftOut{}, nil }

// The agent subscribes to the kernel's events only as far as annotations ask for them, and ends the
// subscription with the last annotation.
func TestAnnotationsSubscribe(t *testing.T) {
	f := newFixture(t)
	var of subscriptions
	f.kernel = watchedKernel{fakeKernel{f: f}, &of}
	f.host.connections = func() (connectionEvents, error) {
		of.connections.Add(1)
		return fakeEvents{&of}, nil
	}
	f.start()
	before := f.published.Snapshot()
	for _, step := range []struct {
		level                string
		connections, denials int64
	}{{"none", 0, 0}, {"denied", 0, 1}, {"all", 1, 1}, {"denied", 0, 1}, {"unknown", 0, 0}, {"all", 1, 1}, {"", 0, 0}} {
		f.update(func(w *policy.Store) {
			w.SetNamespace("shop", nil)
			s := policy.LogSetting{}
			if step.level != "" {
				s = policy.ReadNamespaceLog("shop", map[string]string{policy.LogAnnotation: step.level})
			}
			w.SetNamespaceLog("shop", s)
		})
		f.until("in force", func() bool {
			return f.published.Snapshot() != before && f.recorded(stepPending)
		})
		f.steps()
		before = f.published.Snapshot()
		if c, d := of.connections.Load(), of.denials.Load(); c != step.connections || d != step.denials {
			t.Errorf("%q: %d subscriptions to connections and %d to denials, want %d and %d", step.level, c, d, step.connections, step.denials)
		}
	}
	if f.opts.Verdicts != filter.LogNone {
		t.Error("the flag asks for verdicts")
	}
}
