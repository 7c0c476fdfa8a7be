package policy_test

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
)

// podAddress is an address of a pod.
type podAddress struct {
	namespace, name string
	addr            netip.Addr
}

// start records which versions of policies existed when a pod got an address. It maps the name of
// each policy in the pod's namespace to the index of its newest version at that time.
type start map[string]int

// recordStarts must be called before the store gets an update of a pod. It records the
// addresses that the pod gains, if their packets are held until the pod is known, and forgets
// the addresses that the pod loses.
func (h *history) recordStarts(o *corev1.Pod) {
	before := h.endStarts(o.Namespace, o.Name)
	had := liveAddrs(h.cluster.Pods, o)
	if o.Spec.NodeName != localNode {
		return
	}
	for _, a := range liveAddrs([]*corev1.Pod{o}, o) {
		key := podAddress{o.Namespace, o.Name, a}
		if slices.Contains(had, a) {
			if at, ok := before[key]; ok {
				h.started[key] = at
			}
			continue
		}
		if !h.inRanges(a) {
			continue
		}
		h.started[key] = start{}
		for policy, versions := range h.versions {
			if policy[0] == o.Namespace {
				h.started[key][policy[1]] = len(versions) - 1
			}
		}
	}
}

// startBehindPolicy sets a policy, and immediately afterwards a pod of the same namespace on
// this node.
func (h *history) startBehindPolicy(name string) {
	policy := h.policy(fmt.Sprintf("n%d", h.IntN(4)))
	h.setPolicy(policy)
	o := h.pod(name)
	o.Namespace, o.Spec.NodeName = policy.Namespace, localNode
	h.setPod(o)
}

// endStarts removes the entries of a pod's addresses from h.started, and returns them.
func (h *history) endStarts(namespace, name string) map[podAddress]start {
	ended := map[podAddress]start{}
	for key, at := range h.started {
		if key.namespace == namespace && key.name == name {
			ended[key] = at
			delete(h.started, key)
		}
	}
	return ended
}

// liveAddrs finds the pod in the list that has the same name and time of creation as o, and
// returns its addresses. It returns nil if there is no such pod, if the pod is in the host
// network, or if the pod has ended.
func liveAddrs(list []*corev1.Pod, o *corev1.Pod) []netip.Addr {
	i := named(list, o.Namespace, o.Name)
	if i < 0 || !list[i].CreationTimestamp.Equal(&o.CreationTimestamp) || list[i].Spec.HostNetwork ||
		list[i].Status.Phase == corev1.PodSucceeded || list[i].Status.Phase == corev1.PodFailed {
		return nil
	}
	return podAddrs(list[i])
}

func (h *history) inRanges(a netip.Addr) bool {
	return slices.ContainsFunc(h.cluster.Ranges, func(r netip.Prefix) bool { return r.Contains(a) })
}

// forgetOutOfRanges removes from h.started the addresses that are in no range any more: their
// packets are not held. It is called at a commit, because a removed range may be added again
// before the commit.
func (h *history) forgetOutOfRanges() {
	for key := range h.started {
		if !h.inRanges(key.addr) {
			delete(h.started, key)
		}
	}
}

// checkStarts checks each known pod against the policies that were set before the pod got its
// address. If all versions of such a policy since then isolate the pod, the snapshot must
// isolate it by that policy.
func (h *history) checkStarts(now *policy.Snapshot) {
	for key, at := range h.started {
		e := now.Endpoint(key.addr)
		if e == nil || e.Namespace != key.namespace || e.Name != key.name {
			continue // packets of the address are held, or another pod has it
		}
		if v := now.Decide(flow{Src: key.addr, Dst: outsideAddrs[0], Protocol: filter.TCP}.key()); v.Reason == filter.NamespaceNotKnown {
			continue // it is denied everything
		}
		pod := h.cluster.Pods[named(h.cluster.Pods, key.namespace, key.name)]
		for name, first := range at {
			for _, d := range []filter.Direction{filter.Egress, filter.Ingress} {
				since := h.versions[[2]string{key.namespace, name}][first:]
				if all(since, func(o *networkingv1.NetworkPolicy) bool { return isolates(o, pod, d) }) &&
					(e.Isolation(d) == nil || !slices.Contains(e.Isolation(d).Policies, key.namespace+"/"+name)) {
					h.fail(flow{Src: key.addr, Dst: key.addr}, fmt.Sprintf("%s started after policy %s, which does not isolate it for %v", e, name, d))
				}
			}
		}
	}
}

func all[T any](list []T, f func(T) bool) bool {
	return !slices.ContainsFunc(list, func(v T) bool { return !f(v) })
}

// isolates reports whether a version of a policy isolates a pod of the same namespace.
func isolates(o *networkingv1.NetworkPolicy, pod *corev1.Pod, d filter.Direction) bool {
	if o == nil || !affects(o, d) {
		return false
	}
	selector, err := metav1.LabelSelectorAsSelector(&o.Spec.PodSelector)
	return err != nil || selector.Matches(labels.Set(pod.Labels))
}

// withoutDeferred removes from c the addresses that the store defers, and reports whether
// there are any. The store must defer an address only if its packets are held, and only while
// a policy of its pod's namespace is not in force yet; otherwise withoutDeferred fails the test.
func (h *history) withoutDeferred(c *cluster) bool {
	deferred := h.store.Deferred()
	was := *c
	for pod, addrs := range deferred {
		if !h.overdueIn[pod[0]] {
			h.fail(flow{}, fmt.Sprintf("%v: %v are deferred, but all policies are in force", pod, addrs))
		}
		for _, a := range addrs {
			h.deferred++
			if _, is := h.started[podAddress{pod[0], pod[1], a}]; !is {
				h.fail(flow{Src: a, Dst: a}, fmt.Sprintf("%v is deferred, but its packets are not held", pod))
			}
			if o := was.podAt(a); o != nil && o.Namespace == pod[0] && o.Name == pod[1] {
				c.Pods = withoutAddr(c.Pods, a)
			}
		}
	}
	return len(deferred) > 0
}

// withoutAddr returns the pods with the address removed from all of them.
func withoutAddr(list []*corev1.Pod, a netip.Addr) []*corev1.Pod {
	is := func(text string) bool { return slices.Contains(parseAddrs([]string{text}), a) }
	list = slices.Clone(list)
	for i, o := range list {
		if !slices.Contains(podAddrs(o), a) {
			continue
		}
		o = o.DeepCopy()
		o.Status.PodIPs = slices.DeleteFunc(o.Status.PodIPs, func(ip corev1.PodIP) bool { return is(ip.IP) })
		if is(o.Status.PodIP) {
			o.Status.PodIP = ""
		}
		list[i] = o
	}
	return list
}
