package policy_test

import (
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"sluice/filter"
	"sluice/filter/policy"
)

// without returns the cluster without the pods that have the given address.
func (c *cluster) without(addr netip.Addr) *cluster {
	out := *c
	out.Pods = slices.DeleteFunc(slices.Clone(c.Pods), func(p *corev1.Pod) bool { return slices.Contains(podAddrs(p), addr) })
	return &out
}

// with returns the cluster with an additional random pod. The pod's only address is addr, and
// the pod may have a name for the port of the flow.
func (c *cluster) with(r chance, name string, addr netip.Addr, f flow) *cluster {
	out := *c
	p := r.pod(name)
	if f.Transport == filter.Ported && f.Port > 0 && r.oneIn(2) {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Ports: []corev1.ContainerPort{{
			Name: oneOf(r, portNames...), ContainerPort: int32(f.Port), Protocol: corev1.Protocol(f.Protocol.String()),
		}}})
	}
	p.Spec.HostNetwork = false
	p.Status.Phase, p.Status.PodIP, p.Status.PodIPs = corev1.PodRunning, addr.String(), []corev1.PodIP{{IP: addr.String()}}
	out.Pods = append(slices.Clone(c.Pods), p)
	return &out
}

// A verdict is final if no pod that appears at a pending address changes it. The test adds
// random pods at the pending addresses, and compares each final verdict with the oracle's. It
// also checks that the random pods change at least a third of the verdicts that are not final.
func TestFinalVerdictsAreFinal(t *testing.T) {
	const clusters, flows, pods = 500, 15, 12
	final, open := map[filter.Action]int{}, 0
	missed := 0 // verdicts for which Final returned false although none of the random pods changed them
	for seed := range uint64(clusters) {
		r := newChance(seed + 9000)
		whole := r.cluster()
		whole.shape = int(seed % policy.Shapes)
		for range flows {
			f := r.flow(whole)
			kinds := [2]policy.Pending{}
			c := whole
			for i, addr := range []netip.Addr{f.Src, f.Dst} {
				if other := c.without(addr); r.oneIn(2) && !slices.Contains(c.Node, addr) && other.podAt(addr) == nil {
					kinds[i], c = oneOf(r, policy.PendingRemote, policy.PendingLocal), other
				}
			}
			src, dst := kinds[0], kinds[1]
			if src == policy.Known && dst == policy.Known || f.Src == f.Dst && src != dst {
				continue
			}
			s, _ := c.newStore().Commit()
			v := s.Decide(f.key())
			k := f.key()
			isFinal := s.Final(&k, &v, src, dst)
			differs := false
			for i := range pods {
				other := c
				if src != policy.Known {
					other = other.with(r, "source", f.Src, f)
				}
				if dst != policy.Known && f.Dst != f.Src {
					other = other.with(r, "destination", f.Dst, f)
				}
				j := other.judge(f)
				action := j.Action
				if !j.exempt() { // the policies of a remote pod are enforced on that pod's node, not here
					action = filter.Deny
					if (src == policy.PendingRemote || j.Egress.allows()) && (dst == policy.PendingRemote || j.Ingress.allows()) {
						action = filter.Allow
					}
				}
				if action == v.Action {
					continue
				}
				differs = true
				if isFinal {
					t.Fatalf("seed %d: %v has the final verdict %v (%v) with %v pending, but with pods %d: %v\n%s", seed, f, v.Action, v.Reason, kinds, i, j, other)
				}
			}
			switch {
			case isFinal:
				final[v.Action]++
			case differs:
				open++
			default:
				missed++
			}
		}
	}
	t.Logf("final: %d allowed, %d denied; not final: %d, and %d of these were the same with %d random pods", final[filter.Allow], final[filter.Deny], open+missed, missed, pods)
	if final[filter.Allow] < 200 || final[filter.Deny] < 200 || open < 200 {
		t.Error("too few flows of some kind: the test covers too little")
	}
	if missed > 2*open {
		t.Error("too many verdicts are not final although they are always the same")
	}
}
