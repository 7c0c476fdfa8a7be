package policy_test

import (
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"sluice/filter"
	"sluice/filter/policy"
)

// without is the cluster without the pods that have an address.
func (c *cluster) without(addr netip.Addr) *cluster {
	out := *c
	out.Pods = slices.DeleteFunc(slices.Clone(c.Pods), func(p *corev1.Pod) bool { return slices.Contains(podAddrs(p), addr) })
	return &out
}

// with is the cluster with a pod that has an address and no other, and is in no
// node's network.
func (c *cluster) with(r chance, name string, addr netip.Addr) *cluster {
	out := *c
	p := r.pod(name)
	p.Spec.HostNetwork = false
	p.Status.Phase, p.Status.PodIP, p.Status.PodIPs = corev1.PodRunning, addr.String(), []corev1.PodIP{{IP: addr.String()}}
	out.Pods = append(slices.Clone(c.Pods), p)
	return &out
}

// A verdict that is final is the one that the oracle gives whichever pod is put at
// the pending address; and one that is not differs for some pod, mostly.
func TestFinalVerdictsAreFinal(t *testing.T) {
	const clusters, flows, pods = 400, 10, 12
	final, open, needless := map[filter.Action]int{}, 0, 0
	for seed := range uint64(clusters) {
		r := newChance(seed + 9000)
		whole := r.cluster()
		for range flows {
			f := r.flow(whole)
			addr, src, dst := f.Src, policy.Known, policy.Known
			kind := oneOf(r, policy.PendingRemote, policy.PendingLocal)
			if r.oneIn(2) {
				addr, dst = f.Dst, kind
			} else {
				src = kind
			}
			c := whole.without(addr)
			if slices.Contains(c.Node, addr) || c.podAt(addr) != nil {
				continue // the node's own, or a pod's that has it otherwise
			}
			s, _ := c.world().Commit()
			v := s.Decide(f.key())
			k := f.key()
			isFinal := s.Final(&k, &v, src, dst)
			turned := false
			for i := range pods {
				other := c.with(r, "newcomer", addr)
				j := other.judge(f)
				action := j.Action
				if kind == policy.PendingRemote && !j.exempt() {
					// That pod's own policies are for its node to enforce.
					side := j.Ingress
					if dst == policy.PendingRemote {
						side = j.Egress
					}
					if action = filter.Deny; side.allows() {
						action = filter.Allow
					}
				}
				if action == v.Action {
					continue
				}
				turned = true
				if isFinal {
					t.Fatalf("seed %d: %v is finally %v (%v), with %s pending, but not with pod %d: %v\n%s", seed, f, v.Action, v.Reason, addr, i, j, other)
				}
			}
			switch {
			case isFinal:
				final[v.Action]++
			case turned:
				open++
			default:
				needless++
			}
		}
	}
	t.Logf("finally allowed %d, denied %d; not final %d, of which %d were the same for %d pods", final[filter.Allow], final[filter.Deny], open+needless, needless, pods)
	if final[filter.Allow] < 200 || final[filter.Deny] < 200 || open < 200 {
		t.Error("the test has become blunt")
	}
	if needless > 2*open {
		t.Error("too many verdicts are not seen to be final")
	}
}
