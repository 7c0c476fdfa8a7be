package policy_test

import (
	"runtime"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// usage is the memory in bytes that compiling takes: "kept" is the part that is still live
// afterwards, allocated is the total of all allocations.
type usage struct{ kept, allocated uint64 }

func heap() (kept, allocated uint64) {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc, m.TotalAlloc
}

// measure compiles pods and policies in a new store, and returns the memory that this took.
func measure(pods []*corev1.Pod, policies ...*networkingv1.NetworkPolicy) (usage, *policy.Store, *policy.Snapshot) {
	kept, allocated := heap()
	w := policy.NewStore()
	w.SetLimits(policy.Limits{})
	for _, p := range pods {
		w.SetPod(kubepod.Read(p))
	}
	for _, p := range policies {
		w.SetPolicy(netpol.Read(p))
	}
	s, _ := w.Commit()
	keptAfter, allocatedAfter := heap()
	runtime.KeepAlive(pods)
	runtime.KeepAlive(policies)
	return usage{keptAfter - min(kept, keptAfter), allocatedAfter - allocated}, w, s
}
