package watch_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/event"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
	"sluice/watch"
	"sluice/watch/manifests"
)

var _ watch.Source = manifests.Source{}

// waitTimeout bounds each wait of these tests.
const waitTimeout = 2 * time.Minute

// feed is a source that passes on the updates that a test sends to it.
type feed chan watch.Update

func (feed) String() string { return "a feed" }

func (f feed) Run(ctx context.Context, update func(watch.Update)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case u, ok := <-f:
			if !ok {
				return errors.New("the feed broke")
			}
			update(u)
		}
	}
}

type published struct {
	snapshot *policy.Snapshot
	changes  policy.Changes
}

// run runs a Controller. It returns the Controller, a channel of its publications, and a
// channel for the result of its Run.
func run(t *testing.T, pub *policy.Published, logger *slog.Logger, sources ...watch.Source) (*watch.Controller, chan published, chan error) {
	t.Helper()
	return runWithStore(t, policy.NewStore(), pub, logger, sources...)
}

// runWithStore is like run, but uses the given store.
func runWithStore(t *testing.T, store *policy.Store, pub *policy.Published, logger *slog.Logger, sources ...watch.Source) (*watch.Controller, chan published, chan error) {
	t.Helper()
	return runWith(t, store, pub, logger, func(*watch.Controller) {}, sources...)
}

// runWith is like runWithStore, but calls change with the Controller before the Controller
// runs.
func runWith(t *testing.T, store *policy.Store, pub *policy.Published, logger *slog.Logger, change func(*watch.Controller), sources ...watch.Source) (*watch.Controller, chan published, chan error) {
	t.Helper()
	calls := make(chan published)
	ctx, stop := context.WithCancel(t.Context())
	c := watch.New(store, pub, watch.Options{
		Logger: logger,
		Stages: []watch.Stage{watch.Workers{Published: pub}, watch.StageFunc{Name: "test", Func: func(ctx context.Context, c watch.Change) error {
			select {
			case calls <- published{c.Snapshot, c.Addresses}:
			case <-ctx.Done():
			}
			return nil
		}}},
	})
	change(c)
	ended := make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ended <- c.Run(ctx, sources...)
	}()
	t.Cleanup(func() { stop(); <-done })
	return c, calls, ended
}

func await[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(waitTimeout):
		t.Fatal("timed out")
		panic("unreachable")
	}
}

func pod(name, ip string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Status:     corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: ip}}},
	}
}

func TestControllerPublishesEachChange(t *testing.T) {
	var pub policy.Published
	in := make(feed)
	c, calls, ended := run(t, &pub, nil, in)
	in <- func(w *policy.Store) { w.SetPod(kubepod.Read(pod("a", "10.0.0.1"))) }
	first := await(t, calls)
	if pub.Snapshot() != first.snapshot || first.snapshot.Counts().Pods != 1 {
		t.Errorf("first publish: %+v", first.snapshot.Counts())
	}
	await(t, c.Ready())
	in <- func(w *policy.Store) { w.SetPod(kubepod.Read(pod("b", "10.0.0.2"))) }
	second := await(t, calls)
	if len(second.changes) != 1 || second.changes[0] != netip.MustParseAddr("10.0.0.2") {
		t.Errorf("changes %v, want only the address of b", second.changes)
	}
	close(in)
	if err := await(t, ended); err == nil || !strings.Contains(err.Error(), "the feed broke") {
		t.Errorf("ended with %v, want the source's error", err)
	}
}

func TestControllerEndsWithItsContext(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := watch.New(policy.NewStore(), new(policy.Published), watch.Options{}).Run(ctx, make(feed)); err != nil {
		t.Error(err)
	}
}

// Nothing is published before every source has delivered its state, because a part of the state
// could allow what the rest denies.
func TestControllerWaitsForEverySource(t *testing.T) {
	var pub policy.Published
	one, two := make(feed), make(feed)
	_, calls, _ := run(t, &pub, nil, one, two)
	one <- func(w *policy.Store) { w.SetPod(kubepod.Read(pod("a", "10.0.0.1"))) }
	one <- func(w *policy.Store) { w.SetPod(kubepod.Read(pod("b", "10.0.0.2"))) } // this send returns only after the Controller has received the first update
	select {
	case p := <-calls:
		t.Fatalf("published %+v without the second source", p.snapshot.Counts())
	default:
	}
	two <- func(*policy.Store) {}
	if p := await(t, calls); p.snapshot.Counts().Pods != 2 {
		t.Errorf("first publish: %+v", p.snapshot.Counts())
	}
}

