package inventory

import (
	"cmp"
	"slices"

	"sluice/filter/policy"
)

// addWorkloads finds the pods of each workload. A workload without live pods gets a pod made from its
// template, unless another known workload owns it.
func (v *Inventory) addWorkloads() {
	made := make(map[policy.Ref]policy.Ref, len(v.Workloads)) // by workload: its owner
	for _, w := range v.Workloads {
		made[w.Ref] = w.Owner
	}
	for _, p := range v.Objects.Pods {
		if p.Owner != (policy.Ref{}) {
			v.addTo(topOf(p.Owner, made), p)
		}
	}
	for _, w := range v.Workloads {
		_, ownerKnown := made[w.Owner]
		top := topOf(w.Ref, made)
		if ownerKnown || slices.ContainsFunc(v.workloads[top], alive) {
			continue // the owner's template is used, or live pods are known
		}
		pod := *w.Pod
		pod.Owner = top
		for v.pods[pod.String()] != nil {
			pod.Name += " (" + w.Ref.Kind + ")" // not a valid name, so no other object has it
		}
		v.pods[pod.String()] = &pod
		v.addTo(top, &pod)
	}
	for _, pods := range v.workloads {
		slices.SortFunc(pods, func(a, b *policy.Pod) int { return cmp.Compare(a.Name, b.Name) })
	}
}

func (v *Inventory) addTo(ref policy.Ref, p *policy.Pod) {
	v.workloads[ref] = append(v.workloads[ref], p)
	v.workloadOf[p] = ref
}

// topOf follows the owners of a workload to the topmost. It stops after 8 steps, because owners may
// form a cycle.
func topOf(ref policy.Ref, made map[policy.Ref]policy.Ref) policy.Ref {
	const deepest = 8
	for range deepest {
		owner := made[ref]
		if owner == (policy.Ref{}) {
			break
		}
		ref = owner
	}
	return ref
}

func alive(p *policy.Pod) bool { return p.Ended == "" }

// WorkloadOf returns the topmost owner of a pod, such as the Deployment of its ReplicaSet; zero for
// a pod without an owner.
func (v *Inventory) WorkloadOf(p *policy.Pod) policy.Ref { return v.workloadOf[p] }
