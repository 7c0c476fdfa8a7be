package policy_test

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/clusterpolicy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// history applies the same random events to a store and to a cluster, and checks that the
// store agrees with the cluster.
type history struct {
	chance
	store   *policy.Store
	cluster *cluster
	log     []string // events, oldest first
	probes  []flow   // flows to decide after each commit
	before  *policy.Snapshot
	// seen[i] holds the earlier verdicts about probes[i], by the epochs that its source and
	// destination had then. It is like a cache that never evicts an entry.
	seen    []map[[2]uint64]remembered
	changed uint64 // verdicts that a commit changed
	failure string
	ids     *ids // nil if no IDs are checked

	drafts    bool                                        // the store uses drafts, so that new versions of policies come into force later
	preparing *policy.Draft                               // the draft that NextDraft returned, until it is passed to Prepared
	versions  map[[2]string][]*networkingv1.NetworkPolicy // all versions of each policy, nil for a delete
	reached   map[[2]string]int                           // index of the version in force in the list "versions"; it must never decrease
	overdue   int                                         // sum, over all commits, of the policies whose newest version was not yet in force
	overdueIn map[string]bool                             // namespaces with a policy whose newest version was not in force at the last commit
	started   map[podAddress]start                        // pods' addresses whose packets are held until the pod is known
	deferred  int                                         // sum, over all commits, of the addresses that the store deferred (see defer.go)
}

type remembered struct {
	action filter.Action
	number uint64 // number of the snapshot
}

func newHistory(seed uint64) *history {
	h := &history{chance: newChance(seed), store: policy.NewStore(), cluster: &cluster{}}
	h.store.SetLocalNode(localNode)
	if h.cluster.assumed = seed%2 == 0; h.cluster.assumed {
		h.store.AssumeNodeAddrs()
	}
	if h.cluster.complete = seed%4 == 1; h.cluster.complete {
		h.store.RequireNamespaces()
	}
	h.cluster.shape = int(seed % policy.Shapes)
	h.store.SetShape(h.cluster.shape)
	h.store.SetFew([]int{0, 2, 512}[seed/2%3])
	if h.drafts = seed%3 != 0; h.drafts {
		h.store.UseDrafts()
		h.store.SetLarge(oneOf(h.chance, 0, 60, 120))
	}
	h.versions, h.reached = map[[2]string][]*networkingv1.NetworkPolicy{}, map[[2]string]int{}
	h.started = map[podAddress]start{}
	noPods := &cluster{Pods: []*corev1.Pod{{}}}
	for len(h.probes) < 120 {
		h.probes = append(h.probes, h.flow(noPods))
	}
	h.seen = make([]map[[2]uint64]remembered, len(h.probes))
	for i := range h.seen {
		h.seen[i] = map[[2]uint64]remembered{}
	}
	h.before, _ = h.store.Commit()
	return h
}

// logf logs an event.
func (h *history) logf(format string, args ...any) {
	h.log = append(h.log, fmt.Sprintf(format, args...))
}

// named returns the index of the object with the given name, or -1.
func named[T metav1.Object](list []T, namespace, name string) int {
	return slices.IndexFunc(list, func(o T) bool { return o.GetNamespace() == namespace && o.GetName() == name })
}

// set returns a copy of the list in which o replaces the object of the same name, or is
// appended if there is none.
func set[T metav1.Object](list []T, o T) []T {
	list = slices.Clone(list)
	if i := named(list, o.GetNamespace(), o.GetName()); i >= 0 {
		list[i] = o
		return list
	}
	return append(list, o)
}

// remove returns the list without the object of the given name.
func remove[T metav1.Object](list []T, namespace, name string) []T {
	return slices.DeleteFunc(slices.Clone(list), func(o T) bool { return o.GetNamespace() == namespace && o.GetName() == name })
}

func (h *history) setPod(o *corev1.Pod) {
	h.logf("set pod %s/%s labels=%v ip=%s ips=%v phase=%s hostNetwork=%t node=%s created=%d", o.Namespace, o.Name, o.Labels,
		o.Status.PodIP, o.Status.PodIPs, o.Status.Phase, o.Spec.HostNetwork, o.Spec.NodeName, o.CreationTimestamp.Unix())
	h.recordStarts(o)
	h.store.SetPod(kubepod.Read(o))
	h.cluster.Pods = set(h.cluster.Pods, o)
}

func (h *history) deletePod(namespace, name string) {
	h.logf("delete pod %s/%s", namespace, name)
	h.endStarts(namespace, name)
	h.store.DeletePod(namespace, name)
	h.cluster.Pods = remove(h.cluster.Pods, namespace, name)
}

func (h *history) setNamespace(o *corev1.Namespace) {
	h.logf("set namespace %s labels=%v", o.Name, o.Labels)
	h.store.SetNamespace(o.Name, o.Labels)
	h.cluster.Namespaces = set(h.cluster.Namespaces, o)
}

