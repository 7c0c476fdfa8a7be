package policy_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// history is one store and all that happened to it, beside the cluster that
// should be the same.
type history struct {
	chance
	world   *policy.Store
	cluster *cluster
	log     []string // events, oldest first
	probes  []flow
	before  *policy.Snapshot
	// seen is the verdict about each probe, by the epochs of its ends when it was
	// given: what a cache would answer for ever.
	seen    []map[[2]uint64]remembered
	changed uint64 // verdicts that a commit changed
	failure string

	drafts   bool // the world uses drafts, of which versions may not be in force yet
	out      *policy.Draft
	versions map[[2]string][]*networkingv1.NetworkPolicy // that each policy has had, nil where it was deleted
	reached  map[[2]string]int                           // which of these are in force; those before never are again
	overdue  int                                         // commits at which some version was not in force
	late     map[string]bool                             // namespaces of which some version was not at the last commit
	started  map[podAddress]start                        // addresses that are held for pods until these are known
	deferred int                                         // addresses that were not known yet at commits
}

type remembered struct {
	action filter.Action
	number uint64 // of the snapshot
}

func newHistory(seed uint64) *history {
	h := &history{chance: newChance(seed), world: policy.NewStore(), cluster: &cluster{}}
	h.world.SetLocalNode(localNode)
	h.cluster.shape = int(seed % policy.Shapes)
	h.world.SetShape(h.cluster.shape)
	if h.drafts = seed%3 != 0; h.drafts {
		h.world.UseDrafts()
		h.world.SetLarge(oneOf(h.chance, 0, 60, 120))
	}
	h.versions, h.reached = map[[2]string][]*networkingv1.NetworkPolicy{}, map[[2]string]int{}
	h.started = map[podAddress]start{}
	nobody := &cluster{Pods: []*corev1.Pod{{}}}
	for len(h.probes) < 120 {
		h.probes = append(h.probes, h.flow(nobody))
	}
	h.seen = make([]map[[2]uint64]remembered, len(h.probes))
	for i := range h.seen {
		h.seen[i] = map[[2]uint64]remembered{}
	}
	h.before, _ = h.world.Commit()
	return h
}

// note logs an event.
func (h *history) note(format string, args ...any) {
	h.log = append(h.log, fmt.Sprintf(format, args...))
}

// named returns the index of the object with this name, or -1.
func named[T metav1.Object](list []T, namespace, name string) int {
	return slices.IndexFunc(list, func(o T) bool { return o.GetNamespace() == namespace && o.GetName() == name })
}

// set replaces the object of this name, or adds it.
func set[T metav1.Object](list []T, o T) []T {
	list = slices.Clone(list)
	if i := named(list, o.GetNamespace(), o.GetName()); i >= 0 {
		list[i] = o
		return list
	}
	return append(list, o)
}

// remove takes the object of this name away, if it is there.
func remove[T metav1.Object](list []T, namespace, name string) []T {
	return slices.DeleteFunc(slices.Clone(list), func(o T) bool { return o.GetNamespace() == namespace && o.GetName() == name })
}

func (h *history) setPod(o *corev1.Pod) {
	h.note("set pod %s/%s labels=%v ip=%s ips=%v phase=%s hostNetwork=%t node=%s created=%d", o.Namespace, o.Name, o.Labels,
		o.Status.PodIP, o.Status.PodIPs, o.Status.Phase, o.Spec.HostNetwork, o.Spec.NodeName, o.CreationTimestamp.Unix())
	h.starts(o)
	h.world.SetPod(kubepod.Read(o))
	h.cluster.Pods = set(h.cluster.Pods, o)
}

func (h *history) deletePod(namespace, name string) {
	h.note("delete pod %s/%s", namespace, name)
	h.endStarts(namespace, name)
	h.world.DeletePod(namespace, name)
	h.cluster.Pods = remove(h.cluster.Pods, namespace, name)
}

func (h *history) setNamespace(o *corev1.Namespace) {
	h.note("set namespace %s labels=%v", o.Name, o.Labels)
	h.world.SetNamespace(o.Name, o.Labels)
	h.cluster.Namespaces = set(h.cluster.Namespaces, o)
}

func (h *history) deleteNamespace(name string) {
	h.note("delete namespace %s", name)
	h.world.DeleteNamespace(name)
	h.cluster.Namespaces = remove(h.cluster.Namespaces, "", name)
}

func (h *history) setPolicy(o *networkingv1.NetworkPolicy) {
	h.note("set policy %s/%s", o.Namespace, o.Name)
	h.world.SetPolicy(netpol.Read(o))
	h.cluster.Policies = set(h.cluster.Policies, o)
	h.version(o.Namespace, o.Name, o)
}

func (h *history) deletePolicy(namespace, name string) {
	h.note("delete policy %s/%s", namespace, name)
	h.world.DeletePolicy(netpol.Ref(namespace, name))
	h.cluster.Policies = remove(h.cluster.Policies, namespace, name)
	h.version(namespace, name, nil)
	h.reached[[2]string{namespace, name}] = len(h.versions[[2]string{namespace, name}]) - 1 // nothing comes back
}