// Updates that arrive while a snapshot is being published are published together.
func TestControllerBatches(t *testing.T) {
	var pub policy.Published
	in := make(feed)
	_, calls, _ := run(t, &pub, nil, in)
	in <- func(*policy.Store) {}
	await(t, calls)
	const updates = 50
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range updates {
			in <- func(w *policy.Store) {
				w.SetPod(kubepod.Read(pod("p"+string(rune('A'+i)), netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}).String())))
			}
		}
	}()
	publishes, pods := 0, 0
	for pods < updates {
		publishes++
		pods = await(t, calls).snapshot.Counts().Pods
	}
	<-done
	if publishes > updates/2 {
		t.Errorf("%d publishes for %d updates", publishes, updates)
	}
}

// Later stages run only when no worker uses an older snapshot.
func TestControllerSynchronizesBeforeLaterStages(t *testing.T) {
	var pub policy.Published
	reader := pub.NewReader()
	defer reader.Close()
	in := make(feed)
	_, calls, _ := run(t, &pub, nil, in)
	in <- func(*policy.Store) {}
	old := await(t, calls).snapshot

	if got := reader.Enter(); got != old {
		t.Fatal("the reader does not see what was published")
	}
	in <- func(w *policy.Store) { w.SetPod(kubepod.Read(pod("a", "10.0.0.1"))) }
	for pub.Snapshot() == old { // wait for the publication
		time.Sleep(time.Millisecond)
	}
	select {
	case <-calls:
		t.Fatal("a later stage ran while a reader used the old snapshot")
	case <-time.After(20 * time.Millisecond): // long enough for a premature call to show
	}
	reader.Exit()
	await(t, calls)
}

// A stuck worker does not delay a new policy for the other workers. When the worker continues,
// the change is applied again, to correct the effects of the worker's old snapshot.
func TestControllerAppliesUnsettledChangesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pub policy.Published
		reader := pub.NewReader()
		defer reader.Close()
		in := make(feed)
		_, calls, _ := run(t, &pub, nil, in)
		in <- func(*policy.Store) {}
		await(t, calls)
		reader.Enter()
		in <- func(w *policy.Store) { w.SetPod(kubepod.Read(pod("a", "10.0.0.1"))) }
		// The Controller applies the change although the worker is stuck, and applies it once
		// more while the worker is still stuck.
		for range 2 {
			if p := await(t, calls); len(p.changes) != 1 {
				t.Fatalf("changes %v, want the address of a", p.changes)
			}
		}
		reader.Exit()
		if p := await(t, calls); len(p.changes) != 1 || p.changes[0] != netip.MustParseAddr("10.0.0.1") {
			t.Errorf("changes %v, want the address of a again", p.changes)
		}
		select {
		case p := <-calls:
			t.Errorf("applied once more: %v", p.changes)
		case <-time.After(time.Minute):
		}
	})
}

// Policies whose order the API leaves open are a problem, which is logged once.
func TestControllerReportsEqualPriorities(t *testing.T) {
	var pub policy.Published
	var log bytes.Buffer
	in := make(feed)
	c, calls, ended := run(t, &pub, slog.New(slog.NewTextHandler(&log, nil)), in)
	in <- func(w *policy.Store) {
		w.SetPod(kubepod.Read(pod("a", "10.0.0.1")))
		for name, action := range map[string]policy.Action{"one": policy.Accept, "two": policy.Deny} {
			w.SetPolicy(&policy.Policy{
				Ref: policy.Ref{Kind: "ClusterNetworkPolicy", Name: name}, Tier: policy.Admin,
				Subject: policy.Subject{Namespaces: labels.Everything(), Pods: labels.Everything()},
				Rules:   [2][]policy.Rule{{{Action: action}}},
			})
		}
	}
	await(t, calls)
	in <- func(w *policy.Store) { w.SetPod(kubepod.Read(pod("b", "10.0.0.2"))) }
	await(t, calls)
	if p := c.Problems(); len(p) != 1 || p[0].Policy.Name != "two" || p[0].Field != "spec.priority" {
		t.Errorf("problems %v, want one of two", p)
	}
	close(in)
	await(t, ended)
	if got := strings.Count(log.String(), "policies of equal priority decide in the order of their names"); got != 1 {
		t.Errorf("logged %d times:\n%s", got, &log)
	}
}