func (h *history) deleteNamespace(name string) {
	h.logf("delete namespace %s", name)
	h.store.DeleteNamespace(name)
	h.cluster.Namespaces = remove(h.cluster.Namespaces, "", name)
}

func (h *history) setPolicy(o *networkingv1.NetworkPolicy) {
	h.logf("set policy %s/%s", o.Namespace, o.Name)
	h.store.SetPolicy(netpol.Read(o))
	h.cluster.Policies = set(h.cluster.Policies, o)
	h.recordVersion(o.Namespace, o.Name, o)
}

func (h *history) deletePolicy(namespace, name string) {
	h.logf("delete policy %s/%s", namespace, name)
	h.store.DeletePolicy(netpol.Ref(namespace, name))
	h.cluster.Policies = remove(h.cluster.Policies, namespace, name)
	h.recordVersion(namespace, name, nil)
	h.reached[[2]string{namespace, name}] = len(h.versions[[2]string{namespace, name}]) - 1 // a delete is in force at once
}

func (h *history) setClusterPolicy(o *v1beta1.ClusterNetworkPolicy) {
	h.logf("set cluster policy %s", o.Name)
	form := clusterpolicy.Read(o)
	if h.ids != nil {
		form.Denial = oneOf(h.chance, filter.DenialUnset, filter.DenialUnset, filter.DenialDrop, filter.DenialReject)
		form.Digest[0] ^= byte(form.Denial)
	}
	h.store.SetPolicy(form)
	h.cluster.Cluster = set(h.cluster.Cluster, o)
}

func (h *history) deleteClusterPolicy(name string) {
	h.logf("delete cluster policy %s", name)
	h.store.DeletePolicy(clusterpolicy.Ref(name))
	h.cluster.Cluster = remove(h.cluster.Cluster, "", name)
}

func (h *history) setNodeObject(o *corev1.Node) {
	h.logf("set Node %s labels=%v addresses=%v", o.Name, o.Labels, nodeObjectAddrs(o))
	h.store.SetNodeObject(readNode(o))
	h.cluster.Nodes = set(h.cluster.Nodes, o)
}

func (h *history) deleteNodeObject(name string) {
	h.logf("delete Node %s", name)
	h.store.DeleteNodeObject(name)
	h.cluster.Nodes = remove(h.cluster.Nodes, "", name)
}

func (h *history) setRanges(ranges []netip.Prefix) {
	h.logf("set ranges %v", ranges)
	h.store.SetPodRanges(ranges)
	h.cluster.Ranges = ranges
}

func (h *history) setNode(addrs []netip.Addr) {
	h.logf("set node %v", addrs)
	h.store.SetNode(addrs)
	h.cluster.Node = addrs
}

// step applies one random event, or a few that belong together.
func (h *history) step() {
	name := fmt.Sprintf("p%d", h.IntN(10))
	switch h.IntN(33) {
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
	case 26, 27, 28:
		h.setClusterPolicy(h.clusterPolicy(fmt.Sprintf("c%d", h.IntN(4))))
	case 29, 30:
		h.deleteClusterPolicy(fmt.Sprintf("c%d", h.IntN(4)))
	case 31:
		h.setNodeObject(h.nodeObject(oneOf(h.chance, nodeNames...)))
	case 32:
		if h.oneIn(3) {
			h.deleteNodeObject(oneOf(h.chance, nodeNames...))
		} else {
			h.relabelNode()
		}
	}
}

// somePod returns a copy of a random pod, or nil if there is none.
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

// relabelNode changes the labels or the addresses of a Node, and leaves the rest.
func (h *history) relabelNode() {
	if len(h.cluster.Nodes) == 0 {
		return
	}
	o := oneOf(h.chance, h.cluster.Nodes...).DeepCopy()
	if other := h.nodeObject(o.Name); h.oneIn(2) {
		o.Labels = other.Labels
	} else {
		o.Status = other.Status
	}
	h.setNodeObject(o)
}

func (h *history) changePorts() {
	if p := h.somePod(); p != nil {
		h.setPorts(&p.Spec)
		h.setPod(p)
	}
}

// moveAddress gives a pod's address to another pod before the first pod is deleted, perhaps
// with a commit in between.
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

// reuseName deletes a pod and at once adds a different one with the same name.
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

// loseStatus removes a pod's addresses from its status, or ends the pod.
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

// resync sets every object again, as informers do.
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
	for _, o := range slices.Clone(h.cluster.Cluster) {
		h.setClusterPolicy(o.DeepCopy())
	}
	for _, o := range slices.Clone(h.cluster.Nodes) {
		h.setNodeObject(o.DeepCopy())
	}
}