func (h *history) setRanges(ranges []netip.Prefix) {
	h.note("set ranges %v", ranges)
	h.world.SetPodRanges(ranges)
	h.cluster.Ranges = ranges
	h.rangesChanged()
}

func (h *history) setNode(addrs []netip.Addr) {
	h.note("set node %v", addrs)
	h.world.SetNode(addrs)
	h.cluster.Node = addrs
}

// step is one event, or a few that belong together.
func (h *history) step() {
	name := fmt.Sprintf("p%d", h.IntN(10))
	switch h.IntN(26) {
	case 0, 1, 2, 3: // perhaps a new pod, perhaps other labels, addresses or ports
		h.setPod(h.pod(name))
	case 4:
		h.deletePod(oneOf(h.chance, namespaceNames...), name)
	case 5, 6:
		h.relabelPod()
	case 7:
		h.moveAddress()
	case 8:
		h.reuseName()
	case 9:
		h.loseStatus()
	case 10, 11:
		h.setNamespace(h.namespace(oneOf(h.chance, namespaceNames[:3]...)))
	case 12:
		h.deleteNamespace(oneOf(h.chance, namespaceNames...))
	case 13, 14, 15, 16:
		h.setPolicy(h.policy(fmt.Sprintf("n%d", h.IntN(4))))
	case 17:
		h.deletePolicy(oneOf(h.chance, namespaceNames...), fmt.Sprintf("n%d", h.IntN(4)))
	case 18:
		h.setNode(h.node())
	case 19:
		h.resync()
	case 20, 21:
		h.changePorts()
	case 22:
		h.setRanges(h.ranges())
	case 23, 24, 25:
		h.startBehindPolicy(name)
	}
}

// somePod is a copy of one of the pods, or nil.
func (h *history) somePod() *corev1.Pod {
	if len(h.cluster.Pods) == 0 {
		return nil
	}
	return oneOf(h.chance, h.cluster.Pods...).DeepCopy()
}

func (h *history) relabelPod() {
	if p := h.somePod(); p != nil {
		p.Labels = h.labels()
		h.setPod(p)
	}
}

func (h *history) changePorts() {
	if p := h.somePod(); p != nil {
		h.setPorts(&p.Spec)
		h.setPod(p)
	}
}

// moveAddress gives a pod's address to another before the first is heard to be
// gone, and perhaps says so later.
func (h *history) moveAddress() {
	old := h.somePod()
	if old == nil {
		return
	}
	heir := h.pod("heir")
	heir.Status.PodIP, heir.Status.PodIPs = old.Status.PodIP, old.Status.PodIPs
	h.setPod(heir)
	if h.oneIn(2) {
		h.commitAndCheck()
	}
	h.deletePod(old.Namespace, old.Name)
}

// reuseName deletes a pod and adds another of the same name at once.
func (h *history) reuseName() {
	old := h.somePod()
	if old == nil {
		return
	}
	h.deletePod(old.Namespace, old.Name)
	next := h.pod(old.Name)
	next.Namespace = old.Namespace
	h.setPod(next)
}

// loseStatus takes a pod's addresses from its status, or finishes it.
func (h *history) loseStatus() {
	p := h.somePod()
	if p == nil {
		return
	}
	if h.oneIn(2) {
		p.Status.Phase = corev1.PodSucceeded
	} else {
		p.Status = corev1.PodStatus{Phase: corev1.PodPending}
	}
	h.setPod(p)
}

// resync says everything again, as informers do.
func (h *history) resync() {
	for _, o := range slices.Clone(h.cluster.Namespaces) {
		h.setNamespace(o.DeepCopy())
	}
	for _, o := range slices.Clone(h.cluster.Pods) {
		h.setPod(o.DeepCopy())
	}
	for _, o := range slices.Clone(h.cluster.Policies) {
		h.setPolicy(o.DeepCopy())
	}
}

// commitAndCheck commits, and holds the snapshot against a new store,
// against the oracle, and against every snapshot before.
func (h *history) commitAndCheck() {
	if h.drafts && h.oneIn(3) {
		h.finishDrafts()
	}
	h.note("commit")
	now, changes := h.world.Commit()
	api := h.cluster
	defer func() { h.cluster = api }()
	h.checkStarts(now)
	h.cluster = h.inForce()
	deferred := h.withoutDeferred(h.cluster)
	fresh, _ := h.cluster.world().Commit()
	for i, f := range h.probes {
		key := f.key()
		v := now.Decide(key)
		if d := h.cluster.judge(f).disagreement(v); d != "" {
			h.fail(f, d)
		}
		if a := fresh.Decide(key); a.Action != v.Action || a.Reason != v.Reason {
			h.fail(f, fmt.Sprintf("%s, %s, but %s, %s in a new store", v.Action, v.Reason, a.Action, a.Reason))
		}
		h.checkChanges(f, v, changes)
		h.checkEpochs(i, f, v, now)
	}
	behind := h.behind()
	if deferred && !behind {
		h.fail(flow{}, "addresses are deferred, and there is no draft")
	}
	h.checkPublic(now, fresh, changes, behind)
	h.before = now
}

