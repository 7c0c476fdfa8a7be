package kube

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"sluice/filter/policy"
)

var (
	quietLog  = log.New(io.Discard, "", 0)
	quietSlog = slog.New(slog.DiscardHandler)
)

func podObject(name string) *pod {
	p := &pod{addrs: []string{"10.0.0.1"}}
	p.Namespace, p.Name = "default", name
	return p
}

// drain takes all changes of a queue, and returns them as text.
func drain(q *queue) []string {
	var all []string
	for changes, ok := q.take(false); ok; changes, ok = q.take(false) {
		for _, c := range changes {
			verb := "set "
			if c.object == nil {
				verb = "delete "
			}
			all = append(all, verb+c.kind.resource+" "+c.name.String())
		}
	}
	return all
}

func equal(t *testing.T, got []string, want ...string) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestTable checks the changes that each call of a reflector causes, in sequences that can
// occur.
func TestTable(t *testing.T) {
	q := newQueue(podKind)
	h := newHealth("test", quietSlog)
	table := newTable(podKind, q, h)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(table.Replace([]any{podObject("a"), podObject("b")}, "1"))
	equal(t, drain(q), "set pods default/a", "set pods default/b")
	must(table.Add(podObject("c")))
	must(table.Update(podObject("a")))
	must(table.Delete(podObject("b")))
	must(table.Add(podObject("b"))) // another pod with the same name
	equal(t, drain(q), "set pods default/c", "set pods default/a", "delete pods default/b", "set pods default/b")
	must(table.Delete(cache.DeletedFinalStateUnknown{Key: "default/c", Obj: podObject("c")}))
	equal(t, drain(q), "delete pods default/c")
	must(table.Replace([]any{podObject("b"), podObject("d")}, "9"))
	equal(t, drain(q), "set pods default/b", "set pods default/d", "delete pods default/a")
	must(table.Replace(nil, "10"))
	got := make(map[string]bool)
	for _, text := range drain(q) {
		got[text] = true
	}
	if !maps.Equal(got, map[string]bool{"delete pods default/b": true, "delete pods default/d": true}) {
		t.Errorf("after an empty list: %v", got)
	}
	if len(table.known) != 0 {
		t.Errorf("still known: %v", table.known)
	}
	if err := table.Add("text"); err == nil {
		t.Error("Add accepted a string")
	}
	if err := table.Delete("text"); err == nil {
		t.Error("Delete accepted a string")
	}
	if got := h.list()[1]; got.Events != 5 || got.Objects != 0 || !got.Synced {
		t.Errorf("health: %+v", got)
	}
}

// TestQueueBounds checks that a large number of changes is split into several Updates, and
// that add blocks until there is room or the queue ends.
func TestQueueBounds(t *testing.T) {
	q := newQueue(podKind)
	first := make([]change, 3*maxUpdate)
	q.addFirst(podKind, first)
	if got, ok := q.take(true); !ok || len(got) != len(first) {
		t.Fatalf("the first take returned %d changes, want all %d", len(got), len(first))
	}
	q.add(make([]change, maxUpdate+1)...)
	if got, _ := q.take(false); len(got) != maxUpdate {
		t.Errorf("take returned %d changes, want %d", len(got), maxUpdate)
	}
	if got, _ := q.take(false); len(got) != 1 {
		t.Errorf("the next take returned %d changes, want 1", len(got))
	}
	if _, ok := q.take(false); ok {
		t.Error("take returned changes of an empty queue")
	}

	q.add(make([]change, maxQueued)...)
	var added atomic.Bool
	done := make(chan struct{})
	go func() {
		q.add(change{name: types.NamespacedName{Name: "late"}})
		added.Store(true)
		close(done)
	}()
	// A test cannot observe that a goroutine is blocked, only that its changes have not
	// been added.
	for range 100 {
		runtime.Gosched()
	}
	if added.Load() {
		t.Error("add did not block on a full queue")
	}
	q.take(false)
	<-done
	q.add(make([]change, maxQueued)...)
	ended := make(chan struct{})
	go func() {
		q.add(change{})
		close(ended)
	}()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	q.run(ctx, func(func(*policy.Store)) {})
	select {
	case <-ended:
	case <-time.After(waitTimeout):
		t.Fatal("add still blocks after the end of the queue")
	}
}

// TestLabelSets checks that equal labels share one set, and that a set is forgotten once
// nothing refers to it.
func TestLabelSets(t *testing.T) {
	pools := newPools()
	sets := pools.labels
	a := pools.labelsOf(map[string]string{"app": "web", "tier": "front"})
	b := pools.labelsOf(map[string]string{"tier": "front", "app": "web"})
	if a != b {
		t.Error("equal labels have two sets")
	}
	others := []*labelSet{
		pools.labelsOf(map[string]string{"app": "web"}),
		pools.labelsOf(map[string]string{"app": "webtier", "front": ""}),
		pools.labelsOf(map[string]string{"app": "", "web": "", "tier": "front"}),
	}
	for i, o := range others {
		if o == a {
			t.Errorf("different labels have the same set: %v", others[i].of())
		}
	}
	if pools.labelsOf(nil) != nil || (*labelSet)(nil).of() != nil {
		t.Error("empty labels have a set")
	}
	want := map[string]string{"app": "web", "tier": "front"}
	if !maps.Equal(a.of(), want) {
		t.Errorf("labels: %v, want %v", a.of(), want)
	}
	if sets.size() != 4 {
		t.Errorf("%d sets, want 4", sets.size())
	}
	runtime.KeepAlive(b)
	deadline := time.Now().Add(waitTimeout)
	for sets.size() != 3 {
		runtime.GC() // cleanups run at any time
		if time.Now().After(deadline) {
			t.Fatalf("%d sets, want 3: an unused set is still known", sets.size())
		}
	}
	runtime.KeepAlive(others)
	if a := pools.labelsOf(want); !maps.Equal(a.of(), want) {
		t.Errorf("labels that are used again: %v", a.of())
	}
}