func TestControllerLogsEachProblemOnce(t *testing.T) {
	var pub policy.Published
	var log bytes.Buffer
	in := make(feed)
	c, calls, ended := run(t, &pub, slog.New(slog.NewTextHandler(&log, nil)), in)
	if p := c.Problems(); p != nil {
		t.Errorf("problems %v before anything is known", p)
	}
	in <- func(w *policy.Store) {
		w.SetPolicy(netpol.Read(&networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "bad"},
			Spec: networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: "10.0.0.01/8"}}},
			}}},
		}))
	}
	await(t, calls)
	in <- func(w *policy.Store) { w.SetPod(kubepod.Read(pod("a", "10.0.0.1"))) }
	await(t, calls)
	if p := c.Problems(); len(p) != 1 || p[0].Policy.String() != "default/bad" {
		t.Errorf("problems %v, want one of default/bad", p)
	}
	in <- func(w *policy.Store) { w.DeletePolicy(netpol.Ref("default", "bad")) }
	await(t, calls)
	if p := c.Problems(); len(p) != 0 {
		t.Errorf("problems %v of a policy that is gone", p)
	}
	close(in)
	await(t, ended)
	if n := strings.Count(log.String(), "ipBlock.cidr"); n != 1 {
		t.Errorf("the problem was logged %d times:\n%s", n, log.String())
	}
}

// The policy in a manifest comes into force when its file is saved, and ends when the file is
// deleted.
func TestControllerFollowsManifests(t *testing.T) {
	dir := t.TempDir()
	save := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	save("pods.yaml", `
{apiVersion: v1, kind: Pod, metadata: {name: a}, status: {podIPs: [{ip: 10.0.0.1}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b}, status: {podIPs: [{ip: 10.0.0.2}]}}
`)
	var pub policy.Published
	_, calls, _ := run(t, &pub, nil, manifests.Source{Dirs: []string{dir}})
	key := filter.NewKey(netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), filter.TCP, 80)
	if v := await(t, calls).snapshot.Decide(key); v.Action != filter.Allow {
		t.Errorf("without a policy: %v", v.Reason)
	}
	save("deny.yaml", "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny}, spec: {podSelector: {}}}")
	if v := await(t, calls).snapshot.Decide(key); v.Action != filter.Deny {
		t.Errorf("with a policy that denies: %v", v.Reason)
	}
	if err := os.Remove(filepath.Join(dir, "deny.yaml")); err != nil {
		t.Fatal(err)
	}
	if v := await(t, calls).snapshot.Decide(key); v.Action != filter.Allow {
		t.Errorf("with the policy deleted: %v", v.Reason)
	}
}

// Two live pods with the same address are reported while both have it, and logged once.
func TestControllerReportsClashes(t *testing.T) {
	var pub policy.Published
	var log bytes.Buffer
	updates := make(feed)
	c, calls, _ := run(t, &pub, slog.New(slog.NewTextHandler(&log, nil)), updates)
	set := func(u watch.Update) {
		updates <- u
		await(t, calls)
	}
	set(func(w *policy.Store) {
		w.SetPod(kubepod.Read(pod("a", "10.0.0.1")))
		w.SetPod(kubepod.Read(pod("b", "10.0.0.1")))
	})
	set(func(w *policy.Store) { w.SetPod(kubepod.Read(pod("c", "10.0.0.2"))) })
	if clashes := c.Clashes(); len(clashes) != 1 || clashes[0].Addr.String() != "10.0.0.1" {
		t.Errorf("clashes %v", clashes)
	}
	set(func(w *policy.Store) { w.DeletePod("default", "a") })
	if clashes := c.Clashes(); len(clashes) != 0 {
		t.Errorf("clashes after one of the pods is gone: %v", clashes)
	}
	if n := strings.Count(log.String(), event.AddressShared.Attr().String()); n != 1 {
		t.Errorf("the clash was logged %d times:\n%s", n, &log)
	}
}