// checkChanges wants an end of every flow whose verdict differs among the changes.
func (h *history) checkChanges(f flow, v filter.Verdict, changes policy.Changes) {
	was := h.before.Decide(f.key())
	if was.Action != v.Action {
		h.changed++
	}
	if was.Action != v.Action && !slices.Contains(changes, f.Src) && !slices.Contains(changes, f.Dst) {
		h.fail(f, fmt.Sprintf("%s before, %s now, but neither end is among the changes %v", was.Action, v.Action, changes))
	}
}

// checkEpochs wants every verdict that was ever given under the epochs of both
// ends to be the verdict now. All that caches do rests on this.
func (h *history) checkEpochs(i int, f flow, v filter.Verdict, now *policy.Snapshot) {
	epochs := [2]uint64{now.Endpoint(f.Src).Epoch(), now.Endpoint(f.Dst).Epoch()}
	old, ok := h.seen[i][epochs]
	if ok && old.action != v.Action {
		h.fail(f, fmt.Sprintf("%s in snapshot %d, %s now, with the same epochs %v", old.action, old.number, v.Action, epochs))
	}
	h.seen[i][epochs] = remembered{v.Action, now.Number()}
}

// checkPublic compares what else a snapshot tells: who has which address, and
// which addresses have changed hands.
func (h *history) checkPublic(now, fresh *policy.Snapshot, changes policy.Changes, behind bool) {
	owners := map[netip.Addr]string{}
	for a, e := range now.Endpoints() {
		owners[a] = e.String()
	}
	count := 0
	if c := h.world.Clashes(); fmt.Sprint(c) != fmt.Sprint(h.cluster.clashes()) {
		h.fail(flow{}, fmt.Sprintf("clashes %v, want %v", c, h.cluster.clashes()))
	}
	for a, e := range fresh.Endpoints() {
		if count++; owners[a] != e.String() {
			h.fail(flow{Src: a, Dst: a}, fmt.Sprintf("the address is %q's, but %q's in a new store", owners[a], e))
		}
	}
	if count != len(owners) {
		h.fail(flow{}, fmt.Sprintf("%d addresses, but %d in a new store", len(owners), count))
	}
	if n, m := now.Counts(), fresh.Counts(); n != m && !behind {
		h.fail(flow{}, fmt.Sprintf("%+v, but %+v in a new store", n, m))
	}
	for _, a := range changes {
		if now.Endpoint(a).Epoch() == h.before.Endpoint(a).Epoch() {
			h.fail(flow{Src: a, Dst: a}, "the address is among the changes, with the epoch it had")
		}
	}
}

// fail keeps the first thing that is wrong.
func (h *history) fail(f flow, what string) {
	if h.failure == "" {
		last := h.log[max(0, len(h.log)-60):]
		h.failure = fmt.Sprintf("%s > %s %s %d: %s\nlast events:\n  %s\n%s",
			f.Src, f.Dst, f.Protocol, f.Port, what, strings.Join(last, "\n  "), h.cluster)
	}
}

// Histories are long enough for ids, addresses and names to be used again many
// times over.
const (
	historiesFull  = 400
	historiesBrief = 40 // -race or -short
	historySteps   = 90
)

// TestChangesAreLikeBeginningAnew applies random events to one store, commits at
// random moments, and compares each snapshot with all that it must agree with.
func TestChangesAreLikeBeginningAnew(t *testing.T) {
	histories := uint64(historiesFull)
	if raceEnabled || testing.Short() {
		histories = historiesBrief
	}
	var changed, late, deferred atomic.Uint64
	inParallel(histories, func(seed uint64) bool {
		h := newHistory(seed)
		for range historySteps {
			h.step()
			h.advanceDrafts(h.IntN(6))
			if h.oneIn(3) {
				h.commitAndCheck()
			}
			if h.failure != "" {
				t.Errorf("seed %d: %s", seed, h.failure)
				return false
			}
		}
		changed.Add(h.changed)
		late.Add(uint64(h.overdue))
		deferred.Add(uint64(h.deferred))
		return true
	})
	if !t.Failed() && changed.Load() < 100*histories {
		t.Errorf("only %d verdicts changed in %d histories", changed.Load(), histories)
	}
	if !t.Failed() && late.Load() < 3*histories {
		t.Errorf("only %d times a policy was not in force yet in %d histories", late.Load(), histories)
	}
	if !t.Failed() && deferred.Load() < histories {
		t.Errorf("only %d times an address was not known yet in %d histories", deferred.Load(), histories)
	}
}

// inParallel calls f with 1 to n from as many goroutines as are of use, until one
// call returns false.
func inParallel(n uint64, f func(uint64) bool) {
	var next atomic.Uint64
	var stop atomic.Bool
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for i := next.Add(1); i <= n && !stop.Load(); i = next.Add(1) {
				if !f(i) {
					stop.Store(true)
				}
			}
		})
	}
	workers.Wait()
}