// commitAndCheck commits, and compares the snapshot with the oracle, with the snapshot of a
// new store, and with all earlier verdicts.
func (h *history) commitAndCheck() {
	if h.drafts && h.oneIn(3) {
		h.finishDrafts()
	}
	h.logf("commit")
	h.forgetOutOfRanges()
	now, changes := h.store.Commit()
	if err := h.store.CheckGroups(); err != nil {
		h.fail(flow{}, err.Error())
	}
	whole := h.cluster
	defer func() { h.cluster = whole }()
	h.checkStarts(now)
	h.cluster = h.inForce()
	deferred := h.withoutDeferred(h.cluster)
	fresh, _ := h.cluster.newStore().Commit()
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
		h.fail(flow{}, "addresses are deferred, but there is no draft")
	}
	h.checkPublic(now, fresh, changes, behind)
	if h.ids != nil {
		h.ids.check(h, now, changes)
	}
	h.before = now
}

// checkChanges checks that changes contains the source or the destination of a flow whose verdict
// has changed.
func (h *history) checkChanges(f flow, v filter.Verdict, changes policy.Changes) {
	was := h.before.Decide(f.key())
	if was.Action != v.Action {
		h.changed++
	}
	if was.Action != v.Action && !slices.Contains(changes, f.Src) && !slices.Contains(changes, f.Dst) {
		h.fail(f, fmt.Sprintf("%s before, %s now, but neither end is among the changes %v", was.Action, v.Action, changes))
	}
}

// checkEpochs checks that a flow whose ends have the same epochs as at an earlier commit
// still has the same verdict. Caches rely on this.
func (h *history) checkEpochs(i int, f flow, v filter.Verdict, now *policy.Snapshot) {
	epochs := [2]uint64{now.Endpoint(f.Src).Epoch(), now.Endpoint(f.Dst).Epoch()}
	old, ok := h.seen[i][epochs]
	if ok && old.action != v.Action {
		h.fail(f, fmt.Sprintf("%s in snapshot %d, %s now, with the same epochs %v", old.action, old.number, v.Action, epochs))
	}
	h.seen[i][epochs] = remembered{v.Action, now.Number()}
}

// checkPublic compares two snapshots, "now" of the store and "fresh" of a new store: the owners of
// addresses and, unless the parameter "behind" is set, the counts. It compares the clashes with
// those of the cluster. It also checks that each address in changes has a new epoch or a new ID.
func (h *history) checkPublic(now, fresh *policy.Snapshot, changes policy.Changes, behind bool) {
	owners := map[netip.Addr]string{}
	for a, e := range now.Endpoints() {
		owners[a] = e.String()
	}
	count := 0
	if c := h.store.Clashes(); fmt.Sprint(c) != fmt.Sprint(h.cluster.clashes()) {
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
		is, id := now.Identify(a)
		if was, before := h.before.Identify(a); is.Epoch() == was.Epoch() && id == before {
			h.fail(flow{Src: a, Dst: a}, "the address is among the changes, but its epoch and its ID are the same")
		}
	}
}

// fail records a failure, unless there is an earlier one.
func (h *history) fail(f flow, what string) {
	if h.failure == "" {
		last := h.log[max(0, len(h.log)-60):]
		h.failure = fmt.Sprintf("%s > %s %s %d: %s\nlast events:\n  %s\n%s",
			f.Src, f.Dst, f.Protocol, f.Port, what, strings.Join(last, "\n  "), h.cluster)
	}
}

const (
	historiesAll   = 2_000 // with SLUICE_FULL_TEST
	historiesFull  = 400
	historiesBrief = 40 // with -race or -short
	historySteps   = 90 // enough to reuse ids, addresses and names many times
)

// After any sequence of events, the snapshot is the same as that of a new store in which
// only the remaining objects were set.
func TestChangesMatchNewStore(t *testing.T) {
	histories := uint64(historiesFull)
	switch {
	case os.Getenv("SLUICE_FULL_TEST") != "":
		histories = historiesAll
	case raceEnabled || testing.Short():
		histories = historiesBrief
	}
	var changed, overdue, deferred atomic.Uint64
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
		overdue.Add(uint64(h.overdue))
		deferred.Add(uint64(h.deferred))
		return true
	})
	if !t.Failed() && changed.Load() < 100*histories {
		t.Errorf("only %d verdicts changed in %d histories", changed.Load(), histories)
	}
	if !t.Failed() && overdue.Load() < 3*histories {
		t.Errorf("only %d times a policy was not in force yet in %d histories", overdue.Load(), histories)
	}
	if !t.Failed() && deferred.Load() < histories {
		t.Errorf("only %d times an address was not known yet in %d histories", deferred.Load(), histories)
	}
}

// inParallel calls f(1) to f(n), from GOMAXPROCS goroutines, until a call returns false.
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
